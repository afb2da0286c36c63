"""Keys and values of past tokens. A forward stages them; ``commit`` makes them true; rollback is to commit less."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashdraft.batch import ForwardBatch
from flashdraft.cache.dense_source import DenseSource, dense_sources, seen_masks
from flashdraft.cache.stored_layer import PageTable
from flashdraft.ops.attention import AttentionSpec, Mask
from flashdraft.ops.block_mask import BlockRule, CachedMask, fast_mask


@dataclass(frozen=True)
class KVShape:
    """What one layer keeps of a token: keys and values, [kv_heads, head_dim] each."""

    kv_heads: int
    head_dim: int
    window: int | None = None  # how many tokens a token sees, itself included; None: all before it
    shares: int | None = None  # the earlier layer whose keys and values it reads; it keeps none

    @property
    def size(self) -> int:
        """Numbers a token."""
        return 0 if self.shares is not None else 2 * self.kv_heads * self.head_dim


class LayerKV:
    """One layer's keys and values, each [rows, kv_heads, max_len, head_dim], addressed by absolute position."""

    token_dim = 2  # of k and v
    table: PageTable | None = None  # a row's token lies in the slot of its position

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
        return self.read(kv_len)

    def read(self, kv_len: int) -> tuple[Tensor, Tensor]:
        """Keys and values up to ``kv_len``, each [rows, kv_heads, kv_len, head_dim]."""
        return self.k[:, :, :kv_len], self.v[:, :, :kv_len]


class KVCache:
    """Keys and values of every layer, one row for each sequence.

    ``stage`` of a layer writes at any position at or past the committed length; what is not committed is
    overwritten by the next stage. ``lengths[row]`` is the number of committed tokens. A layer that shares another
    one's keys and values has the same place in ``layers`` as that one.
    """

    def __init__(
        self,
        shapes: Sequence[KVShape],
        batch_size: int,
        max_len: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self._own: list[LayerKV] = []
        self.layers: list[Any] = []
        sizes = [batch_size * max_len * shape.size for shape in shapes]
        # Layers of one shape lie at equal distances.
        storage, first = torch.zeros(sum(sizes), dtype=dtype, device=device), 0
        for shape, size in zip(shapes, sizes, strict=True):
            if shape.shares is None:
                part = storage.narrow(0, first, size)
                both = part.view(2, batch_size, shape.kv_heads, max_len, shape.head_dim)
                self._own.append(LayerKV(both[0], both[1]))
            self.layers.append(self._own[-1] if shape.shares is None else self.layers[shape.shares])
            first += size
        self.max_len = max_len
        self.lengths = [0] * batch_size

    def open(self, batch: ForwardBatch, specs: Sequence[AttentionSpec]) -> list[Any]:
        """See :class:`flashdraft.models.base.KVSource`."""
        mask = batch.tree.mask(batch.kv_len) if batch.tree else self._mask(batch.positions, batch.kv_len)
        return dense_sources(self.layers, batch, mask, specs)

    def open_blocks(
        self,
        positions: Tensor,
        kv_len: int,
        rules: Sequence[BlockRule],
        ends: Tensor | None = None,
        is_recorded: bool = False,
    ) -> list[Any]:
        """See :class:`flashdraft.cache.dense_source.BlockContext`."""
        masks = seen_masks(rules, positions, kv_len, ends, is_recorded)
        return [
            DenseSource(layer, positions, kv_len, mask)
            for layer, mask in zip(self.layers, masks, strict=True)
        ]

    def _mask(self, positions: Tensor, kv_len: int) -> Mask:
        if positions.numel() == 1:
            return None
        mask = CachedMask(positions, kv_len)
        return mask.dense() if len(self.lengths) == 1 else fast_mask(mask, positions.device)

    def commit_path(self, path: Sequence[int], row: int = 0) -> None:
        """Make one path of a staged tree true: staged token ``path[i]`` becomes number i. It ascends from 0, the root.

        A chain's path moves nothing.
        """
        if path[-1] != len(path) - 1:
            start = self.lengths[row]
            from_slots = start + torch.tensor(path, device=self._own[0].k.device)
            for layer in self._own:
                for stored in (layer.k, layer.v):
                    stored[row, :, start : start + len(path)] = stored[row].index_select(1, from_slots)
        self.commit(len(path), row)

    def commit(self, num_tokens: int, row: int = 0) -> None:
        """Make the next ``num_tokens`` staged tokens of ``row`` true."""
        self.lengths[row] += num_tokens
        assert self.lengths[row] <= self.max_len
