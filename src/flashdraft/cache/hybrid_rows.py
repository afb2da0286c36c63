"""The rows of one step for hybrid models: keys and values in pages, states in slots beside them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flashdraft.batch import ForwardBatch
from flashdraft.cache.paged_kv_cache import CacheRow, PagedKVCache
from flashdraft.cache.paged_rows import PagedRows
from flashdraft.cache.state_cache import LayerState
from flashdraft.ops.attention import AttentionSpec


class HybridRows(PagedRows):
    """Both kinds of layers, arranged and committed as one. ``states``: by layer; several HybridRows may share them."""

    def __init__(self, cache: PagedKVCache, states: Mapping[int, LayerState]) -> None:
        super().__init__(cache)
        self.states = states

    def arrange(self, rows: Sequence[CacheRow], counts: Sequence[int]) -> tuple[Tensor, int]:
        """See :meth:`PagedRows.arrange`."""
        placed = super().arrange(rows, counts)
        slots = torch.tensor([row.slot or 0 for row in rows], device=self.cache.device)
        for state in self.states.values():
            state.use(slots)
        return placed

    def open(self, batch: ForwardBatch, specs: Sequence[AttentionSpec]) -> list[Any]:
        """See :class:`flashdraft.models.base.KVSource`."""
        attend = super().open(batch, [spec for idx, spec in enumerate(specs) if idx not in self.states])
        attention = iter(attend)
        for state in self.states.values():
            state.follow(batch.tree)
        return [self.states[idx] if idx in self.states else next(attention) for idx in range(len(specs))]

    def commit(self, rows: Sequence[CacheRow], counts: Sequence[int]) -> None:
        """See :meth:`PagedRows.commit`. A row that comes past one of its snapshots' borders leaves a copy there."""
        super().commit(rows, counts)
        done = [0] * len(rows)
        while done != list(counts):
            parts = []
            for row, start, count in zip(rows, done, counts, strict=True):
                ahead = [border - row.start for border, _ in row.snapshots if border > row.start + start]
                parts.append(min([count, *ahead]) - start)
            for state in self.states.values():
                state.commit(parts)
            done = [start + part for start, part in zip(done, parts, strict=True)]
            for row, end, part in zip(rows, done, parts, strict=True):
                for border, slot in row.snapshots:
                    if part and border == row.start + end:
                        self.begin(slot, row.slot)

    def commit_paths(self, rows: Sequence[CacheRow], paths: Sequence[Sequence[int]]) -> None:
        """See :meth:`PagedRows.commit_paths`; the states follow."""
        if any(path[-1] != len(path) - 1 for path in paths):
            for state in self.states.values():
                state.gather_paths(paths)
        super().commit_paths(rows, paths)

    def begin(self, slot: int, source: int | None) -> None:
        """A sequence starts in ``slot``: from a copy of the state in ``source``, or from none."""
        for state in self.states.values():
            if source is None:
                state.clear(slot)
            else:
                state.copy(source, slot)
