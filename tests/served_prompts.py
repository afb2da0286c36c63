"""Prompts' chunks through a target on a GPU, or under Triton's interpreter, without an engine."""

import torch
from torch import Tensor

from flashdraft.cache.paged_kv_cache import CacheRow
from flashdraft.cuda.target import CudaTarget
from flashdraft.models.base import TargetModel

PAGE, PAGES_A_ROW, NUM_SLOTS = 16, 80, 5
Chunk = tuple[int, int, int, tuple[tuple[int, int], ...]]  # row, start, tokens, snapshots


class ServedPrompts:
    """Pages and states of two rows hold what others left, and where padding goes nothing is a number.

    ``is_recorded``: whether chunks are recorded layer by layer.
    """

    def __init__(self, model: TargetModel, is_recorded: bool = True) -> None:
        self.target = CudaTarget(model)
        self.cache = self.target.new_cache(2 * PAGES_A_ROW, PAGE, 2 * PAGE)
        self.states = self.target.new_states(NUM_SLOTS, 1, 4)
        self.rows = self.target.new_rows(self.cache, self.states)
        if not is_recorded:
            self.target._recorded_chunk = None
        generator = torch.Generator(model.device).manual_seed(1)
        self.cache.slots.normal_(generator=generator)
        self.scratch = self.rows.scratch_page * PAGE
        self.cache.slots[self.scratch :] = float("nan")
        for states in self._kept:
            states.normal_(generator=generator)
            states[:, -1] = float("nan")
        for slot in range(2 if self.states else 0):
            self.states.begin(slot, None)

    @property
    def _kept(self) -> tuple[Tensor, ...]:
        return (self.states.recurrent, self.states.conv) if self.states else ()

    @torch.inference_mode()
    def prefill(self, *chunks: Chunk) -> list[Tensor]:
        """Final hidden states and features of each of ``chunks``, which run together."""
        placed, ids = [], []
        for row, start, count, snapshots in chunks:
            pages = range(row * PAGES_A_ROW, (row + 1) * PAGES_A_ROW)
            placed.append(CacheRow(row, pages, start, row if self.states else None, snapshots))
            ids.append([(7 * at + row) % 97 for at in range(start, start + count)])
        output, counts = self.target.prefill(self.rows, placed, ids, [0, 1]), [len(own) for own in ids]
        both = (torch.split(tensor, counts) for tensor in (output.hidden, output.features))
        return [tensor for one in zip(*both, strict=True) for tensor in one]

    def state(self, slot: int) -> list[Tensor]:
        """Of all gated delta layers, if there are any."""
        return [states[:, slot] for states in self._kept]

    def held(self) -> list[Tensor]:
        """All pages and states but those where padding goes."""
        return [self.cache.slots[: self.scratch], *(states[:, :-1] for states in self._kept)]


def check_same(found: list[Tensor], expected: list[Tensor]) -> None:
    """To the bit, and numbers all."""
    for one, other in zip(found, expected, strict=True):
        assert torch.isfinite(one).all()
        assert torch.equal(one, other)
