"""The reference as CUDA graphs: rows, widths and lengths come in powers of two, one recording for each such shape."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from flashdraft.backends.base import TargetStep, padded
from flashdraft.backends.eager import EagerBackend
from flashdraft.batch import ForwardBatch
from flashdraft.cache.paged_kv_cache import CacheRow, GatheredRows, StagedAt, power_of_two
from flashdraft.models.base import TargetModel
from flashdraft.ops.attention import FirstKeys
from flashdraft.ops.block_mask import CachedMask


class GraphBackend(EagerBackend):
    """Records what EagerBackend runs."""

    is_recorded = True

    @classmethod
    def why_not(cls, target: TargetModel) -> str | None:
        """See :class:`flashdraft.backends.base.Backend`."""
        if target.device.type != "cuda":
            return f"the model is on {target.device}"
        return None if target.is_recordable else "its forward asks the host, or has rows that differ by layer"

    def prompt_step(
        self, rows: GatheredRows, placed: Sequence[CacheRow], token_ids: Sequence[list[int]]
    ) -> TargetStep:
        """See :class:`flashdraft.backends.base.Backend`."""
        return self._replay(rows, placed, token_ids, None, with_head=False)

    def block_step(
        self,
        rows: GatheredRows,
        placed: Sequence[CacheRow],
        token_ids: Sequence[list[int]],
        parents: Sequence[Sequence[int]] | None,
        with_head: bool,  # noqa: ARG002 - a recording has the head of every slot
    ) -> TargetStep:
        """See :class:`flashdraft.backends.base.Backend`."""
        return self._replay(rows, placed, token_ids, parents, with_head=True)

    def _replay(
        self,
        rows: GatheredRows,
        placed: Sequence[CacheRow],
        token_ids: Sequence[list[int]],
        parents: Sequence[Sequence[int]] | None,
        with_head: bool,
    ) -> TargetStep:
        """One recording for all steps of as many rows, this width and about this context."""
        width = power_of_two(max(len(ids) for ids in token_ids))
        positions, kv_len = rows.arrange_padded(placed, width)
        ids = padded(token_ids, width, len(positions), self.target.device)
        batch = ForwardBatch(ids, positions, kv_len)
        if parents:
            batch = batch.as_trees([*parents, *([[]] * (len(positions) - len(parents)))])
        inputs = [batch.token_ids, batch.positions, batch.slots]
        if width > 1:
            inputs.append(batch.tree.mask(kv_len) if batch.tree else CachedMask(positions, kv_len).dense())
        layers = rows.layers

        def work(ids: Tensor, positions: Tensor, slots: Tensor, mask: Tensor | None = None) -> Any:
            seen = FirstKeys(positions[:, 0] + 1) if mask is None else mask
            source = StagedAt(layers, slots, seen)
            output = self.target.forward(ForwardBatch(ids, positions, kv_len), source, self.feature_layers)
            return output, self.target.argmax(output.hidden).flatten() if with_head else None

        output, argmax = rows.recorded((*positions.shape, kv_len), work, inputs)
        if output.features is not None:  # they may wait for a draft, and the next replay overwrites them
            output = replace(output, features=output.features.clone())
        return TargetStep(output, width, argmax)
