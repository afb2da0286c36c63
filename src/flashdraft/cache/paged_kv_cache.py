"""Keys and values in pages, and the rows of one step gathered from them.

The pages are the truth: what is shared, kept after a request and found again. Attention in plain PyTorch wants
each sequence's keys and values in one piece, so its steps work on gathered rows (the C++ part reads pages where they
lie: paged_rows.py). A forward stages in the rows, ``commit`` copies what is true to the pages, all layers at once.
Padding and rejected drafts never reach a page.
Rows are kept between steps; pages are copied only for a sequence that joins the rows. On CUDA a forward can be
recorded: then rows, widths and lengths come in powers of two, so that few recordings serve all steps.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashdraft import large_pages
from flashdraft.batch import ForwardBatch
from flashdraft.cache.dense_source import dense_sources
from flashdraft.native.decoder import PageTable
from flashdraft.ops.attention import AttentionSpec, FirstKeys, Mask
from flashdraft.ops.block_mask import CachedMask
from flashdraft.ops.recorded import Recorded

_LEN_STEP = 128  # rows grow by whole steps of this many tokens


def power_of_two(number: int) -> int:
    """The least one that is not below ``number``, 1 or more."""
    return 1 << (number - 1).bit_length()


def whole_steps(num_tokens: int) -> int:
    """As many tokens as rows that hold ``num_tokens`` have room for."""
    return -(-num_tokens // _LEN_STEP) * _LEN_STEP


class PagedKVCache:
    """Storage of all pages, [num_pages * page_size, num_layers, 2 (k, v), kv_heads, head_dim].

    ``num_spare``: tokens that a step may stage beyond its rows' pages, in pages behind all others. ``by_layer``: a
    layer's keys lie in one piece, and its values, as kernels on a GPU like it; else a token's, as copies do.
    """

    def __init__(
        self,
        num_layers: int,
        num_pages: int,
        page_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
        num_spare: int = 0,
        by_layer: bool = False,
    ) -> None:
        num_spare_pages = -(-num_spare // page_size) + bool(num_spare)  # one for padding
        num_slots = (num_pages + num_spare_pages) * page_size
        shape = (num_slots, num_layers, 2, num_kv_heads, head_dim)
        if by_layer:
            layers = torch.empty(*shape[1:3], num_slots, *shape[3:], dtype=dtype, device=device)
            self.slots = layers.permute(2, 0, 1, 3, 4)
        elif torch.device(device).type == "cpu":
            self.slots = large_pages.zeros(shape, dtype)
        else:
            self.slots = torch.empty(shape, dtype=dtype, device=device)
        # Touched now: memory costs most when it is first written to, and would do so in the middle of answers.
        self.slots[: num_pages * page_size].zero_()
        self.num_pages, self.page_size = num_pages, page_size

    @property
    def bytes_per_token(self) -> int:
        """Cache bytes of one token, all layers."""
        return self.slots[0].numel() * self.slots.element_size()

    def slot_mapping(self, pages: Sequence[int], start: int, end: int) -> list[int]:
        """Where the tokens at positions ``start`` .. ``end`` - 1 of a sequence lie."""
        size = self.page_size
        return [pages[at // size] * size + at % size for at in range(start, end)]

    def write(self, slots: Sequence[int], keys_values: Tensor) -> None:
        """Put tokens, [num_tokens, num_layers, 2, kv_heads, head_dim], into ``slots``."""
        self.slots.index_copy_(0, torch.tensor(slots, device=self.slots.device), keys_values)

    def read(self, pages: Sequence[int], num_tokens: int) -> Tensor:
        """A sequence's first tokens, [num_tokens, num_layers, 2, kv_heads, head_dim], by whole pages."""
        count = -(-num_tokens // self.page_size)
        paged: Tensor = self.slots.unflatten(0, (-1, self.page_size))  # type: ignore[no-untyped-call]
        ids = torch.tensor(pages[:count], device=self.slots.device)
        return paged.index_select(0, ids).flatten(0, 1)[:num_tokens]


@dataclass(frozen=True)
class CacheRow:
    """One sequence of a step."""

    key: Hashable  # who it is: a new key after each loss of its pages
    pages: Sequence[int]
    start: int  # committed tokens; the step's tokens stand at start, start + 1, ...
    slot: int | None = None  # of its states, in hybrid models; None: it has none, as what is timed
    snapshots: Sequence[tuple[int, int]] = ()  # (number of tokens, slot): where a state is to be kept as well


def slots_of(cache: PagedKVCache, rows: Sequence[CacheRow], counts: Sequence[int]) -> list[int]:
    """Where the next ``counts[i]`` tokens of each row lie, row after row."""
    pairs = zip(rows, counts, strict=True)
    return [slot for row, n in pairs for slot in cache.slot_mapping(row.pages, row.start, row.start + n)]


def tokens_of(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Keys and values of each layer, [1, kv_heads, num_tokens, head_dim], as :meth:`PagedKVCache.write` takes them."""
    both = torch.cat([tensor for pair in pairs for tensor in pair])
    return both.view(-1, 2, *both.shape[1:]).permute(3, 0, 1, 2, 4)


def row_positions(rows: Sequence[CacheRow], counts: Sequence[int]) -> Tensor:
    """Positions of the next ``counts[i]`` tokens of each row, row after row, [1, sum of counts]."""
    pairs = zip(rows, counts, strict=True)
    return torch.tensor([[at for row, count in pairs for at in range(row.start, row.start + count)]])


class GatheredRows:
    """Sequences in contiguous rows, [num_layers, 2, rows, max_len, kv_heads, head_dim]: a step's KVSource."""

    def __init__(self, cache: PagedKVCache) -> None:
        self.cache = cache
        self._keys: list[Hashable] = []
        self._rows = cache.slots.new_zeros((*cache.slots.shape[1:3], 0, 0, *cache.slots.shape[3:]))
        self.layers: list[_RowsLayer] = []
        self._arranged: list[_RowsLayer] = []  # kept while as many rows take part
        self._num_arranged = 0
        self.num_gathered_tokens = 0  # copied from pages so far
        self.records = self._rows.is_cuda  # whether forwards over the rows shall be recorded
        self.recorded = Recorded()  # for the rows as they lie now

    @property
    def max_len(self) -> int:
        """Tokens that a row holds."""
        return self._rows.shape[3]

    def seat(self, keys: Sequence[Hashable]) -> list[int]:
        """An order of ``keys`` (their indices) in which as many as can be sit where they lie already."""
        lies_at = {key: place for place, key in enumerate(self._keys)}
        places = [lies_at.get(key, len(keys)) for key in keys]
        order = [-1] * len(keys)
        for idx, place in enumerate(places):
            if place < len(keys):
                order[place] = idx
        rest = iter([idx for idx, place in enumerate(places) if place >= len(keys)])
        return [idx if idx >= 0 else next(rest) for idx in order]

    def arrange(self, rows: Sequence[CacheRow], counts: Sequence[int]) -> tuple[Tensor, int]:
        """Make ``rows`` the first rows; the next forward runs ``counts[i]`` tokens of each, padded to one width.

        Returns their positions [rows, width] and kv_len.
        """
        width = max(counts)
        kv_len = max(row.start for row in rows) + width
        self._make_room(len(rows), kv_len)
        moved = {row.key for idx, row in enumerate(rows) if self._keys[idx] != row.key}
        self._keys = [None if key in moved else key for key in self._keys]
        for idx, row in enumerate(rows):
            if self._keys[idx] != row.key:
                self._gather(idx, row)
        device = self._rows.device
        starts = torch.tensor([row.start for row in rows], device=device)
        positions = starts.unsqueeze(1) + torch.arange(width, device=device)
        if self._num_arranged != len(rows):
            self._num_arranged = len(rows)
            # A slice is quick on a CPU, but where it starts cannot be recorded.
            row_idx = torch.arange(len(rows), device=device).unsqueeze(1)
            by_slice = len(rows) == 1 and not self.records
            self._arranged = [
                _RowsLayer(layer[:, : len(rows)], None if by_slice else row_idx) for layer in self._rows
            ]
        self.layers = self._arranged
        return positions, kv_len

    def arrange_padded(self, rows: Sequence[CacheRow], width: int) -> tuple[Tensor, int]:
        """As :meth:`arrange`, with empty rows behind ``rows`` and kv_len rounded up: both are powers of two."""
        padding = [CacheRow(("padding", i), (), 0) for i in range(len(rows), power_of_two(len(rows)))]
        placed = [*rows, *padding]
        positions, kv_len = self.arrange(placed, [width] * len(placed))
        return positions, power_of_two(max(kv_len, _LEN_STEP))

    def open(self, batch: ForwardBatch, specs: Sequence[AttentionSpec]) -> list[Any]:
        """See :class:`flashdraft.models.base.KVSource`: each token sees its own sequence, or its path, up to itself."""
        mask = batch.tree.mask(batch.kv_len) if batch.tree else self._mask(batch.positions, batch.kv_len)
        return dense_sources(self.layers, batch, mask, specs)

    def _mask(self, positions: Tensor, kv_len: int) -> Mask:
        if positions.shape[1] == 1 and positions.is_cuda:
            return FirstKeys(positions[:, 0] + 1)
        if positions.numel() == 1 and not self.records:
            return None
        return CachedMask(positions, kv_len).dense()

    def commit_paths(self, rows: Sequence[CacheRow], paths: Sequence[Sequence[int]]) -> None:
        """Make one path of a staged tree true in each of ``rows``, as they were arranged.

        Staged token ``paths[i][k]`` becomes number k; a path ascends from 0, the root. A chain's moves nothing.
        """
        taken: list[int] = []
        places: list[int] = []
        for idx, (row, path) in enumerate(zip(rows, paths, strict=True)):
            if path[-1] != len(path) - 1:
                first = idx * self.max_len + row.start
                taken += [first + place for place in path]
                places += range(first, first + len(path))
        if taken:
            device, tokens = self._rows.device, self._rows.flatten(2, 3)
            kept = tokens.index_select(2, torch.tensor(taken, device=device))
            tokens.index_copy_(2, torch.tensor(places, device=device), kept)
        self.commit(rows, [len(path) for path in paths])

    def commit(self, rows: Sequence[CacheRow], counts: Sequence[int]) -> None:
        """Make the first ``counts[i]`` staged tokens of ``rows[i]``, as they were arranged, true."""
        staged: list[int] = []
        for idx, (row, count) in enumerate(zip(rows, counts, strict=True)):
            first = idx * self.max_len + row.start
            staged += range(first, first + count)
        ids = torch.tensor(staged, device=self._rows.device)
        tokens = self._rows.flatten(2, 3).index_select(2, ids)
        self.cache.write(slots_of(self.cache, rows, counts), tokens.permute(2, 0, 1, 3, 4))

    def append(
        self, rows: Sequence[CacheRow], counts: Sequence[int], pairs: Sequence[tuple[Tensor, Tensor]]
    ) -> None:
        """Make ``counts[i]`` more tokens of each row true, in its pages and where it lies.

        ``pairs``: keys and values of each layer, [1, kv_heads, sum of counts, head_dim], row after row.
        """
        keys_values = tokens_of(pairs)
        for row, tokens in zip(rows, torch.split(keys_values, list(counts)), strict=True):
            self._add(row.key, row.start, tokens)
        self.cache.write(slots_of(self.cache, rows, counts), keys_values)

    def _add(self, key: Hashable, start: int, keys_values: Tensor) -> None:
        if key not in self._keys:
            return
        idx, end = self._keys.index(key), start + len(keys_values)
        if end > self.max_len:
            self._keys[idx] = None  # gathered again, with room, when it is arranged next
            return
        self._rows[:, :, idx, start:end] = keys_values.permute(1, 2, 0, 3, 4)

    def _make_room(self, num_rows: int, kv_len: int) -> None:
        if num_rows <= len(self._keys) and kv_len <= self.max_len:
            return
        num_layers, both, old_rows, old_len, kv_heads, head_dim = self._rows.shape
        num_rows = max(num_rows, old_rows)
        whole = power_of_two if self.records else whole_steps
        max_len = max(whole(max(kv_len, _LEN_STEP)), old_len)
        # Zeros: what a mask hides is multiplied by 0 and has to be finite.
        rows = self._rows.new_zeros((num_layers, both, num_rows, max_len, kv_heads, head_dim))
        rows[:, :, :old_rows, :old_len] = self._rows
        self._rows, self._num_arranged, self.recorded = rows, 0, Recorded()
        self._keys += [None] * (num_rows - old_rows)

    def _gather(self, idx: int, row: CacheRow) -> None:
        if row.start:
            tokens = self.cache.read(row.pages, row.start)
            self._rows[:, :, idx, : row.start] = tokens.permute(1, 2, 0, 3, 4)
        self._keys[idx] = row.key
        self.num_gathered_tokens += row.start


class _RowsLayer:
    """One layer of the rows: a LayerSource."""

    token_dim = 1  # of k and v
    table: PageTable | None = None

    def __init__(self, rows: Tensor, row_idx: Tensor | None) -> None:
        self.k, self.v = rows  # each [rows, max_len, kv_heads, head_dim]
        self.row_idx = row_idx  # [rows, 1]; None: there is one, whose tokens end at kv_len

    def stage(self, k: Tensor, v: Tensor, positions: Tensor, kv_len: int) -> tuple[Tensor, Tensor]:
        """Write ``k``, ``v`` [rows, kv_heads, num_tokens, head_dim] at ``positions``; give all to ``kv_len``."""
        if self.row_idx is None:
            start = kv_len - k.shape[2]
            self.k[:, start:kv_len] = k.transpose(1, 2)
            self.v[:, start:kv_len] = v.transpose(1, 2)
        else:
            self.k[self.row_idx, positions] = k.transpose(1, 2)
            self.v[self.row_idx, positions] = v.transpose(1, 2)
        return self.read(kv_len)

    def read(self, kv_len: int) -> tuple[Tensor, Tensor]:
        """See :class:`flashdraft.cache.dense_source.DenseLayer`."""
        return self.k[:, :kv_len].transpose(1, 2), self.v[:, :kv_len].transpose(1, 2)


@dataclass(frozen=True)
class StagedAt:
    """A KVSource for a recording: new tokens go to ``slots`` [rows, num_tokens] of ``layers``, and see ``seen``."""

    layers: Sequence[_RowsLayer]
    slots: Tensor
    seen: Mask

    def open(self, batch: ForwardBatch, specs: Sequence[AttentionSpec]) -> list[Any]:
        """See :class:`flashdraft.models.base.KVSource`."""
        return dense_sources(self.layers, batch, self.seen, specs, self.slots)
