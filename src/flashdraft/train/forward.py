"""The drafter's forward on packed rows: what serving does block by block, for many blocks at once."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from flashdraft.batch import ForwardBatch
from flashdraft.data.loader import PackedRows
from flashdraft.models.base import OwnTokens, TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.drafter_network import DrafterNetwork, part_of
from flashdraft.ops.attention import Mask, attention
from flashdraft.ops.block_mask import BlockContextMask, DocumentMask, fast_mask
from flashdraft.train.anchors import Blocks

Network = DrafterNetwork
LayerEntries = list[tuple[Tensor, Tensor]]  # keys and values of each layer


class ContextKV:
    """A layer's source: keys and values of the row's tokens, and blocks behind them that see ``mask``."""

    def __init__(self, k: Tensor, v: Tensor, mask: Mask) -> None:
        self.k, self.v, self.mask = k, v, mask

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """On [context | blocks] along the tokens."""
        return attention(q, torch.cat((self.k, k), dim=2), torch.cat((self.v, v), dim=2), self.mask)


@torch.no_grad()
def target_features(target: TargetModel, rows: PackedRows, layers: Sequence[int]) -> Tensor:
    """Features [num_rows, seq_len, len(layers) * hidden_size] of packed documents that do not see each other."""
    own = OwnTokens(fast_mask(DocumentMask(rows.doc_start), target.device))
    # By __call__, which gathers the layers of a target in parts.
    features: Tensor | None = target(ForwardBatch(rows.token_ids, _positions(rows), 0), own, layers).features
    assert features is not None
    return features


def teacher_hidden(final: Tensor, blocks: Blocks) -> Tensor:
    """The target's final hidden states from which it predicts each slot's token itself, one place before it.

    ``final`` [num_rows, seq_len, hidden_size]. Returns [num_rows * num_blocks * block_size, hidden_size], in the
    slots' order; meaningless for slots without a label.
    """
    num_rows, seq_len, size = final.shape
    slots = torch.arange(blocks.labels.shape[-1], device=final.device)
    places = (blocks.anchors.unsqueeze(-1) + slots - 1).flatten(1).clamp(0, seq_len - 1)
    rows = torch.arange(num_rows, device=final.device).unsqueeze(1)
    return final[rows, places].view(-1, size)


def recompute_layers(drafter: Network) -> None:
    """Let ``drafter``'s layers keep their inputs alone for the backward pass, and compute the rest again there."""
    for layer in drafter.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def context_entries(
    target: TargetModel, drafter: Network, rows: PackedRows, features: Tensor
) -> LayerEntries:
    """What a row's tokens are to the blocks behind them: keys and values of every layer of the drafter."""
    if isinstance(drafter, DFlashModel):
        return drafter.context(features, _positions(rows))
    entries: LayerEntries = part_of(drafter.method, "train").context_entries(
        target, drafter, rows.token_ids, features, _positions(rows)
    )
    return entries


def block_hidden(
    target: TargetModel,
    drafter: Network,
    rows: PackedRows,
    features: Tensor,
    blocks: Blocks,
    context: LayerEntries | None = None,
) -> Tensor:
    """Final hidden states, [num_rows, num_blocks, block_size, hidden_size], that predict each slot's token.

    Each block sees the features of its document strictly before its anchor, and itself. The anchor's own are of no
    use: it is given. ``context``: :func:`context_entries`, where they are known already.
    """
    if context is None:
        context = context_entries(target, drafter, rows, features)
    if isinstance(drafter, DFlashModel):
        return dflash_hidden(target, drafter, rows, blocks, context)
    hidden: Tensor = part_of(drafter.method, "train").block_hidden(
        target, drafter, rows, features, blocks, context
    )
    return hidden


def dflash_hidden(
    target: TargetModel, drafter: DFlashModel, rows: PackedRows, blocks: Blocks, context: LayerEntries
) -> Tensor:
    """:func:`block_hidden` of a DFlash drafter: all slots at once."""
    num_rows, num_blocks, block_size = blocks.labels.shape
    slots = torch.full_like(blocks.labels, drafter.config.mask_token_id)
    slots[:, :, 0] = rows.token_ids.gather(1, blocks.anchors)
    in_document = (blocks.anchors - blocks.doc_start).unsqueeze(-1)
    positions = (in_document + torch.arange(block_size, device=slots.device)).flatten(1)
    seq_len = rows.token_ids.shape[1]
    rules = drafter.config.rules
    made = {
        rule: fast_mask(
            BlockContextMask(blocks.anchors, blocks.doc_start, seq_len, block_size, rule), target.device
        )
        for rule in set(rules)
    }
    sources = [ContextKV(k, v, made[rule]) for (k, v), rule in zip(context, rules, strict=True)]
    hidden: Tensor = drafter(target.embed(slots.flatten(1)), positions, sources, block_size)
    return hidden.view(num_rows, num_blocks, block_size, -1)


def _positions(rows: PackedRows) -> Tensor:
    return torch.arange(rows.token_ids.shape[1], device=rows.token_ids.device) - rows.doc_start
