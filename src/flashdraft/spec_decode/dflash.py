"""DFlash as a drafter: a whole block from one forward of the network (arXiv 2602.06036, algorithm 1)."""

import torch
from torch import Tensor

from flashdraft.models.base import TargetModel
from flashdraft.models.dflash import DFlashModel


class DFlashDrafter:
    """Drafts with a DFlash network and the target's embedding and head."""

    def __init__(self, model: DFlashModel, target: TargetModel) -> None:
        self.model = model
        self.target = target
        self.feature_layers = model.config.target_layer_ids
        self.max_block_size = model.config.block_size
        mask = torch.tensor([model.config.mask_token_id], device=target.device)
        self.mask_embedding = target.embed(mask)  # [1, hidden_size]

    def begin(self, max_len: int) -> "DFlashState":
        """See :class:`flashdraft.spec_decode.drafter.Drafter`."""
        return DFlashState(self, max_len)


class DFlashState:
    """The draft cache of one request: keys and values of every verified token."""

    def __init__(self, drafter: DFlashDrafter, max_len: int) -> None:
        self.drafter = drafter
        # A block is staged after the context even where the request ends within it.
        self.cache = drafter.model.new_cache(1, max_len + drafter.max_block_size)

    def observe(self, token_ids: list[int], features: Tensor | None) -> None:
        """Project the features of newly verified tokens once into every layer's keys and values."""
        assert features is not None
        start = self.cache.lengths[0]
        end = start + len(token_ids)
        positions = torch.arange(start, end, device=features.device).unsqueeze(0)
        pairs = self.drafter.model.context(features, positions)
        for layer, (k, v) in zip(self.cache.layers, pairs, strict=True):
            layer.stage(k, v, positions, end)
        self.cache.commit(len(token_ids))

    def propose(self, anchor: int, num_draft: int) -> list[int]:
        """Draft greedily: the block is [anchor, MASK, ...]; its keys and values are staged, never committed."""
        drafter = self.drafter
        token = torch.tensor([anchor], device=drafter.target.device)
        block = torch.cat((drafter.target.embed(token), drafter.mask_embedding.expand(num_draft, -1)))
        start = self.cache.lengths[0]
        end = start + 1 + num_draft
        positions = torch.arange(start, end, device=token.device).unsqueeze(0)
        hidden = drafter.model(block.unsqueeze(0), positions, end, self.cache.layers)
        draft: list[int] = drafter.target.logits(hidden[0, 1:]).argmax(-1).tolist()
        return draft
