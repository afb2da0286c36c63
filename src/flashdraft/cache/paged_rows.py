"""Rows of one step for a forward that reads keys and values in their pages (native/decoder.h): nothing is gathered.

Staged tokens are written where they would stay: behind a sequence's committed tokens its pages are its own, so that
rejected drafts are overwritten by what comes next. What a row stages beyond its pages (a tree takes more tokens than
its longest path, a draft may reach behind the answer's end) goes to spare pages, which hold nothing after the step.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flashdraft.cache.paged_kv_cache import CacheRow, GatheredRows, PagedKVCache, slots_of, tokens_of
from flashdraft.errors import EngineError


@dataclass
class PagedLayer:
    """One layer's keys and values, each [1, num_slots, kv_heads, head_dim], and where rows find theirs."""

    k: Tensor
    v: Tensor
    table: Tensor | None = None  # int32 [rows, kv_len]: the slot of each row's tokens in the step
    token_dim: int = 1

    def stage(self, k: Tensor, v: Tensor, positions: Tensor, kv_len: int) -> tuple[Tensor, Tensor]:
        """Write ``k``, ``v`` [rows, kv_heads, num_tokens, head_dim] at ``positions``; give all to ``kv_len``.

        For networks in PyTorch, which it gathers for; the C++ part does the same without a copy.
        """
        assert self.table is not None
        slots, seen = self.table.gather(1, positions).long(), self.table[:, :kv_len].long()
        self.k[0, slots], self.v[0, slots] = k.transpose(1, 2), v.transpose(1, 2)
        return self.k[0, seen].transpose(1, 2), self.v[0, seen].transpose(1, 2)


class PagedRows(GatheredRows):
    """Rows that are not gathered: a table says where each row's tokens lie."""

    def __init__(self, cache: PagedKVCache) -> None:
        super().__init__(cache)
        slots = cache.slots.unsqueeze(0)
        self.layers = [
            PagedLayer(slots[:, :, idx, 0], slots[:, :, idx, 1])  # type: ignore[misc]
            for idx in range(slots.shape[2])
        ]
        self._within = torch.arange(cache.page_size, dtype=torch.int32)
        self._table = torch.empty(0, 0, dtype=torch.int32)

    def seat(self, keys: Sequence[Hashable]) -> list[int]:
        """The order in which they are given: no row lies anywhere."""
        return list(range(len(keys)))

    def arrange(self, rows: Sequence[CacheRow], counts: Sequence[int]) -> tuple[Tensor, int]:
        """The next forward runs ``counts[i]`` tokens of ``rows[i]``, padded to one width.

        Returns their positions [rows, width] and kv_len. Raises EngineError for more than the spare pages hold.
        """
        width, size = max(counts), self.cache.page_size
        kv_len = max(row.start for row in rows) + width
        # The last spare page takes what is padding, and nothing reads it.
        *spare_pages, scratch = range(self.cache.num_pages, len(self.cache.slots) // size)
        spare = iter(spare_pages)
        pages = []
        try:
            for row, count in zip(rows, counts, strict=True):
                missing = -(-(row.start + count) // size) - len(row.pages)
                pages.append([*row.pages, *(next(spare) for _ in range(missing))])
        except RuntimeError:  # of the generator, where `spare` ended
            raise EngineError(
                f"a step of {sum(counts)} tokens in {len(rows)} rows stages more than {len(spare_pages)} spare"
                f" pages of {size} tokens hold: lower draft_tree"
            ) from None
        most = -(-kv_len // size)
        table = torch.tensor([own[:most] + [scratch] * (most - len(own)) for own in pages], dtype=torch.int32)
        self._table = (table.unsqueeze(-1) * size + self._within).flatten(1)
        for layer in self.layers:
            layer.table = self._table
        starts = torch.tensor([row.start for row in rows])
        return starts.unsqueeze(1) + torch.arange(width), kv_len

    def commit(self, rows: Sequence[CacheRow], counts: Sequence[int]) -> None:
        """Nothing to do: what is true of a chain lies in its row's pages already."""

    def commit_paths(self, rows: Sequence[CacheRow], paths: Sequence[Sequence[int]]) -> None:
        """Make one path of a staged tree true in each of ``rows``: see :meth:`GatheredRows.commit_paths`."""
        taken: list[int] = []
        places: list[int] = []
        for idx, (row, path) in enumerate(zip(rows, paths, strict=True)):
            if path[-1] != len(path) - 1:
                taken += self._table[idx, [row.start + place for place in path]].tolist()
                places += self._table[idx, row.start : row.start + len(path)].tolist()
        if taken:
            self.cache.write(places, self.cache.slots[taken])

    def append(
        self, rows: Sequence[CacheRow], counts: Sequence[int], pairs: Sequence[tuple[Tensor, Tensor]]
    ) -> None:
        """Make ``counts[i]`` more tokens of each row true: see :meth:`GatheredRows.append`."""
        self.cache.write(slots_of(self.cache, rows, counts), tokens_of(pairs))


def new_rows(cache: PagedKVCache, reads_pages: bool) -> GatheredRows:
    """Rows for the forwards of a model that reads pages where they lie, or of one that does not."""
    return PagedRows(cache) if reads_pages else GatheredRows(cache)
