"""Keys and values of past tokens. A forward stages them; ``commit`` makes them true; rollback is to commit less."""

import torch
from torch import Tensor


class KVCache:
    """Keys and values of every layer, one row for each sequence, addressed by absolute position.

    ``stage`` writes at any position at or past the committed length; what is not committed is overwritten by the
    next stage. ``lengths[row]`` is the number of committed tokens.
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
        shape = (num_layers, batch_size, num_kv_heads, max_len, head_dim)
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        self.max_len = max_len
        self.lengths = [0] * batch_size
        self._rows = torch.arange(batch_size, device=device).unsqueeze(1)

    def stage(
        self, layer_idx: int, k: Tensor, v: Tensor, positions: Tensor, kv_len: int
    ) -> tuple[Tensor, Tensor]:
        """Write ``k``, ``v`` [batch, kv_heads, num_tokens, head_dim] at ``positions`` [batch, num_tokens].

        Returns the layer's keys and values up to ``kv_len``, each [batch, kv_heads, kv_len, head_dim].
        """
        layer_k, layer_v = self.k[layer_idx], self.v[layer_idx]
        if len(self.lengths) == 1:
            start = kv_len - k.shape[2]
            layer_k[:, :, start:kv_len] = k
            layer_v[:, :, start:kv_len] = v
        else:
            layer_k[self._rows, :, positions] = k.transpose(1, 2)
            layer_v[self._rows, :, positions] = v.transpose(1, 2)
        return layer_k[:, :, :kv_len], layer_v[:, :, :kv_len]

    def commit(self, num_tokens: int, row: int = 0) -> None:
        """Make the next ``num_tokens`` staged tokens of ``row`` true."""
        self.lengths[row] += num_tokens
        assert self.lengths[row] <= self.max_len
