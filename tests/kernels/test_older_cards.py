"""Kernels are compiled for cards before Hopper, which none of the other tests do: these need no card."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

CARD = """
import sys
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

class Card:
    get_current_device = get_current_stream = lambda self, *_: 0
    get_current_target = lambda self: GPUTarget("cuda", int(sys.argv[1]), 32)
    get_active_torch_device = lambda self: torch.device("cpu")

driver.set_active(Card())
made = []
JITFunction.__getitem__ = lambda self, grid: lambda *args, **named: made.append(
    self.warmup(*args, grid=grid, **named)
)
from flashdraft.cuda import products
from flashdraft.ops.quantized import QuantizedWeight
from flashdraft.ops.triton import linear, long_sums, tiling

settings = linear.settings
linear.settings = long_sums.settings = lambda weight: settings(weight) | {"by_ptx": True}

def product_of(num_outputs, num_inputs, num_tokens, is_packed, has_zeros=False):
    codes = torch.zeros(num_outputs, num_inputs, dtype=torch.uint8)
    codes = codes.view(torch.int16)[:, : num_inputs // 4].contiguous() if is_packed else codes
    scales = torch.ones(num_inputs // 128, num_outputs) / 4
    zeros = scales if has_zeros else None
    weight = QuantizedWeight(codes, scales, zeros, torch.bfloat16, torch.bfloat16)
    products._product(torch.zeros(num_tokens, num_inputs, dtype=torch.bfloat16), weight, None, None)
"""
# (outputs, inputs, tokens, 4 bits): the largest tiles that there are
LARGEST = [(64, 1024, 64, False), (8256, 1024, 64, True), (64, 6144, 32, False), (64, 6144, 64, False)]


def run(script: str, capability: int, folder: os.PathLike) -> str:
    environment = os.environ | {"TRITON_CACHE_DIR": str(folder)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-c", CARD + script, str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("capability", [80, 89])
def test_products_with_codes_are_compiled_for_cards_before_hopper(capability, tmp_path):
    """Ampere and Ada have no difference and no product of bfloat16 alone."""
    run("product_of(64, 256, 1, True, has_zeros=True)", capability, tmp_path)


@pytest.mark.parametrize("shape", LARGEST)
def test_programs_fit_the_99_kib_of_an_ada(shape, tmp_path):
    script = f"""
tiling._HOPPERS_SHARED_BYTES = 99 * 1024  # what driver.active would tell of the card
product_of(*{shape})
print(max(kernel.metadata.shared for kernel in made))
"""
    assert 0 < int(run(script, 89, tmp_path)) <= 99 * 1024


@pytest.mark.parametrize(("num_inputs", "tiling"), [(1024, (16, 256, 4, 1, 8)), (6144, (16, 512, 4, 4, 8))])
def test_one_token_is_in_shared_memory_once(num_inputs, tiling, tmp_path):
    """In place of as often as a tile has columns: it took more room there than the codes, and kept programs waiting."""
    script = f"""
products._tiling_of_codes = lambda *_: tiling.Tiling(*{tiling})
for num_tokens in (1, 2):
    product_of(64, {num_inputs}, num_tokens, True)
one, two = (kernel.metadata.shared for kernel in made)
print(two - one)
"""
    _, inputs, stages, _, columns = tiling
    assert int(run(script, 90, tmp_path)) >= (stages - 1) * (columns - 1) * inputs * 2
