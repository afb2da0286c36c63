"""A causal mask of any form, cut to a sliding window: a token sees the last ``window`` tokens, itself included."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from flashdraft.ops.attention import AttentionSpec, Causal, LastKeys, Mask, Parts


def masks_by_window(
    mask: Mask, specs: Sequence[AttentionSpec], own: Tensor, kv_len: int, keys: Tensor | None = None
) -> dict[int | None, Mask]:
    """``mask`` as layers of each spec's window have it; the rest as in :func:`sliding`."""
    windows = {spec.window for spec in specs}
    return {
        window: mask if window is None else sliding(mask, window, own, kv_len, keys) for window in windows
    }


def sliding(mask: Mask, window: int, own: Tensor, kv_len: int, keys: Tensor | None = None) -> Mask:
    """``mask`` with keys further back than ``window`` hidden.

    ``own`` [rows, num_tokens] are the key slots of the tokens themselves, ``kv_len`` the number of key slots.
    ``keys`` [rows, 1, kv_len]: what stands in each slot, counted as ``own`` is; left out: the slot's number.
    """
    if kv_len <= window:
        return mask
    if isinstance(mask, BlockMask):
        return _flex(mask, window, own)
    if keys is None:
        keys = torch.arange(kv_len, device=own.device)
    visible = keys > own.unsqueeze(-1) - window  # [rows, num_tokens, kv_len]
    if isinstance(mask, Causal):
        return visible & (keys <= own.unsqueeze(-1))
    if isinstance(mask, LastKeys):
        return visible & mask.dense()
    assert not isinstance(mask, Parts), "parts are for a drafter's blocks"
    return visible if mask is None else visible & mask


def _flex(mask: BlockMask, window: int, own: Tensor) -> BlockMask:
    before = mask.mask_mod

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen: Tensor = before(row, head, query, key) & (key > own[row, query] - window)
        return seen

    rows = mask.kv_num_blocks.shape[0]
    return create_block_mask(visible, rows, None, *mask.seq_lengths, device=own.device)
