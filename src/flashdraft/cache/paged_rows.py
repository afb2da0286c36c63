"""Rows of one step for a forward that reads keys and values in their pages (native/decoder.h): nothing is gathered.

Staged tokens are written where they would stay: behind a sequence's committed tokens its pages are its own, so that
rejected drafts are overwritten by what comes next. What a row stages beyond its pages (a tree takes more tokens than
its longest path, a draft may reach behind the answer's end) goes to spare pages, which hold nothing after the step.
"""

from array import array
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flashdraft.cache.paged_kv_cache import CacheRow, GatheredRows, PagedKVCache
from flashdraft.errors import EngineError
from flashdraft.native.decoder import PageTable


@dataclass
class PagedLayer:
    """One layer's keys and values, each [1, num_slots, kv_heads, head_dim], and where rows find theirs."""

    k: Tensor
    v: Tensor
    table: PageTable | None = None  # of the rows of the step
    token_dim: int = 1

    def stage(self, k: Tensor, v: Tensor, positions: Tensor, kv_len: int) -> tuple[Tensor, Tensor]:
        """Write ``k``, ``v`` [rows, kv_heads, num_tokens, head_dim] at ``positions``; give all to ``kv_len``.

        For networks in PyTorch, which it gathers for; the C++ part does the same without a copy.
        """
        slots = self._slots().gather(1, positions)
        self.k[0, slots], self.v[0, slots] = k.transpose(1, 2), v.transpose(1, 2)
        return self.read(kv_len)

    def read(self, kv_len: int) -> tuple[Tensor, Tensor]:
        """See :class:`flashdraft.cache.dense_source.DenseLayer`."""
        seen = self._slots()[:, :kv_len]
        return self.k[0, seen].transpose(1, 2), self.v[0, seen].transpose(1, 2)

    def _slots(self) -> Tensor:
        """Where each row's tokens lie, [rows, width * page_size]."""
        assert self.table is not None
        pages = torch.tensor(self.table.pages).view(-1, self.table.width, 1)
        return (pages * self.table.page_size + torch.arange(self.table.page_size)).flatten(1)


class PagedRows(GatheredRows):
    """Rows that are not gathered: a table says in which pages each row's tokens lie."""

    def __init__(self, cache: PagedKVCache) -> None:
        super().__init__(cache)
        slots = cache.slots.unsqueeze(0)
        self.layers = [
            PagedLayer(slots[:, :, idx, 0], slots[:, :, idx, 1])  # type: ignore[misc]
            for idx in range(slots.shape[2])
        ]
        self._pages: list[list[int]] = []  # of the rows of the step, spare ones included

    def seat(self, keys: Sequence[Hashable]) -> list[int]:
        """The order in which they are given: no row lies anywhere."""
        return list(range(len(keys)))

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
        return torch.tensor([[*range(row.start, row.start + width)] for row in rows]), kv_len

    @property
    def scratch_page(self) -> int:
        """The last spare page: it takes what is padding, and nothing reads it."""
        return len(self.cache.slots) // self.cache.page_size - 1

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
        """Make one path of a staged tree true in each of ``rows``: see :meth:`GatheredRows.commit_paths`."""
        taken: list[int] = []
        places: list[int] = []
        for idx, (row, path) in enumerate(zip(rows, paths, strict=True)):
            if path[-1] != len(path) - 1:
                staged = self.cache.slot_mapping(self._pages[idx], row.start, row.start + path[-1] + 1)
                taken += [staged[place] for number, place in enumerate(path) if place != number]
                places += [staged[number] for number, place in enumerate(path) if place != number]
        if taken:
            from_slots = torch.tensor(taken, device=self.cache.slots.device)
            self.cache.write(places, self.cache.slots.index_select(0, from_slots))


def new_rows(cache: PagedKVCache, reads_pages: bool) -> GatheredRows:
    """Rows for the forwards of a model that reads pages where they lie, or of one that does not."""
    return PagedRows(cache) if reads_pages else GatheredRows(cache)
