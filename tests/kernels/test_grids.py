"""CUDA takes 65,535 programs at most along a grid's second and third place, whatever the interpreter takes."""

import pytest
import torch

from flashdraft.ops.triton import experts as experts_module
from flashdraft.ops.triton import fused

NUM_TOKENS, MOST_PROGRAMS = 70_000, 65_535
X = torch.zeros(NUM_TOKENS, 8)
HEADS = X.view(NUM_TOKENS, 2, 4)
ANGLES = torch.zeros(NUM_TOKENS, 4)
PAGES = torch.zeros(1, 2, 2, 4)
SLOTS = torch.zeros(NUM_TOKENS, dtype=torch.int64)


class Grids(list):
    """Stands for a kernel: keeps the grids that it is launched with, and launches nothing."""

    def __getitem__(self, grid):
        self.append(grid)
        return lambda *_, **__: None


LAUNCHES = {
    "_silu_mul_kernel": lambda: fused.silu_mul(X),
    "_sigmoid_mul_kernel": lambda: fused.sigmoid_mul(HEADS, HEADS),
    "_add_norm_kernel": lambda: fused.add_rms_norm(X, X, torch.ones(8), 1e-6, False),
    "_norm_rope_store_kernel": lambda: fused.norm_rope_store(
        HEADS, HEADS, HEADS, torch.ones(4), torch.ones(4), 1e-6, False, ANGLES, ANGLES, PAGES, SLOTS
    ),
    "_rope_store_kernel": lambda: fused.norm_rope_store(
        HEADS, HEADS, HEADS, None, None, 1e-6, False, ANGLES, ANGLES, PAGES, SLOTS
    ),
    "_sum_kernel": lambda: experts_module._summed(X, X[:, :1], None, None),
}


@pytest.mark.parametrize("kernel", LAUNCHES)
def test_a_prompt_step_of_70000_tokens_fits_the_grid(monkeypatch, kernel):
    grids = Grids()
    monkeypatch.setattr(experts_module if kernel == "_sum_kernel" else fused, kernel, grids)
    LAUNCHES[kernel]()
    (grid,) = list.__iter__(grids)
    assert max(grid[1:], default=1) <= MOST_PROGRAMS
