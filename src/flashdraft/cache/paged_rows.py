"""The rows of one step over pages: nothing is copied, a table says in which pages each row's tokens lie.

Staged tokens are written where they would stay: behind a sequence's committed tokens its pages are its own, so that
rejected drafts are overwritten by what comes next. What a row stages beyond its pages (a tree takes more tokens than
its longest path, a draft may reach behind the answer's end) goes to spare pages, which hold nothing after the step.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
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
        self._pages: list[list[int]] = []  # of the rows of the step, spare ones included
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
        most, pages = -(-kv_len // size), array("i")
        self._place(rows, counts, most)
        for own in self._pages:
            pages.extend(own + [self.scratch_page] * (most - len(own)))
        table = PageTable(pages, most, size)
        for layer in self.layers:
            layer.table = table
        self._step, self._width = None, width
        self._starts = [row.start for row in rows]
        self._ends = [row.start + count for row, count in zip(rows, counts, strict=True)]
        positions = torch.tensor([[*range(row.start, row.start + width)] for row in rows])
        return positions.to(self.cache.device), kv_len

    @property
    def step(self) -> PagedStep:
        """The rows as they were arranged, for networks in PyTorch."""
        if self._step is None:
            table, device = self.layers[0].table, self.cache.device
            assert table is not None, "rows are arranged before a forward"
            pages = torch.tensor(table.pages, dtype=torch.long).view(-1, table.width).to(device)
            groups = row_groups(self._starts, self._ends, device, self._width)
            self._step = PagedStep(self.cache.layers, pages, table.page_size, groups)
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

        Rows and kv_len are powers of two. Returns each row's pages [rows, num_pages] too, for :meth:`recorded_step`.
        """
        num_rows = power_of_two(len(rows))
        kv_len = power_of_two(max(*(row.start + width for row in rows), _LEAST_BOUND))
        most = -(-kv_len // self.cache.page_size)
        self._place(rows, counts, most)
        every = [own + [self.scratch_page] * (most - len(own)) for own in self._pages]
        every += [[self.scratch_page] * most] * (num_rows - len(rows))
        starts = [row.start for row in rows] + [0] * (num_rows - len(rows))
        positions = torch.tensor([[*range(start, start + width)] for start in starts])
        return positions.to(self.cache.device), kv_len, torch.tensor(every, device=self.cache.device)

    def recorded_step(self, pages: Tensor, kv_len: int) -> PagedStep:
        """Rows of a recorded forward: ``pages`` is one of its inputs."""
        return PagedStep(self.cache.layers, pages, self.cache.page_size, [RowGroup(None, kv_len)])

    @property
    def scratch_page(self) -> int:
        """The last spare page: it takes what is padding, and nothing reads it."""
        return self.cache.num_slots // self.cache.page_size - 1

    def _place(self, rows: Sequence[CacheRow], counts: Sequence[int], most: int) -> None:
        """The pages of ``rows``, ``most`` at most, and spare ones for what they stage beyond them."""
        size, first = self.cache.page_size, self.cache.num_pages
        self._pages = []
        for row, count in zip(rows, counts, strict=True):
            missing = max(-(-(row.start + count) // size) - len(row.pages), 0)
            self._pages.append([*row.pages[:most], *range(first, first + missing)])
            first += missing
        if first > self.scratch_page:
            raise EngineError(
                f"a step of {sum(counts)} tokens in {len(rows)} rows stages more than"
                f" {self.scratch_page - self.cache.num_pages} spare pages of {size} tokens hold: lower draft_tree"
            )

    def commit(self, rows: Sequence[CacheRow], counts: Sequence[int]) -> None:
        """Nothing to do: what is true of a chain lies in its row's pages already."""

    def commit_paths(self, rows: Sequence[CacheRow], paths: Sequence[Sequence[int]]) -> None:
        """Make one path of a staged tree true in each of ``rows``, as they were arranged.

        Staged token ``paths[i][k]`` becomes number k; a path ascends from 0, the root. A chain's moves nothing.
        """
        taken: list[int] = []
        places: list[int] = []
        for idx, (row, path) in enumerate(zip(rows, paths, strict=True)):
            if path[-1] != len(path) - 1:
                staged = self.cache.slot_mapping(self._pages[idx], row.start, row.start + path[-1] + 1)
                taken += [staged[place] for number, place in enumerate(path) if place != number]
                places += [staged[number] for number, place in enumerate(path) if place != number]
        if taken:
            self.cache.move(taken, places)
        self.commit(rows, [len(path) for path in paths])


class RecordedRows(PagedRows):
    """Rows whose forwards are recorded, on CUDA."""

    records = True
