"""What a hybrid model remembers: keys and values of its attention layers, states of its gated delta layers."""

import torch

from flashdraft.cache.kv_cache import KVCache, LayerKV
from flashdraft.cache.state_cache import LayerState


class ModelCache(KVCache):
    """A KVCache for the attention layers with the other layers' states beside it, committed as one.

    ``states`` maps a layer's index to its state; the other layers, in order, have keys and values.
    """

    def __init__(
        self,
        states: dict[int, LayerState],
        num_layers: int,
        batch_size: int,
        num_kv_heads: int,
        max_len: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        num_attention = num_layers - len(states)
        super().__init__(num_attention, batch_size, num_kv_heads, max_len, head_dim, dtype, device)
        attention = iter(self.layers)
        self.states = states
        self.layers: list[LayerKV | LayerState] = [  # type: ignore[assignment]
            states[layer] if layer in states else next(attention) for layer in range(num_layers)
        ]

    def commit(self, num_tokens: int, row: int = 0) -> None:
        """Make the next ``num_tokens`` staged tokens of ``row`` true, in every layer."""
        super().commit(num_tokens, row)
        counts = [0] * len(self.lengths)
        counts[row] = num_tokens
        for state in self.states.values():
            state.commit(counts)

    def commit_step(self) -> None:
        """See :meth:`KVCache.commit_step`."""
        for state in self.states.values():
            state.commit_all()
