"""Keys and values in pages: what is shared, kept after a request and found again.

A step reads a row's tokens where they lie and stages new ones where they would stay (paged_rows.py), so that what is
rejected is overwritten by what comes next and nothing is held twice.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flashdraft import large_pages
from flashdraft.cache.kv_cache import KVShape
from flashdraft.cache.window_pages import WindowPages


def power_of_two(number: int) -> int:
    """The least one that is not below ``number``, 1 or more."""
    return 1 << (number - 1).bit_length()


def doubling(last: int) -> list[int]:
    """1, 2, 4, ..., last."""
    return [*(1 << k for k in range((last - 1).bit_length())), last]


class PageStorage:
    """Storage of layers that have pages in common. Each of ``layers``: keys, values [num_slots, kv_heads, head_dim].

    ``slots`` [num_slots, num_layers, 2, kv_heads, head_dim] is all of it where layers are of one shape. ``num_spare``
    and ``by_layer``: see :class:`PagedKVCache`.
    """

    def __init__(
        self,
        shapes: Sequence[KVShape],
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device | str,
        num_spare: int,
        by_layer: bool,
    ) -> None:
        num_spare_pages = -(-num_spare // page_size) + bool(num_spare)  # one for padding
        self.num_pages, self.page_size = num_pages, page_size
        self.num_slots = (num_pages + num_spare_pages) * page_size
        sizes = [shape.size for shape in shapes]
        on_cpu = torch.device(device).type == "cpu"
        shape = (sum(sizes) * self.num_slots,) if by_layer else (self.num_slots, sum(sizes))
        # Zeros everywhere: what a mask hides is multiplied by 0 and has to be finite.
        self.all = (
            large_pages.zeros(shape, dtype) if on_cpu else torch.zeros(shape, dtype=dtype, device=device)
        )
        self.layers: list[tuple[Tensor, Tensor]] = []
        self._movable: list[Tensor] = [] if by_layer else [self.all]  # by slot, together all there is
        first = 0
        for layer, size in zip(shapes, sizes, strict=True):
            heads, scale = (layer.kv_heads, layer.head_dim), self.num_slots if by_layer else 1
            part = self.all.narrow(-1, first * scale, size * scale)
            both = part.view(2, self.num_slots, *heads) if by_layer else _apart(part, heads)
            self.layers.append((both[0], both[1]))
            self._movable += [both[0], both[1]] if by_layer else []
            first += size
        if len({(one.kv_heads, one.head_dim) for one in shapes}) == 1:
            self.slots = self._as_one(len(shapes), shapes[0], by_layer)
        # Touched now: memory costs most when it is first written to, and would do so in the middle of answers.
        for tensor in self._movable:
            tensor[: num_pages * page_size].zero_()

    def _as_one(self, num_layers: int, shape: KVShape, by_layer: bool) -> Tensor:
        heads = shape.kv_heads, shape.head_dim
        if by_layer:
            return self.all.view(num_layers, 2, self.num_slots, *heads).permute(2, 0, 1, 3, 4)
        return self.all.view(self.num_slots, num_layers, 2, *heads)

    @property
    def scratch_page(self) -> int:
        """The last spare page: it takes what is padding, and nothing reads it."""
        return self.num_slots // self.page_size - 1

    def move(self, from_slots: Sequence[int], to_slots: Sequence[int]) -> None:
        """Copy tokens, of all layers; all are read before any is written."""
        taken, places = (torch.tensor(slots, device=self.all.device) for slots in (from_slots, to_slots))
        for tensor in self._movable:
            tensor.index_copy_(0, places, tensor.index_select(0, taken))


class PagedKVCache:
    """Storage of all pages. ``layers[i]``: keys and values of a layer, [num_slots, kv_heads, head_dim] each.

    A layer that shares an earlier one's has the same place as that one. ``num_spare``: tokens that a step may stage
    beyond its rows' pages, in pages behind all others. ``by_layer``: a layer's keys lie in one piece, and its values,
    as attention in PyTorch and on a GPU reads them; else a token's, as the C++ part does. ``num_window_pages``: layers
    with windows have so many pages of their own (window_pages.py); None: all layers have ``num_pages`` in common.
    """

    def __init__(
        self,
        shapes: Sequence[KVShape],
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device | str,
        num_spare: int = 0,
        by_layer: bool = False,
        num_window_pages: int | None = None,
    ) -> None:
        apart = [num_window_pages is not None and shape.window is not None for shape in shapes]
        self.storage_of = [int(one) for one in apart]  # of each layer
        self.storages = [
            PageStorage(
                [one for one, where in zip(shapes, self.storage_of, strict=True) if one.size and where == idx],
                count, page_size, dtype, device, num_spare, by_layer,
            )
            for idx, count in enumerate((num_pages, num_window_pages))
            if count is not None
        ]  # fmt: skip
        self.num_pages, self.page_size = num_pages, page_size
        self.num_slots = self.storages[0].num_slots
        own = [iter(storage.layers) for storage in self.storages]
        self.layers: list[tuple[Tensor, Tensor]] = []
        for shape, where in zip(shapes, self.storage_of, strict=True):
            self.layers.append(next(own[where]) if shape.shares is None else self.layers[shape.shares])

    @property
    def slots(self) -> Tensor:
        """[num_slots, num_layers, 2, kv_heads, head_dim] of layers that are of one shape and share nothing."""
        return self.storages[0].slots

    @property
    def bytes_per_token(self) -> int:
        """Cache bytes of one token, all layers."""
        return sum(storage.all.nbytes // storage.num_slots for storage in self.storages)

    @property
    def nbytes(self) -> int:
        """Of all pages, spare ones included."""
        return sum(storage.all.nbytes for storage in self.storages)

    @property
    def device(self) -> torch.device:
        """Where the pages are."""
        return self.storages[0].all.device

    def slot_mapping(self, pages: Sequence[int], start: int, end: int) -> list[int]:
        """Where the tokens at positions ``start`` .. ``end`` - 1 of a sequence lie."""
        size = self.page_size
        return [pages[at // size] * size + at % size for at in range(start, end)]

    @torch.no_grad()
    def write(self, slots: Sequence[Sequence[int]], pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Put keys and values of each layer, [1, kv_heads, num_tokens, head_dim], into ``slots`` of its storage."""
        ids = [torch.tensor(own, device=self.device) for own in slots]
        for where, own, given in zip(self.storage_of, self.layers, pairs, strict=True):
            for stored, new in zip(own, given, strict=True):
                stored.index_copy_(0, ids[where], new[0].transpose(0, 1))


def _apart(tokens: Tensor, heads: tuple[int, int]) -> Tensor:
    """[num_slots, 2 * kv_heads * head_dim] as [2, num_slots, kv_heads, head_dim]."""
    apart: Tensor = tokens.unflatten(1, (2, *heads))  # type: ignore[no-untyped-call]
    return apart.transpose(0, 1)


class CacheRow(NamedTuple):
    """One sequence of a step."""

    key: Hashable  # who it is: a new key after each loss of its pages
    pages: Sequence[int]
    start: int  # committed tokens; the step's tokens stand at start, start + 1, ...
    slot: int | None = None  # of its states, in hybrid models; None: it has none, as what is timed
    snapshots: Sequence[tuple[int, int]] = ()  # (number of tokens, slot): where a state is to be kept as well
    window: WindowPages | None = None  # its pages of layers with windows; None: of no request, any will do

    def pages_in(self, where: int, storage: PageStorage) -> Sequence[int]:
        """Its pages in ``storage``, number ``where`` of the cache's; the scratch page in place of those given back."""
        if not where:
            return self.pages
        if self.window is None:
            return [page % storage.num_pages for page in self.pages]
        return self.window.aligned(storage.scratch_page)


def slots_of(cache: PagedKVCache, rows: Sequence[CacheRow], counts: Sequence[int]) -> list[list[int]]:
    """Where the next ``counts[i]`` tokens of each row lie, row after row, in each storage of the cache."""
    return [
        [
            slot
            for row, count in zip(rows, counts, strict=True)
            for slot in cache.slot_mapping(row.pages_in(where, storage), row.start, row.start + count)
        ]
        for where, storage in enumerate(cache.storages)
    ]


def row_positions(rows: Sequence[CacheRow], counts: Sequence[int]) -> Tensor:
    """Positions of the next ``counts[i]`` tokens of each row, row after row, [1, sum of counts]."""
    pairs = zip(rows, counts, strict=True)
    return torch.tensor([[at for row, count in pairs for at in range(row.start, row.start + count)]])
