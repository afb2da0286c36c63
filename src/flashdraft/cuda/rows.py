"""The rows of a step on a GPU: tables of pages, and tensors that say where tokens stand and what they see.

Nothing is gathered. Staged tokens are written where they would stay, as cache/paged_rows.py does it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flashdraft.cache.paged_kv_cache import CacheRow, PagedKVCache, power_of_two
from flashdraft.cache.paged_rows import PagedRows
from flashdraft.cuda.states import DeviceStates
from flashdraft.ops.host_copy import pinned
from flashdraft.ops.recorded import Recorded
from flashdraft.ops.triton.paged_attention import PART, Visible
from flashdraft.ops.triton.rounds import placed

_COARSE = 4  # of the bounds of keys that recordings are made for, as a rule
_MANY_ROWS = 1024  # more are padded to three quarters of a power of two, too: it may be half empty


@dataclass(frozen=True)
class RowTables:
    """Where the rows of a step stand, on the device."""

    starts: Tensor  # int32 [num_rows]: committed tokens
    ends: Tensor  # int32 [num_rows]: the slot behind each row's last token, where padding begins
    state_slots: Tensor  # int64 [num_rows]: where the rows' states are
    token_ids: Tensor  # int64 [num_rows, width]
    pages: Tensor  # int32 [num_rows, num_pages]: each row's pages in order
    page_size: int

    @classmethod
    def of(cls, numbers: Tensor, width: int, page_size: int) -> "RowTables":
        """What :meth:`DeviceRows.tables` told."""
        return cls(
            numbers[:, 0],
            numbers[:, 1],
            numbers[:, 2].long(),
            numbers[:, 3 : 3 + width].long(),
            numbers[:, 3 + width :],
            page_size,
        )

    @property
    def width(self) -> int:
        """Tokens of each row, padding included."""
        return self.token_ids.shape[1]

    @cached_property
    def _placed(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return placed(self.starts, self.pages, self.width, self.page_size)

    @property
    def places(self) -> Tensor:
        """Int64 [num_rows, width]: where staged tokens lie, counted from the row's first."""
        return self._placed[0]

    @property
    def slots(self) -> Tensor:
        """Int64 [num_rows * width]: where staged tokens lie in the cache."""
        return self._placed[1]

    @property
    def visible(self) -> Visible:
        """What staged tokens see, each row's a chain."""
        return Visible(*self._placed[2:], self.starts.contiguous())


def page_array(pages: Sequence[Sequence[int]], shape: tuple[int, int], fill: int) -> NDArray[np.int32]:
    """The ``pages`` of rows, each row's in order, as a table of ``shape``, with ``fill`` behind them."""
    table = np.full(shape, fill, np.int32)
    lengths = np.fromiter(map(len, pages), np.int64, len(pages))
    is_page = np.arange(shape[1]) < lengths[:, None]
    table[: len(pages)][is_page] = np.fromiter(chain.from_iterable(pages), np.int32)
    return table


def places_of(
    rows: Sequence[CacheRow], counts: Sequence[int], page_size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of the next ``counts[i]`` tokens of each row, row after row: their positions, and their slots in the cache."""
    lengths = np.array(counts)
    starts = np.array([row.start for row in rows])
    num_pages = np.array([len(row.pages) for row in rows])
    pages = np.fromiter(chain.from_iterable(row.pages for row in rows), np.int64)

    def of_tokens(of_rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.repeat(of_rows, lengths)

    positions = np.arange(lengths.sum()) + of_tokens(starts - (lengths.cumsum() - lengths))
    page = pages[of_tokens(num_pages.cumsum() - num_pages) + positions // page_size]
    return positions, page * page_size + positions % page_size


def keys_bound(num_keys: int, coarse: int = _COARSE) -> int:
    """The bound of keys that the recording for ``num_keys`` was made for: PART times a power of ``coarse``."""
    bound = PART
    while bound < num_keys:
        bound *= coarse
    return bound


def padded_rows(num_rows: int) -> int:
    """How many rows the recording for ``num_rows`` has."""
    whole = power_of_two(num_rows)
    fits_less = _MANY_ROWS < num_rows <= whole // 4 * 3
    return whole // 4 * 3 if fits_less else whole


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
    ) -> tuple[Tensor, int]:
        """What the host tells of ``rows`` and of empty ones (:func:`padded_rows`), and a bound of their keys.

        Int32 [num_rows, 3 + width + num_pages], on the host, pinned: :class:`RowTables` takes it apart.
        """
        num_keys = keys_bound(max(row.start for row in rows) + width)
        pages = self.page_table(rows, [len(ids) for ids in token_ids], num_keys)
        numbers = np.zeros((len(pages), 3 + width), np.int32)
        numbers[:, 1] = 1
        numbers[:, 2] = self.spare_slot
        for idx, (row, ids) in enumerate(zip(rows, token_ids, strict=True)):
            numbers[idx, 0], numbers[idx, 1] = row.start, row.start + len(ids)
            if self.states:
                numbers[idx, 2] = self.states.slot_of(row)
            numbers[idx, 3 : 3 + len(ids)] = ids
        if self.states:
            self.states.stage(len(pages), width)
        self._committed = False
        return pinned(torch.from_numpy(np.hstack((numbers, pages))), self.cache.slots.device), num_keys

    def page_table(self, rows: Sequence[CacheRow], counts: Sequence[int], num_keys: int) -> NDArray[np.int32]:
        """The pages of the first ``num_keys`` tokens of each row, which stages ``counts[i]``, and of empty rows."""
        most = -(-num_keys // self.cache.page_size)
        self._place(rows, counts, most)
        return page_array(self._pages[0], (padded_rows(len(rows)), most), self.scratch_page)

    @property
    def spare_slot(self) -> int:
        """Where padding has its states."""
        return self.states.spare if self.states else 0

    def commit_paths(self, rows: Sequence[CacheRow], paths: Sequence[Sequence[int]]) -> None:
        """See :meth:`PagedRows.commit_paths`; states follow."""
        if self._committed:
            return
        super().commit_paths(rows, paths)
        if self.states:
            self.states.commit(rows, paths)

    def settled(self) -> None:
        """The tokens that were staged are true, or given up, as soon as the device has run: nothing is to commit."""
        self._committed = True
