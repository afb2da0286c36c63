"""Keys and values of past tokens. A forward stages them; ``commit`` makes them true; rollback is to commit less."""

import torch
from torch import Tensor

from flashdraft.errors import UsageError
from flashdraft.ops.attention import CAUSAL, FirstKeys, Mask
from flashdraft.ops.block_mask import CachedMask, fast_mask


class LayerKV:
    """One layer's keys and values, each [rows, kv_heads, max_len, head_dim], addressed by absolute position."""

    token_dim = 2  # of k and v

    def __init__(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v = k, v
        self._rows = torch.arange(k.shape[0], device=k.device).unsqueeze(1)

    def stage(self, k: Tensor, v: Tensor, positions: Tensor, kv_len: int) -> tuple[Tensor, Tensor]:
        """Write ``k``, ``v`` [rows, kv_heads, num_tokens, head_dim] at ``positions`` [rows, num_tokens].

        Returns keys and values up to ``kv_len``, each [rows, kv_heads, kv_len, head_dim].
        """
        if self.k.shape[0] == 1:
            start = kv_len - k.shape[2]
            self.k[:, :, start:kv_len] = k
            self.v[:, :, start:kv_len] = v
        else:
            self.k[self._rows, :, positions] = k.transpose(1, 2)
            self.v[self._rows, :, positions] = v.transpose(1, 2)
        return self.k[:, :, :kv_len], self.v[:, :, :kv_len]


class KVCache:
    """Keys and values of every layer, one row for each sequence.

    ``stage`` of a layer writes at any position at or past the committed length; what is not committed is
    overwritten by the next stage. ``lengths[row]`` is the number of committed tokens.
    """

    def __init__(
        self,
        num_layers: int,
        batch_size: int,
        num_kv_heads: int,
        max_len: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        shape = (num_layers, 2, batch_size, num_kv_heads, max_len, head_dim)
        storage = torch.zeros(shape, dtype=dtype, device=device)
        self.layers = [LayerKV(layer[0], layer[1]) for layer in storage]
        self.max_len = max_len
        self.lengths = [0] * batch_size

    def mask(self, positions: Tensor, kv_len: int) -> Mask:
        """What tokens at ``positions`` [rows, num_tokens] may see of the first ``kv_len`` slots."""
        if positions.numel() == 1:
            return None
        if positions.is_cuda and positions.shape[1] == 1:
            return FirstKeys(positions[:, 0] + 1)
        mask = CachedMask(positions, kv_len)
        return mask.dense() if len(self.lengths) == 1 else fast_mask(mask, positions.device)

    def commit(self, num_tokens: int, row: int = 0) -> None:
        """Make the next ``num_tokens`` staged tokens of ``row`` true."""
        self.lengths[row] += num_tokens
        assert self.lengths[row] <= self.max_len


class PrefillRows:
    """A few rows of a cache, filled from position 0 by whole prompts that see only themselves.

    Raises UsageError for a cache with states: padding behind a prompt would become part of them.
    """

    def __init__(self, cache: KVCache, rows: Tensor) -> None:
        if not all(isinstance(layer, LayerKV) for layer in cache.layers):
            raise UsageError(
                "the target has gated delta layers; expected attention layers only where many prompts are answered at"
                " once: make the answers with another engine and give them to flashdraft train as --answers"
            )
        self.layers = [_PrefillLayer(layer, rows) for layer in cache.layers]

    def mask(self, positions: Tensor, kv_len: int) -> Mask:  # noqa: ARG002 - the cache's interface
        """Causal: nothing was cached before."""
        return CAUSAL


class _PrefillLayer:
    def __init__(self, layer: LayerKV, rows: Tensor) -> None:
        self.layer, self.rows = layer, rows

    def stage(self, k: Tensor, v: Tensor, positions: Tensor, kv_len: int) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        self.layer.k[self.rows, :, :kv_len] = k
        self.layer.v[self.rows, :, :kv_len] = v
        return k, v
