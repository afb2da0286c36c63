"""The drafter's forward on packed rows: what serving does block by block, for many blocks at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from flashdraft.batch import ForwardBatch
from flashdraft.data.loader import PackedRows
from flashdraft.models.base import OwnTokens, TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.mtp import MTPModel
from flashdraft.ops.attention import Mask, attention
from flashdraft.ops.block_mask import BlockContextMask, ChainMask, DocumentMask, fast_mask
from flashdraft.train.anchors import Blocks

Network = DFlashModel | MTPModel
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


class ChainKV:
    """Keys and values of the row's tokens, and behind them the chains' own, a token a step."""

    def __init__(self, k: Tensor, v: Tensor, mask: ChainMask) -> None:
        # All steps have one shape, so that one compiled graph serves them all.
        room = (0, 0, 0, mask.num_steps * mask.stride)
        self.k, self.v = torch.nn.functional.pad(k, room), torch.nn.functional.pad(v, room)
        slots = torch.arange(mask.anchors.shape[1], device=k.device)
        self.slots = mask.seq_len + slots  # of the next step's entries
        self.stride = mask.stride

    def stage(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put one step's entries into their slots; all that has been and room for what will be."""
        self.k, self.v = self.k.index_copy(2, self.slots, k), self.v.index_copy(2, self.slots, v)
        self.slots = self.slots + self.stride
        return self.k, self.v


@dataclass(frozen=True)
class ChainStep:
    """One step's source: it stages in ``entries`` and sees ``mask`` of them."""

    entries: ChainKV
    mask: Mask

    def attend(self, q: Tensor, k: Tensor | None, v: Tensor | None) -> Tensor:
        """See :class:`flashdraft.models.base.LayerSource`."""
        assert k is not None, "a drafter's layers share nothing"
        assert v is not None
        return attention(q, *self.entries.stage(k, v), self.mask)


def context_entries(
    target: TargetModel, drafter: Network, rows: PackedRows, features: Tensor
) -> LayerEntries:
    """What a row's tokens are to the blocks behind them: keys and values of every layer of the drafter."""
    if isinstance(drafter, MTPModel):
        before = features.roll(1, dims=1)  # nobody sees what a document's first token gets by it
        return drafter.context(target.embed(rows.token_ids), before, _positions(rows))
    return drafter.context(features, _positions(rows))


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
    if isinstance(drafter, MTPModel):
        return mtp_hidden(target, drafter, rows, features, blocks, context)
    return dflash_hidden(target, drafter, rows, blocks, context)


def mtp_hidden(
    target: TargetModel,
    drafter: MTPModel,
    rows: PackedRows,
    features: Tensor,
    blocks: Blocks,
    context: LayerEntries,
) -> Tensor:
    """:func:`block_hidden` of an MTP head: each step on its own last output, the tokens teacher-forced.

    As served: context entries come from the target's hidden states, a chain's own from the head's.
    """
    block_size = blocks.labels.shape[-1]
    [(k, v)] = context
    masks = [
        ChainMask(blocks.anchors, blocks.doc_start, rows.token_ids.shape[1], block_size - 1, step)
        for step in range(block_size - 1)
    ]
    entries = ChainKV(k, v, masks[0])
    embeddings = target.embed(blocks.labels[:, :, :-1])
    at = blocks.anchors.unsqueeze(-1).expand(-1, -1, features.shape[-1])
    hidden = features.roll(1, dims=1).gather(1, at)  # [num_rows, num_blocks, hidden_size]
    slots = [torch.zeros_like(hidden)]
    for step, mask in enumerate(masks):
        positions = blocks.anchors - blocks.doc_start + step
        source = ChainStep(entries, fast_mask(mask, target.device))
        hidden = drafter(embeddings[:, :, step], hidden, positions, source)
        slots.append(hidden)
    return torch.stack(slots, dim=2)


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
