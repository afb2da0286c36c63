"""DFlash as a drafter: a whole block from one forward of the network (arXiv 2602.06036, algorithm 1).

One request (DFlashState) or many at once (DFlashBatch): the same two functions of DFlashDrafter.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from flashdraft.cache.paged_kv_cache import (
    CacheRow,
    PagedKVCache,
    power_of_two,
    row_positions,
)
from flashdraft.cache.paged_rows import new_rows
from flashdraft.models.base import LayerSource, TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.mtp import MTPModel
from flashdraft.ops.attention import Mask
from flashdraft.spec_decode.tree import WIDTH, DraftTree, best_first, likeliest


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

    def hidden(
        self,
        anchors: Tensor,
        positions: Tensor,
        kv_len: int,
        sources: Sequence[LayerSource],
        ends: Tensor | None = None,
        masks: Sequence[Mask] | None = None,
    ) -> Tensor:
        """Final hidden states [rows, num_tokens - 1, hidden_size] behind each of ``anchors`` [rows]: the block is
        [anchor, MASK, ...].

        ``positions`` [rows, num_tokens] are the blocks'; a row sees its first ``ends`` [rows] slots, left out of
        all ``kv_len``. ``masks``: of each layer, if they are made already.
        """
        rows, num_tokens = positions.shape
        unknown = self.mask_embedding.expand(rows, num_tokens - 1, -1)
        block = torch.cat((self.target.embed(anchors.unsqueeze(1)), unknown), dim=1)
        hidden: Tensor = self.model(block, positions, kv_len, sources, masks, ends)
        return hidden[:, 1:]

    def chains(self, hidden: Tensor) -> list[list[int]]:
        """The likeliest token of every slot of :meth:`hidden`."""
        drafted: list[list[int]] = greedy_tokens(self.model, self.target, hidden).tolist()
        return drafted

    def trees(self, hidden: Tensor, num_tokens: int, depths: Sequence[int]) -> list[DraftTree]:
        """The tree of the ``num_tokens`` likeliest continuations of each row, ``depths[row]`` tokens at most."""
        if self.model.config.draft_vocab_size is None:
            logits = self.target.logits(hidden)
        else:
            logits = F.linear(hidden, self.model.head_rows(self.target.head_weight())).float()
        best, log_probs = likeliest(logits, min(num_tokens, WIDTH))
        rows = zip(self.model.head_tokens(best).tolist(), log_probs.tolist(), depths, strict=True)
        return [best_first(ids[:depth], values[:depth], num_tokens) for ids, values, depth in rows]


def greedy_tokens(model: DFlashModel | MTPModel, target: TargetModel, hidden: Tensor) -> Tensor:
    """The likeliest tokens [...] of the drafter's final hidden states, of those that it drafts among."""
    if isinstance(model, MTPModel):
        return target.argmax(hidden)
    if model.native:
        rows = model.native.argmax(hidden)
    elif model.config.draft_vocab_size is None:
        return target.argmax(hidden)
    else:
        rows = F.linear(hidden, model.head_rows(target.head_weight())).argmax(-1)
    return model.head_tokens(rows)


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
        """Draft a block; its keys and values are staged, never committed."""
        return self.drafter.chains(self._hidden(anchor, num_draft))[0]

    def propose_tree(self, anchor: int, num_draft: int, num_tokens: int) -> DraftTree:
        """The tree of ``num_tokens`` that a block of ``num_draft`` tokens gives, as deep as that at most."""
        return self.drafter.trees(self._hidden(anchor, num_draft), num_tokens, [num_draft])[0]

    def _hidden(self, anchor: int, num_draft: int) -> Tensor:
        start = self.cache.lengths[0]
        end = start + 1 + num_draft
        positions = torch.arange(start, end, device=self.drafter.target.device).unsqueeze(0)
        anchors = torch.tensor([anchor], device=positions.device)
        return self.drafter.hidden(anchors, positions, end, self.cache.layers)


class DFlashBatch:
    """The draft caches of many requests: pages of their own storage under the target's page tables."""

    shares_prefix = True

    def __init__(self, drafter: DFlashDrafter, num_pages: int, page_size: int, num_rows: int) -> None:
        self.drafter = drafter
        config, weight, reads_pages = drafter.model.config, drafter.model.fc.weight, drafter.model.reads_pages
        self.cache = PagedKVCache(
            config.num_hidden_layers,
            num_pages,
            page_size,
            config.num_key_value_heads,
            config.head_dim,
            weight.dtype,
            weight.device,
            num_rows * (drafter.max_block_size + page_size) if reads_pages else 0,
        )
        self.rows = new_rows(self.cache, reads_pages)

    def join(self, row: CacheRow, token_ids: list[int], max_len: int) -> None:
        """A found prefix lies in the pages already."""

    def leave(self, row: CacheRow) -> None:
        """Nothing is kept of a request but its pages."""

    def observe(
        self, rows: Sequence[CacheRow], token_ids: Sequence[list[int]], features: Sequence[Tensor | None]
    ) -> None:
        """Project the features of all rows' newly verified tokens in one pass, end to end without padding."""
        counts = [len(ids) for ids in token_ids]
        given = torch.cat([one for one in features if one is not None]).unsqueeze(0)
        positions = row_positions(rows, counts).to(given.device)
        context, total = self.drafter.model.context, sum(counts)
        if self.rows.records:
            more = power_of_two(total) - total
            inputs = F.pad(given, (0, 0, 0, more)), F.pad(positions, (0, more))
            padded = self.rows.recorded(("context", total + more), context, inputs)
            pairs = [(k[:, :, :total], v[:, :, :total]) for k, v in padded]
        else:
            pairs = context(given, positions)
        self.rows.append(rows, counts, pairs)

    def propose(
        self, rows: Sequence[CacheRow], anchors: Sequence[int], block_sizes: Sequence[int]
    ) -> list[list[int]]:
        """Draft ``block_sizes[i] - 1`` tokens for each row in one forward."""
        hidden, tokens = self._forward(rows, anchors, block_sizes)
        drafted = self.drafter.chains(hidden) if tokens is None else tokens.tolist()
        return [chain[: size - 1] for chain, size in zip(drafted, block_sizes, strict=True)]

    def propose_trees(
        self, rows: Sequence[CacheRow], anchors: Sequence[int], block_sizes: Sequence[int], num_tokens: int
    ) -> list[DraftTree]:
        """The best tree of ``num_tokens`` for each row, ``block_sizes[i] - 1`` deep, from one forward."""
        hidden, _ = self._forward(rows, anchors, block_sizes)
        return self.drafter.trees(hidden, num_tokens, [size - 1 for size in block_sizes])

    def _forward(
        self, rows: Sequence[CacheRow], anchors: Sequence[int], block_sizes: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states of all blocks, padded to the longest, in the order of ``rows``; tokens if they are at hand.

        A row sees its own context and block alone, so a wider neighbour does not change its draft.
        """
        order = self.rows.seat([row.key for row in rows])
        placed, width = [rows[i] for i in order], max(block_sizes)
        records = self.rows.records
        positions, kv_len = (
            self.rows.arrange_padded(placed, power_of_two(width))
            if records
            else self.rows.arrange(placed, [block_sizes[i] for i in order])
        )
        device, num_padding = positions.device, len(positions) - len(rows)
        tokens = torch.tensor([anchors[i] for i in order] + [0] * num_padding, device=device)
        ends: Tensor | None = None
        if len(rows) > 1 or records:
            seen = [rows[i].start + block_sizes[i] for i in order] + [1] * num_padding
            ends = torch.tensor(seen, device=device)
        if records and ends is not None:
            hidden, drafted = self._replay(tokens, positions, ends, kv_len)
        else:
            hidden, drafted = self.drafter.hidden(tokens, positions, kv_len, self.rows.layers, ends), None
        if order == list(range(len(hidden))):
            return hidden, drafted
        places = torch.tensor(order, device=device).argsort()
        return hidden[places], None if drafted is None else drafted[places]

    def _replay(
        self, tokens: Tensor, positions: Tensor, ends: Tensor, kv_len: int
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states and the likeliest tokens as one recording, for all steps of these shapes."""
        drafter, layers = self.drafter, self.rows.layers

        def work(anchors: Tensor, positions: Tensor, ends: Tensor) -> tuple[Tensor, Tensor | None]:
            masks = drafter.model.served_masks(positions, kv_len, ends)
            hidden = drafter.hidden(anchors, positions, kv_len, layers, ends, masks)
            return hidden, greedy_tokens(drafter.model, drafter.target, hidden)

        return self.rows.recorded((*positions.shape, kv_len), work, (tokens, positions, ends))
