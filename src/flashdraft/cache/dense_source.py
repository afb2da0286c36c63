"""Attention on keys and values that lie in one piece, a row for each sequence: a layer's source for one forward."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from flashdraft.batch import ForwardBatch
from flashdraft.ops.attention import FULL_ATTENTION, AttentionSpec, LastKeys, Mask, attention
from flashdraft.ops.block_mask import BlockRule, ServedBlockMask
from flashdraft.ops.sliding import masks_by_window


class DenseLayer(Protocol):
    """One layer's keys and values, a row for each sequence."""

    def stage(self, k: Tensor, v: Tensor, slots: Tensor, kv_len: int) -> tuple[Tensor, Tensor]:
        """Take new keys and values [rows, kv_heads, num_tokens, head_dim] into ``slots`` [rows, num_tokens].

        Gives those of the first ``kv_len`` slots, [rows, kv_heads, kv_len, head_dim].
        """
        ...

    def read(self, kv_len: int) -> tuple[Tensor, Tensor]:
        """What :meth:`stage` gives, once the step's tokens are staged."""
        ...


class BlockContext(Protocol):
    """Keys and values that drafted blocks attend to: a cache, or the rows of a step."""

    @property
    def layers(self) -> Sequence[Any]:
        """What is kept of each layer."""
        ...

    def open_blocks(
        self,
        positions: Tensor,
        kv_len: int,
        rules: Sequence[BlockRule],
        ends: Tensor | None = None,
        is_recorded: bool = False,
    ) -> Sequence[Any]:
        """A source for each layer, for one block a row at ``positions`` [rows, num_tokens], below ``kv_len``.

        A row sees its first ``ends`` [rows] slots, left out of all ``kv_len``, as each layer's rule says. Keys behind
        every row's window are not read, unless it ``is_recorded``: that asks the device for a value.
        """
        ...


@dataclass(frozen=True)
class DenseSource:
    """A LayerSource: stages in ``layer`` and attends on what that gives."""

    layer: DenseLayer
    slots: Tensor  # [rows, num_tokens], of the new tokens
    kv_len: int
    mask: Mask
    spec: AttentionSpec = FULL_ATTENTION

    def attend(self, q: Tensor, k: Tensor | None, v: Tensor | None) -> Tensor:
        """See :class:`flashdraft.models.base.LayerSource`."""
        if k is None or v is None:
            keys, values = self.layer.read(self.kv_len)
        else:
            keys, values = self.layer.stage(k, v, self.slots, self.kv_len)
        return attention(q, keys, values, self.mask, self.spec)


def dense_sources(
    layers: Sequence[DenseLayer],
    batch: ForwardBatch,
    mask: Mask,
    specs: Sequence[AttentionSpec],
) -> list[Any]:
    """A source for each of ``layers``, for the tokens of ``batch``, which see ``mask`` within their layers' windows."""
    keys = batch.tree.key_positions(batch.positions, batch.kv_len) if batch.tree else None
    masks = masks_by_window(mask, specs, batch.positions, batch.kv_len, keys)
    return [
        DenseSource(layer, batch.slots, batch.kv_len, masks[spec.window], spec)
        for layer, spec in zip(layers, specs, strict=True)
    ]


def seen_masks(
    rules: Sequence[BlockRule], positions: Tensor, kv_len: int, ends: Tensor | None, is_recorded: bool
) -> Sequence[Mask]:
    """Each layer's mask of the sources that :meth:`BlockContext.open_blocks` gives."""
    masks = block_masks(rules, positions, kv_len, ends)
    return masks if is_recorded else _within_windows(masks, rules, positions)


def block_masks(
    rules: Sequence[BlockRule], positions: Tensor, kv_len: int, ends: Tensor | None = None
) -> list[Tensor | None]:
    """Each layer's mask for one block a row at ``positions``; None where it sees all of ``kv_len`` slots.

    Made without asking the device for a value, so that a recording may make them.
    """
    made: dict[BlockRule, Tensor | None] = {
        rule: None if rule.is_plain else ServedBlockMask(positions, kv_len, rule).dense()
        for rule in set(rules)
    }
    if ends is not None:
        visible = torch.arange(kv_len, device=positions.device) < ends[:, None, None]
        own = visible.expand(-1, positions.shape[1], -1)  # [rows, num_tokens, kv_len]
        made = {rule: own if mask is None else own & mask for rule, mask in made.items()}
    return [made[rule] for rule in rules]


def _within_windows(masks: Sequence[Mask], rules: Sequence[BlockRule], positions: Tensor) -> list[Mask]:
    """``masks`` over the keys within the window of some row, and no others."""
    nearest = int(positions[:, 0].min()) if any(rule.window for rule in rules) else 0
    cut = list(masks)
    for i, (mask, rule) in enumerate(zip(masks, rules, strict=True)):
        if rule.window is not None and isinstance(mask, Tensor) and (first := nearest - rule.window) > 0:
            cut[i] = LastKeys(mask[..., first:], first)
    return cut
