"""DFlash as a drafter: a whole block from one forward of the network (arXiv 2602.06036, algorithm 1).

One request (DFlashState) or many at once (DFlashBatch): the same two functions of DFlashDrafter.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flashdraft.cache.paged_kv_cache import (
    CacheRow,
    PagedKVCache,
    power_of_two,
    row_positions,
    slots_of,
)
from flashdraft.cache.paged_rows import PagedRows, new_rows
from flashdraft.models.base import TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.mtp import MTPModel
from flashdraft.spec_decode.tree import DraftTree, best_first, likeliest, num_ranks


class DFlashDrafter:
    """Drafts with a DFlash network and the target's embedding and head."""

    def __init__(self, model: DFlashModel, target: TargetModel) -> None:
        self.model = model
        self.target = target
        self.feature_layers = model.config.target_layer_ids
        self.max_block_size = model.config.block_size

    def begin(self, max_len: int) -> "DFlashState":
        """See :class:`flashdraft.spec_decode.drafter.Drafter`."""
        return DFlashState(self, max_len)

    def hidden(
        self,
        blocks: Tensor,
        positions: Tensor,
        kv_len: int,
        layers: Sequence[Any],
        ends: Tensor | None = None,
        is_recorded: bool = False,
    ) -> Tensor:
        """Final hidden states [rows, num_tokens - 1, hidden_size] behind the anchors of ``blocks`` [rows, num_tokens].

        ``positions`` [rows, num_tokens] are the blocks'; a row sees its first ``ends`` [rows] slots, left out of
        all ``kv_len``.
        """
        hidden = self.model.served(self.target.embed(blocks), positions, kv_len, layers, ends, is_recorded)
        return hidden[:, 1:]

    def blocks(self, anchors: Sequence[int], num_tokens: int) -> Tensor:
        """[anchor, MASK, ...] behind each of ``anchors``, token ids [rows, num_tokens]."""
        unknown = [self.model.config.mask_token_id] * (num_tokens - 1)
        return torch.tensor([[anchor, *unknown] for anchor in anchors], device=self.target.device)

    def likeliest(
        self,
        blocks: Tensor,
        positions: Tensor,
        kv_len: int,
        layers: Sequence[Any],
        ends: Tensor | None = None,
        count: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """:func:`likeliest_tokens` of every slot of :meth:`hidden`, [rows, num_tokens - 1, count]."""
        found = self.model.draft(self.target.embed(blocks), positions, kv_len, layers, ends, count)
        if found is not None:
            return found
        hidden = self.hidden(blocks, positions, kv_len, layers, ends)
        return likeliest_tokens(self.model, self.target, hidden, count)


def likeliest_tokens(
    model: DFlashModel | MTPModel, target: TargetModel, hidden: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """The ``count`` likeliest tokens [..., count] of the drafter's final hidden states, of those that it drafts among.

    With each its log-probability [..., count], float32, among them; best first.
    """
    if isinstance(model, DFlashModel) and model.native:
        rows, log_probs = model.native.likeliest(hidden, count)
        return model.head_tokens(rows), log_probs
    if isinstance(model, MTPModel) or model.config.draft_vocab_size is None:
        logits = target.logits(hidden)
    else:
        logits = F.linear(hidden, model.head_rows(target.head_weight())).float()
    rows, log_probs = likeliest(logits, count)
    return rows if isinstance(model, MTPModel) else model.head_tokens(rows), log_probs


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
        drafted: list[int] = self._likeliest(anchor, num_draft, 1)[0][0, :, 0].tolist()
        return drafted

    def propose_tree(self, anchor: int, num_draft: int, num_tokens: int) -> DraftTree:
        """The tree of ``num_tokens`` that a block of ``num_draft`` tokens gives, as deep as that at most."""
        found = self._likeliest(anchor, num_draft, num_ranks(num_tokens))
        return trees_of(*found, [num_draft], [num_tokens])[0]

    def _likeliest(self, anchor: int, num_draft: int, count: int) -> tuple[Tensor, Tensor]:
        start = self.cache.lengths[0]
        end = start + 1 + num_draft
        positions = torch.arange(start, end, device=self.drafter.target.device).unsqueeze(0)
        block = self.drafter.blocks([anchor], 1 + num_draft)
        return self.drafter.likeliest(block, positions, end, self.cache.layers, None, count)


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
        parts = [one for one in features if one is not None]
        given = (torch.cat(parts) if len(parts) > 1 else parts[0]).unsqueeze(0)
        positions = row_positions(rows, counts).to(given.device)
        network, total = self.drafter.model, sum(counts)
        if isinstance(self.rows, PagedRows):
            assert network.native, "pages are read in place by the C++ part alone"
            slots = torch.tensor([slots_of(self.cache, rows, counts)])
            kv_len = max(row.start + count for row, count in zip(rows, counts, strict=True))
            network.native.store_context(given, positions, slots, self.rows.layers, kv_len)
            return
        if self.rows.records:
            more = power_of_two(total) - total
            inputs = F.pad(given, (0, 0, 0, more)), F.pad(positions, (0, more))
            padded = self.rows.recorded(("context", total + more), network.context, inputs)
            pairs = [(k[:, :, :total], v[:, :, :total]) for k, v in padded]
        else:
            pairs = network.context(given, positions)
        self.rows.append(rows, counts, pairs)

    def propose(
        self, rows: Sequence[CacheRow], anchors: Sequence[int], block_sizes: Sequence[int]
    ) -> list[DraftTree]:
        """Draft ``block_sizes[i] - 1`` tokens for each row in one forward."""
        token_ids, log_probs = self._likeliest(rows, anchors, block_sizes, 1)
        return chains_of(token_ids[..., 0], log_probs[..., 0], [size - 1 for size in block_sizes])

    def propose_trees(
        self,
        rows: Sequence[CacheRow],
        anchors: Sequence[int],
        block_sizes: Sequence[int],
        sizes: Sequence[int],
    ) -> list[DraftTree]:
        """Each row's best tree of ``sizes[i]`` tokens, ``block_sizes[i] - 1`` deep, from one forward; 0: a chain."""
        found = self._likeliest(rows, anchors, block_sizes, num_ranks(max(sizes)))
        return trees_of(*found, [size - 1 for size in block_sizes], sizes)

    def _likeliest(
        self, rows: Sequence[CacheRow], anchors: Sequence[int], block_sizes: Sequence[int], count: int
    ) -> tuple[Tensor, Tensor]:
        """The ``count`` likeliest tokens of every slot of all blocks, padded to the longest, in the order of ``rows``.

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
        blocks = self.drafter.blocks([anchors[i] for i in order] + [0] * num_padding, positions.shape[1])
        ends: Tensor | None = None
        if len(rows) > 1 or records:
            seen = [rows[i].start + block_sizes[i] for i in order] + [1] * num_padding
            ends = torch.tensor(seen, device=device)
        if records and ends is not None:
            hidden, found = self._replay(blocks, positions, ends, kv_len)
            if count > 1:
                found = likeliest_tokens(self.drafter.model, self.drafter.target, hidden, count)
        else:
            found = self.drafter.likeliest(blocks, positions, kv_len, self.rows.layers, ends, count)
        if order == list(range(len(positions))):
            return found
        places = torch.tensor(order, device=device).argsort()
        return found[0][places], found[1][places]

    def _replay(
        self, blocks: Tensor, positions: Tensor, ends: Tensor, kv_len: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Hidden states, and the likeliest token of every slot, as one recording for all steps of these shapes."""
        drafter, layers = self.drafter, self.rows.layers

        def work(blocks: Tensor, positions: Tensor, ends: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            hidden = drafter.hidden(blocks, positions, kv_len, layers, ends, is_recorded=True)
            return hidden, likeliest_tokens(drafter.model, drafter.target, hidden, 1)

        return self.rows.recorded((*positions.shape, kv_len), work, (blocks, positions, ends))


def chains_of(token_ids: Tensor, log_probs: Tensor, lengths: Sequence[int]) -> list[DraftTree]:
    """The first ``lengths[row]`` of each row's tokens [rows, num_tokens] as a draft."""
    rows = zip(token_ids.tolist(), log_probs.tolist(), lengths, strict=True)
    return [DraftTree.chain(ids[:length], values[:length]) for ids, values, length in rows]


def trees_of(
    token_ids: Tensor, log_probs: Tensor, depths: Sequence[int], sizes: Sequence[int]
) -> list[DraftTree]:
    """Of each row the tree of its ``sizes[row]`` likeliest continuations, ``depths[row]`` tokens deep at most.

    ``token_ids``, ``log_probs`` [rows, num_tokens, count]: the likeliest tokens of every slot, best first. Size 0: a
    chain of ``depths[row]`` tokens.
    """
    rows = zip(token_ids.tolist(), log_probs.tolist(), depths, sizes, strict=True)
    return [
        best_first(ids[:depth], values[:depth], size)
        if size
        else DraftTree.chain([slot[0] for slot in ids[:depth]], [slot[0] for slot in values[:depth]])
        for ids, values, depth, size in rows
    ]
