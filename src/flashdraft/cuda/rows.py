"""The rows of a step on a GPU: tables of pages, and tensors that say where tokens stand and what they see.

Nothing is gathered. Staged tokens are written where they would stay, as cache/paged_rows.py does it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from flashdraft.cache.paged_kv_cache import CacheRow, PagedKVCache, power_of_two
from flashdraft.cache.paged_rows import PagedRows
from flashdraft.cuda.states import DeviceStates
from flashdraft.ops.recorded import Recorded
from flashdraft.ops.triton.paged_attention import PART

_COARSE = 4  # keys that recordings are made for: PART times a power of this


@dataclass(frozen=True)
class RowTables:
    """What the host tells of a step's rows, one tensor [num_rows, 3 + width + num_pages] of int32."""

    numbers: Tensor
    width: int

    @property
    def starts(self) -> Tensor:
        """[num_rows]: committed tokens."""
        return self.numbers[:, 0]

    @property
    def ends(self) -> Tensor:
        """[num_rows]: the slot behind each row's last token, where padding begins."""
        return self.numbers[:, 1]

    @property
    def state_slots(self) -> Tensor:
        """Int64 [num_rows]: where the rows' states are."""
        return self.numbers[:, 2].long()

    @property
    def token_ids(self) -> Tensor:
        """Int64 [num_rows, width]."""
        return self.numbers[:, 3 : 3 + self.width].long()

    @cached_property
    def pages(self) -> Tensor:
        """[num_rows, num_pages]: each row's pages in order."""
        return self.numbers[:, 3 + self.width :]

    @cached_property
    def places(self) -> Tensor:
        """Int64 [num_rows, width]: where staged tokens lie, counted from the row's first."""
        return self.starts.long().unsqueeze(1) + torch.arange(self.width, device=self.numbers.device)

    def slots(self, page_size: int) -> Tensor:
        """Int64 [num_rows * width]: where staged tokens lie in the cache."""
        page = self.pages.long().gather(1, self.places // page_size)
        return (page * page_size + self.places % page_size).flatten()


def keys_bound(num_keys: int) -> int:
    """The bound of keys that the recording for ``num_keys`` was made for."""
    bound = PART
    while bound < num_keys:
        bound *= _COARSE
    return bound


class DeviceRows(PagedRows):
    """Rows whose attention reads pages on the GPU, with states of gated delta layers where there are any."""

    def __init__(self, cache: PagedKVCache, states: DeviceStates | None = None) -> None:
        super().__init__(cache)
        self.states = states
        self.records = True
        self.recorded = Recorded(cache.slots.device)
        self._committed = True  # a prompt's chunk, true as soon as it has run

    def tables(
        self, rows: Sequence[CacheRow], token_ids: Sequence[list[int]], width: int
    ) -> tuple[RowTables, int]:
        """The tables of ``rows`` and of empty ones up to a power of two, and a bound of their keys."""
        num_rows, num_keys = power_of_two(len(rows)), keys_bound(max(row.start for row in rows) + width)
        most = -(-num_keys // self.cache.page_size)
        self._place(rows, [len(ids) for ids in token_ids], most)
        numbers = np.full((num_rows, 3 + width + most), self.scratch_page, np.int32)
        numbers[:, : 3 + width] = 0
        numbers[:, 1] = 1
        numbers[:, 2] = self.states.spare if self.states else 0
        for idx, (row, ids, pages) in enumerate(zip(rows, token_ids, self._pages, strict=True)):
            numbers[idx, 0], numbers[idx, 1] = row.start, row.start + len(ids)
            if self.states:
                numbers[idx, 2] = self.states.slot_of(row)
            numbers[idx, 3 : 3 + len(ids)] = ids
            numbers[idx, 3 + width : 3 + width + len(pages)] = pages
        if self.states:
            self.states.stage(num_rows, width)
        self._committed = False
        moved = (
            torch.from_numpy(numbers).pin_memory() if self.cache.slots.is_cuda else torch.from_numpy(numbers)
        )
        return RowTables(moved.to(self.cache.slots.device, non_blocking=True), width), num_keys

    def commit_paths(self, rows: Sequence[CacheRow], paths: Sequence[Sequence[int]]) -> None:
        """See :meth:`PagedRows.commit_paths`; states follow."""
        if self._committed:
            return
        super().commit_paths(rows, paths)
        if self.states:
            self.states.commit(rows, [len(path) for path in paths])

    def begin(self, slot: int, source: int | None) -> None:
        """A sequence's states start in ``slot``: see :meth:`DeviceStates.begin`."""
        if self.states:
            self.states.begin(slot, source)

    def prefilled(self) -> None:
        """The rows' tokens were a prompt's, which are true as soon as they have run."""
        self._committed = True
