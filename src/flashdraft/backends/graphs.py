"""The reference as CUDA graphs: rows, widths and lengths come in powers of two, one recording for each such shape."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flashdraft.backends.base import TargetStep, padded
from flashdraft.backends.eager import EagerBackend
from flashdraft.batch import ForwardBatch, TreeSlots
from flashdraft.cache.paged_kv_cache import CacheRow, power_of_two
from flashdraft.cache.paged_rows import PagedRows, RecordedRows
from flashdraft.models.base import TargetModel
from flashdraft.models.mlp import has_experts


class GraphBackend(EagerBackend):
    """Records what EagerBackend runs."""

    is_recorded = True

    @classmethod
    def why_not(cls, target: TargetModel) -> str | None:
        """See :class:`flashdraft.backends.base.Backend`."""
        if target.device.type != "cuda":
            return f"the model is on {target.device}"
        return super().why_not(target) or why_unrecordable(target)

    def new_rows(self) -> PagedRows:
        """See :class:`flashdraft.backends.base.Backend`."""
        return RecordedRows(self.cache)

    def prompt_step(
        self, rows: PagedRows, placed: Sequence[CacheRow], token_ids: Sequence[list[int]]
    ) -> TargetStep:
        """See :class:`flashdraft.backends.base.Backend`."""
        return self._replay(rows, placed, token_ids, None, with_head=False)

    def block_step(
        self,
        rows: PagedRows,
        placed: Sequence[CacheRow],
        token_ids: Sequence[list[int]],
        parents: Sequence[Sequence[int]] | None,
        with_head: bool,  # noqa: ARG002 - a recording has the head of every slot
    ) -> TargetStep:
        """See :class:`flashdraft.backends.base.Backend`."""
        return self._replay(rows, placed, token_ids, parents, with_head=True)

    def _replay(
        self,
        rows: PagedRows,
        placed: Sequence[CacheRow],
        token_ids: Sequence[list[int]],
        parents: Sequence[Sequence[int]] | None,
        with_head: bool,
    ) -> TargetStep:
        """One recording for all steps of as many rows, this width and about this context."""
        width = power_of_two(max(len(ids) for ids in token_ids))
        positions, kv_len, pages = rows.arrange_padded(placed, [len(ids) for ids in token_ids], width)
        batch = ForwardBatch(padded(token_ids, width, len(positions), self.target.device), positions, kv_len)
        if parents:
            batch = batch.as_trees([*parents, *([[]] * (len(positions) - len(parents)))])
        inputs = [pages, batch.token_ids, batch.positions]
        if batch.tree:
            inputs += [batch.tree.slots, _deepened(batch.tree.paths)]

        def work(pages: Tensor, ids: Tensor, positions: Tensor, *tree: Tensor) -> Any:
            batch = ForwardBatch(ids, positions, kv_len, TreeSlots(*tree) if tree else None)
            output = self.target.forward(batch, rows.recorded_step(pages, kv_len), self.feature_layers)
            return output, self.target.argmax(output.hidden).flatten() if with_head else None

        key = tuple(size for tensor in inputs for size in tensor.shape)
        output, argmax = rows.recorded(key, work, inputs)
        if output.features is not None:  # they may wait for a draft, and the next replay overwrites them
            output = replace(output, features=output.features.clone())
        return TargetStep(output, width, argmax)


def why_unrecordable(target: TargetModel) -> str | None:
    """Why a forward of ``target`` is not the same kernels whatever its inputs hold, or None."""
    if has_experts(target):
        return "its experts are chosen on the host"
    if len(target.kv_shapes()) < len(target.specs):
        return "it has layers that keep states, which ask for lengths"
    return None


def _deepened(paths: Tensor) -> Tensor:
    """Paths [rows, num_tokens, depth] that go on at the token itself, to a depth that is a power of two."""
    more = power_of_two(paths.shape[-1]) - paths.shape[-1]
    return torch.cat((paths, paths[..., -1:].expand(-1, -1, more)), dim=-1)
