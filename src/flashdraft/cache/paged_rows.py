"""The rows of one step over pages: nothing is copied, a table says in which pages each row's tokens lie.

Staged tokens are written where they would stay: behind a sequence's committed tokens its pages are its own, so that
rejected drafts are overwritten by what comes next. What a row stages beyond its pages (a tree takes more tokens than
its longest path, a draft may reach behind the answer's end) goes to spare pages, which hold nothing after the step.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from flashdraft.batch import ForwardBatch
from flashdraft.cache.paged_kv_cache import CacheRow, PagedKVCache, power_of_two
from flashdraft.cache.paged_step import PagedStep, RowGroup, row_groups
from flashdraft.cache.stored_layer import PageTable
from flashdraft.errors import EngineError
from flashdraft.ops.attention import AttentionSpec
from flashdraft.ops.block_mask import BlockRule
from flashdraft.ops.recorded import Recorded

_LEAST_BOUND = 128  # tokens of a recorded step's longest row


@dataclass
class PagedLayer:
    """One layer's keys and values for the C++ part, each [1, num_slots, kv_heads, head_dim], and each row's pages."""

    k: Tensor
    v: Tensor
    table: PageTable | None = None  # of the rows of the step
    token_dim: int = 1


class PagedRows:
    """Sequences of one step: a KVSource."""

    records = False  # whether forwards over the rows are recorded

    def __init__(self, cache: PagedKVCache) -> None:
        self.cache = cache
        self.layers = [PagedLayer(k.unsqueeze(0), v.unsqueeze(0)) for k, v in cache.layers]
        self.recorded = Recorded()  # what is recorded for these rows
        self._pages: list[list[list[int]]] = []  # of each storage and row of the step, spare ones included
        self._tables: list[PageTable] = []  # of each storage
        self._step: PagedStep | None = None
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._width = 0

    def arrange(self, rows: Sequence[CacheRow], counts: Sequence[int]) -> tuple[Tensor, int]:
        """The next forward runs ``counts[i]`` tokens of ``rows[i]``, padded to one width.

        Returns their positions [rows, width] and kv_len. Raises EngineError for more than the spare pages hold.
        """
        width, size = max(counts), self.cache.page_size
        kv_len = max(row.start for row in rows) + width
        most = -(-kv_len // size)
        self._place(rows, counts, most)
        self._tables = [
            PageTable(array("i", chain.from_iterable(pages)), most, size) for pages in self._filled(most)
        ]
        for layer, where in zip(self.layers, self.cache.storage_of, strict=True):
            layer.table = self._tables[where]
        self._step, self._width = None, width
        self._starts = [row.start for row in rows]
        self._ends = [row.start + count for row, count in zip(rows, counts, strict=True)]
        positions = torch.tensor([[*range(row.start, row.start + width)] for row in rows])
        return positions.to(self.cache.device), kv_len

    @property
    def step(self) -> PagedStep:
        """The rows as they were arranged, for networks in PyTorch."""
        if self._step is None:
            assert self._tables, "rows are arranged before a forward"
            device, num_rows = self.cache.device, len(self._starts)
            tables = [
                torch.tensor(table.pages, dtype=torch.long).view(num_rows, -1) for table in self._tables
            ]
            groups = row_groups(self._starts, self._ends, device, self._width)
            self._step = PagedStep(self.cache, torch.stack(tables).to(device), groups)
        return self._step

    def open(self, batch: ForwardBatch, specs: Sequence[AttentionSpec]) -> list[Any]:
        """See :class:`flashdraft.models.base.KVSource`."""
        return self.step.open(batch, specs)

    def open_blocks(
        self,
        positions: Tensor,
        kv_len: int,
        rules: Sequence[BlockRule],
        ends: Tensor | None = None,
        is_recorded: bool = False,
    ) -> list[Any]:
        """See :class:`flashdraft.cache.dense_source.BlockContext`."""
        return self.step.open_blocks(positions, kv_len, rules, ends, is_recorded)

    def arrange_padded(
        self, rows: Sequence[CacheRow], counts: Sequence[int], width: int
    ) -> tuple[Tensor, int, Tensor]:
        """As :meth:`arrange`, for a recorded forward: padded to ``width``, with empty rows behind ``rows``.

        Rows and kv_len are powers of two. Returns each row's pages [storages, rows, num_pages] too, for
        :meth:`recorded_step`.
        """
        num_rows = power_of_two(len(rows))
        kv_len = power_of_two(max(*(row.start + width for row in rows), _LEAST_BOUND))
        most = -(-kv_len // self.cache.page_size)
        self._place(rows, counts, most)
        every = self._filled(most)
        for pages, storage in zip(every, self.cache.storages, strict=True):
            pages += [[storage.scratch_page] * most] * (num_rows - len(rows))
        starts = [row.start for row in rows] + [0] * (num_rows - len(rows))
        positions = torch.tensor([[*range(start, start + width)] for start in starts])
        return positions.to(self.cache.device), kv_len, torch.tensor(every, device=self.cache.device)

    def recorded_step(self, pages: Tensor, kv_len: int) -> PagedStep:
        """Rows of a recorded forward: ``pages`` is one of its inputs."""
        return PagedStep(self.cache, pages, [RowGroup(None, kv_len)])

    @property
    def scratch_page(self) -> int:
        """Of the layers without windows of their own, see PageStorage."""
        return self.cache.storages[0].scratch_page

    def _place(self, rows: Sequence[CacheRow], counts: Sequence[int], most: int) -> None:
        """The pages of ``rows``, ``most`` at most, and spare ones for what they stage beyond them."""
        size = self.cache.page_size
        self._pages = []
        for where, storage in enumerate(self.cache.storages):
            placed, first = [], storage.num_pages
            for row, count in zip(rows, counts, strict=True):
                pages = row.pages_in(where, storage)
                missing = max(-(-(row.start + count) // size) - len(pages), 0)
                placed.append([*pages[:most], *range(first, first + missing)])
                first += missing
            if first > storage.scratch_page:
                raise EngineError(
                    f"a step of {sum(counts)} tokens in {len(rows)} rows stages more than"
                    f" {storage.scratch_page - storage.num_pages} spare pages of {size} tokens hold: lower draft_tree"
                )
            self._pages.append(placed)

    def _filled(self, most: int) -> list[list[list[int]]]:
        """Of each storage the ``most`` pages of each row, in which padding lies behind its own."""
        return [
            [own + [storage.scratch_page] * (most - len(own)) for own in placed]
            for placed, storage in zip(self._pages, self.cache.storages, strict=True)
        ]

    def commit(self, rows: Sequence[CacheRow], counts: Sequence[int]) -> None:
        """Nothing to do: what is true of a chain lies in its row's pages already."""

    def commit_paths(self, rows: Sequence[CacheRow], paths: Sequence[Sequence[int]]) -> None:
        """Make one path of a staged tree true in each of ``rows``, as they were arranged.

        Staged token ``paths[i][k]`` becomes number k; a path ascends from 0, the root. A chain's moves nothing.
        """
        for storage, pages in zip(self.cache.storages, self._pages, strict=True):
            taken: list[int] = []
            places: list[int] = []
            for own, row, path in zip(pages, rows, paths, strict=True):
                if path[-1] != len(path) - 1:
                    staged = self.cache.slot_mapping(own, row.start, row.start + path[-1] + 1)
                    taken += [staged[place] for number, place in enumerate(path) if place != number]
                    places += [staged[number] for number, place in enumerate(path) if place != number]
            if taken:
                storage.move(taken, places)
        self.commit(rows, [len(path) for path in paths])


class RecordedRows(PagedRows):
    """Rows whose forwards are recorded, on CUDA."""

    records = True
