"""What a hybrid model remembers: keys and values of its attention layers, states of its gated delta layers."""

from collections.abc import Sequence
from typing import Any

import torch

from flashdraft.batch import ForwardBatch
from flashdraft.cache.kv_cache import KVCache, KVShape
from flashdraft.cache.state_cache import LayerState
from flashdraft.ops.attention import AttentionSpec


class HybridCache(KVCache):
    """A KVCache for the attention layers with the other layers' states beside it, committed as one.

    ``states`` maps a layer's index to its state; the other layers, in order, have keys and values.
    """

    def __init__(
        self,
        states: dict[int, LayerState],
        shapes: Sequence[KVShape],
        batch_size: int,
        max_len: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__(shapes, batch_size, max_len, dtype, device)
        self.states = states

    def open(self, batch: ForwardBatch, specs: Sequence[AttentionSpec]) -> list[Any]:
        """See :class:`flashdraft.models.base.KVSource`."""
        attend = super().open(batch, [spec for idx, spec in enumerate(specs) if idx not in self.states])
        attention = iter(attend)
        for state in self.states.values():
            state.follow(batch.tree)
        return [self.states[idx] if idx in self.states else next(attention) for idx in range(len(specs))]

    def commit_path(self, path: Sequence[int], row: int = 0) -> None:
        """See :meth:`KVCache.commit_path`; the states follow."""
        if path[-1] != len(path) - 1:
            paths: list[Sequence[int]] = [()] * len(self.lengths)
            paths[row] = path
            for state in self.states.values():
                state.gather_paths(paths)
        super().commit_path(path, row)

    def commit(self, num_tokens: int, row: int = 0) -> None:
        """Make the next ``num_tokens`` staged tokens of ``row`` true, in every layer."""
        super().commit(num_tokens, row)
        counts = [0] * len(self.lengths)
        counts[row] = num_tokens
        for state in self.states.values():
            state.commit(counts)
