"""How an MTP head is trained: chains, each step on the head's own last output, the tokens teacher-forced."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from flashdraft.data.loader import PackedRows
from flashdraft.errors import UsageError
from flashdraft.models.base import TargetModel
from flashdraft.models.mtp import MTPConfig, MTPModel
from flashdraft.ops.attention import Mask, attention
from flashdraft.ops.block_mask import ChainMask, fast_mask
from flashdraft.train.anchors import Blocks
from flashdraft.train.config import TrainConfig


def new_network(target: TargetModel, config: TrainConfig) -> MTPModel:
    """A head without weights to speak of, its layer one of the target's."""
    layer = copy.deepcopy(target.config)
    if config.intermediate_size is not None:
        if not hasattr(layer, "intermediate_size"):
            raise UsageError(
                f"the head's layer is one of the target's, of experts {layer.moe_intermediate_size} wide: leave"
                " --intermediate-size out"
            )
        layer.intermediate_size = config.intermediate_size
    return MTPModel(MTPConfig(layer, config.block_size))


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
    target: TargetModel, drafter: MTPModel, token_ids: Tensor, features: Tensor, positions: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """See :func:`flashdraft.train.forward.context_entries`."""
    before = features.roll(1, dims=1)  # nobody sees what a document's first token gets by it
    return drafter.context(target.embed(token_ids), before, positions)


def block_hidden(
    target: TargetModel,
    drafter: MTPModel,
    rows: PackedRows,
    features: Tensor,
    blocks: Blocks,
    context: list[tuple[Tensor, Tensor]],
) -> Tensor:
    """See :func:`flashdraft.train.forward.block_hidden`.

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
