"""The reference: the target's PyTorch modules, over rows in pages."""

from collections.abc import Sequence
from typing import Any

import torch

from flashdraft.backends.base import Backend, Room, TargetStep, begin_state, padded, paged_storage
from flashdraft.batch import ForwardBatch
from flashdraft.cache.hybrid_rows import HybridRows
from flashdraft.cache.paged_kv_cache import CacheRow, PagedKVCache
from flashdraft.cache.paged_rows import PagedRows
from flashdraft.models.base import TargetModel
from flashdraft.native.target import NativeTarget


class EagerBackend(Backend):
    """Knows every target."""

    cuts_windows = True

    @classmethod
    def why_not(cls, target: TargetModel) -> str | None:
        """See :class:`Backend`."""
        return (
            "its modules were replaced by C++ when it was loaded"
            if isinstance(target, NativeTarget)
            else None
        )

    def new_storage(self, room: Room) -> tuple[PagedKVCache, Any]:
        """See :class:`Backend`."""
        return paged_storage(self.target, room, by_layer=True)

    def new_rows(self) -> PagedRows:
        """See :class:`Backend`."""
        return HybridRows(self.cache, self.states) if self.states else PagedRows(self.cache)

    def begin(self, rows: PagedRows, slot: int, source: int | None) -> None:
        """See :class:`Backend`."""
        begin_state(rows, slot, source)

    def prompt_step(
        self, rows: PagedRows, placed: Sequence[CacheRow], token_ids: Sequence[list[int]]
    ) -> TargetStep:
        """See :class:`Backend`."""
        batch = self._batch(rows, placed, token_ids)
        return TargetStep(self.target.forward(batch, rows, self.feature_layers), batch.token_ids.shape[1])

    def block_step(
        self,
        rows: PagedRows,
        placed: Sequence[CacheRow],
        token_ids: Sequence[list[int]],
        parents: Sequence[Sequence[int]] | None,
        with_head: bool,
    ) -> TargetStep:
        """See :class:`Backend`."""
        batch = self._batch(rows, placed, token_ids)
        if parents:
            batch = batch.as_trees(parents)
        width = batch.token_ids.shape[1]
        if not with_head:
            return TargetStep(self.target.forward(batch, rows, self.feature_layers), width)
        output, argmax = self.target.greedy(batch, rows, self.feature_layers)
        return TargetStep(output, width, None if argmax is None else argmax.flatten())

    def _batch(
        self, rows: PagedRows, placed: Sequence[CacheRow], token_ids: Sequence[list[int]]
    ) -> ForwardBatch:
        counts = [len(ids) for ids in token_ids]
        positions, kv_len = rows.arrange(placed, counts)
        ids = padded(token_ids, max(counts), len(placed), self.target.device)
        ends = torch.tensor([row.start + count for row, count in zip(placed, counts, strict=True)])
        return ForwardBatch(ids, positions, kv_len, ends=ends)
