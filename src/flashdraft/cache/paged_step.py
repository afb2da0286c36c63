"""What the layers of one forward in PyTorch attend to: rows in pages, read layer by layer.

Attention wants each sequence's keys and values in one piece. They are copied there for one layer at a time, and for
rows of about one length together: a long row does not make its neighbours longer, and what is copied is a small part of
what all layers keep.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashdraft.batch import ForwardBatch, TreeSlots
from flashdraft.cache.dense_source import seen_masks
from flashdraft.cache.paged_kv_cache import PagedKVCache
from flashdraft.ops.attention import FULL_ATTENTION, AttentionSpec, LastKeys, Mask, attention
from flashdraft.ops.block_mask import BlockRule, CachedMask
from flashdraft.ops.sliding import masks_by_window

_MOST_PADDING = 1.25  # of a group: tokens that are read, by those that are there


@dataclass(frozen=True)
class RowGroup:
    """Rows of a step that are read together, up to ``kv_len`` tokens of each."""

    rows: Tensor | None  # which; None: all of the step
    kv_len: int
    is_even: bool = False  # whether each has one token, and ``kv_len`` with it
    start: int | None = None  # where the first of their new tokens stands; None: the host does not know

    def at(self, tensor: Tensor) -> Tensor:
        """Of a tensor [rows, ...] those of the group."""
        return tensor if self.rows is None else tensor[self.rows]


def grouped(ends: Sequence[int]) -> list[list[int]]:
    """Rows with ``ends[i]`` tokens each in groups of about one length, a group's longest last."""
    groups: list[list[int]] = []
    total = 0
    for idx in sorted(range(len(ends)), key=lambda idx: ends[idx]):
        total += ends[idx]
        if not groups or (len(groups[-1]) + 1) * ends[idx] > _MOST_PADDING * total:
            groups.append([])
            total = ends[idx]
        groups[-1].append(idx)
    return groups


def row_groups(
    starts: Sequence[int], ends: Sequence[int], device: torch.device, width: int
) -> list[RowGroup]:
    """The groups of rows that stage tokens from ``starts[i]`` to before ``ends[i]``, padded to ``width``."""
    groups, made = grouped(ends), []
    for group in groups:
        kv_len = ends[group[-1]]
        is_even = width == 1 and ends[group[0]] == kv_len
        rows = None if len(groups) == 1 else torch.tensor(sorted(group), device=device)
        made.append(RowGroup(rows, kv_len, is_even, min(starts[idx] for idx in group)))
    return made


@dataclass(frozen=True)
class PagedStep:
    """A KVSource: the rows of one step."""

    cache: PagedKVCache
    pages: Tensor  # int64 [storages, rows, num_pages]: each row's in order, of each storage of the cache
    groups: Sequence[RowGroup]

    @property
    def layers(self) -> Sequence[tuple[Tensor, Tensor]]:
        """See :class:`flashdraft.models.base.KVSource`."""
        return self.cache.layers

    def open(self, batch: ForwardBatch, specs: Sequence[AttentionSpec]) -> list[Any]:
        """See :class:`flashdraft.models.base.KVSource`: each token sees its own sequence, or its path, up to itself."""

        def masks_of(group: RowGroup) -> list[Mask]:
            positions, kv_len = group.at(batch.positions), group.kv_len
            if batch.tree is None:
                mask = None if group.is_even else CachedMask(positions, kv_len).dense()
                masks = masks_by_window(mask, specs, positions, kv_len)
            else:  # padding has slots too, behind what the group reads
                tree, reach = TreeSlots(group.at(batch.tree.slots), group.at(batch.tree.paths)), batch.kv_len
                keys = tree.key_positions(positions, reach)
                masks = masks_by_window(tree.mask(reach), specs, positions, reach, keys)
            cut = {window: _cut(mask, window, group) for window, mask in masks.items()}
            return [cut[spec.window] for spec in specs]

        return self.sources(batch.slots, masks_of, specs)

    def open_blocks(
        self,
        positions: Tensor,
        kv_len: int,  # noqa: ARG002 - each group knows its own
        rules: Sequence[BlockRule],
        ends: Tensor | None = None,
        is_recorded: bool = False,
    ) -> list[Any]:
        """See :class:`flashdraft.cache.dense_source.BlockContext`."""

        def masks_of(group: RowGroup) -> Sequence[Mask]:
            own_ends = None if ends is None else group.at(ends)
            return seen_masks(rules, group.at(positions), group.kv_len, own_ends, is_recorded)

        return self.sources(positions, masks_of, [FULL_ATTENTION] * len(rules))

    def sources(
        self,
        places: Tensor,
        masks_of: Callable[[RowGroup], Sequence[Mask]],
        specs: Sequence[AttentionSpec],
    ) -> list[Any]:
        """A source for each layer, for new tokens at ``places`` [rows, num_tokens], counted from a row's first.

        ``masks_of``: what a group's tokens see of its keys, for each layer.
        """
        size = self.cache.page_size
        slots = [pages.gather(1, places // size) * size + places % size for pages in self.pages]
        masks = [masks_of(group) for group in self.groups]
        by_layer = zip(self.cache.layers, self.cache.storage_of, specs, strict=True)
        return [
            PagedSource(
                self.groups, layer, self.pages[where], size, slots[where], [one[idx] for one in masks], spec
            )
            for idx, (layer, where, spec) in enumerate(by_layer)
        ]


def _cut(mask: Mask, window: int | None, group: RowGroup) -> Mask:
    """``mask`` over the keys of ``group``, without those behind the ``window`` of all its new tokens."""
    if not isinstance(mask, Tensor):
        return mask
    first = 0 if window is None or group.start is None else max(group.start - window + 1, 0)
    kept = mask[..., first : group.kv_len]
    return LastKeys(kept, first) if first else kept


@dataclass(frozen=True)
class PagedSource:
    """A LayerSource: new tokens go to ``slots`` [rows, num_tokens] of ``layer``, then each group attends."""

    groups: Sequence[RowGroup]
    layer: tuple[Tensor, Tensor]  # keys and values [num_slots, kv_heads, head_dim]
    pages: Tensor  # int64 [rows, num_pages]
    page_size: int  # tokens
    slots: Tensor
    masks: Sequence[Mask]  # of each group
    spec: AttentionSpec

    def attend(self, q: Tensor, k: Tensor | None, v: Tensor | None) -> Tensor:
        """See :class:`flashdraft.models.base.LayerSource`."""
        for stored, new in zip(self.layer, (k, v), strict=True):
            if new is not None:
                stored[self.slots] = new.transpose(1, 2)
        parts = [
            self._attend(group, group.at(q), mask)
            for group, mask in zip(self.groups, self.masks, strict=True)
        ]
        if len(parts) == 1:
            return parts[0]
        found = torch.empty_like(q)
        for group, part in zip(self.groups, parts, strict=True):
            found[group.rows] = part
        return found

    def _attend(self, group: RowGroup, q: Tensor, mask: Mask) -> Tensor:
        size = self.page_size
        first_page = mask.first // size if isinstance(mask, LastKeys) else 0
        if isinstance(mask, LastKeys):
            mask = LastKeys(mask.mask, mask.first - first_page * size)
        pages = group.at(self.pages)[:, first_page : -(-group.kv_len // size)]
        k, v = (self._read(stored, pages, group.kv_len - first_page * size) for stored in self.layer)
        return attention(q, k, v, mask, self.spec)

    def _read(self, stored: Tensor, pages: Tensor, num_tokens: int) -> Tensor:
        """The first ``num_tokens`` of ``pages`` [rows, num_pages], [rows, kv_heads, num_tokens, head_dim]."""
        paged: Tensor = stored.unflatten(0, (-1, self.page_size))  # type: ignore[no-untyped-call]
        tokens = paged.index_select(0, pages.flatten()).view(len(pages), -1, *stored.shape[1:])
        return tokens[:, :num_tokens].transpose(1, 2)
