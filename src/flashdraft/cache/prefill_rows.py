"""A few rows of a cache, filled from position 0 by whole prompts that see only themselves."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from flashdraft.batch import ForwardBatch
from flashdraft.cache.dense_source import dense_sources
from flashdraft.cache.kv_cache import KVCache, LayerKV
from flashdraft.cache.state_cache import LayerState
from flashdraft.ops.attention import CAUSAL, AttentionSpec


class PrefillRows:
    """The source of one forward over padded prompts. ``lengths``: tokens of each without the padding."""

    def __init__(self, cache: KVCache, rows: Tensor, lengths: Sequence[int]) -> None:
        self.layers: list[Any] = [
            _PrefillLayer(layer, rows) if isinstance(layer, LayerKV) else layer for layer in cache.layers
        ]
        self._lengths = lengths
        self._states = [layer for layer in self.layers if isinstance(layer, LayerState)]
        for state in self._states:
            state.use(rows)

    def open(self, batch: ForwardBatch, specs: Sequence[AttentionSpec]) -> list[Any]:
        """See :class:`flashdraft.models.base.KVSource`. Causal: nothing was cached before."""
        return dense_sources(self.layers, batch, CAUSAL, specs)

    def commit(self) -> None:
        """The prompts are true and their padding is not: a key behind a row's end is never seen, a state is."""
        for state in self._states:
            state.commit(self._lengths)
            state.use(None)


class _PrefillLayer:
    def __init__(self, layer: LayerKV, rows: Tensor) -> None:
        self.layer, self.rows = layer, rows

    def stage(self, k: Tensor, v: Tensor, positions: Tensor, kv_len: int) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        self.layer.k[self.rows, :, :kv_len] = k
        self.layer.v[self.rows, :, :kv_len] = v
        return k, v
