"""The rows of one step for hybrid models: keys and values gathered from pages, states in slots beside them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flashdraft.cache.paged_kv_cache import CacheRow, GatheredRows, PagedKVCache
from flashdraft.cache.state_cache import LayerState


class HybridRows(GatheredRows):
    """Both kinds of layers, arranged and committed as one. ``states``: by layer; several HybridRows may share them."""

    def __init__(self, cache: PagedKVCache, states: Mapping[int, LayerState]) -> None:
        super().__init__(cache)
        self.states = states
        self.records = False  # a state's step asks for lengths

    def arrange(self, rows: Sequence[CacheRow], counts: Sequence[int]) -> tuple[Tensor, int]:
        """See :meth:`GatheredRows.arrange`."""
        placed = super().arrange(rows, counts)
        slots = torch.tensor([row.slot or 0 for row in rows], device=self.cache.slots.device)
        for state in self.states.values():
            state.use(slots)
        attention = iter(self.layers)
        num_layers = len(self.layers) + len(self.states)
        self.layers = [
            self.states[i] if i in self.states else next(attention)  # type: ignore[misc]
            for i in range(num_layers)
        ]
        return placed

    def commit(self, rows: Sequence[CacheRow], counts: Sequence[int]) -> None:
        """See :meth:`GatheredRows.commit`. A row that comes past one of its snapshots' borders leaves a copy there."""
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

    def begin(self, slot: int, source: int | None) -> None:
        """A sequence starts in ``slot``: from a copy of the state in ``source``, or from none."""
        for state in self.states.values():
            if source is None:
                state.clear(slot)
            else:
                state.copy(source, slot)
