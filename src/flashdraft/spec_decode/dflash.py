"""DFlash as a drafter: a whole block from one forward of the network (arXiv 2602.06036, algorithm 1).

One request (DFlashState) or many at once (DFlashBatch): the same two functions of DFlashDrafter.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from flashdraft.cache.paged_kv_cache import CacheRow, GatheredRows, PagedKVCache, row_positions
from flashdraft.models.base import LayerSource, TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.mtp import MTPModel


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

    def draft(
        self,
        anchors: Sequence[int],
        positions: Tensor,
        kv_len: int,
        sources: Sequence[LayerSource],
        ends: Tensor | None = None,
    ) -> Tensor:
        """Draft greedily behind each anchor: the block is [anchor, MASK, ...].

        ``positions`` [rows, num_tokens] are the blocks'; a row sees its first ``ends`` [rows] slots, left out of
        all ``kv_len``. Returns draft tokens [rows, num_tokens - 1].
        """
        tokens = torch.tensor(anchors, device=self.target.device).unsqueeze(1)
        rows, num_tokens = positions.shape
        masks = self.mask_embedding.expand(rows, num_tokens - 1, -1)
        block = torch.cat((self.target.embed(tokens), masks), dim=1)
        hidden = self.model(block, positions, kv_len, sources, ends=ends)
        return greedy_tokens(self.model, self.target, hidden[:, 1:])


def greedy_tokens(model: DFlashModel | MTPModel, target: TargetModel, hidden: Tensor) -> Tensor:
    """The likeliest tokens [...] of the drafter's final hidden states: by its own head, or by the target's."""
    if isinstance(model, MTPModel) or model.lm_head is None:
        return target.argmax(hidden)
    return model.head_tokens(model.lm_head(hidden).argmax(-1))


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
        start = self.cache.lengths[0]
        end = start + 1 + num_draft
        positions = torch.arange(start, end, device=self.drafter.target.device).unsqueeze(0)
        draft: list[int] = self.drafter.draft([anchor], positions, end, self.cache.layers)[0].tolist()
        return draft


class DFlashBatch:
    """The draft caches of many requests: pages of their own storage under the target's page tables."""

    shares_prefix = True

    def __init__(self, drafter: DFlashDrafter, num_pages: int, page_size: int) -> None:
        self.drafter = drafter
        config, weight = drafter.model.config, drafter.model.fc.weight
        self.cache = PagedKVCache(
            config.num_hidden_layers,
            num_pages,
            page_size,
            config.num_key_value_heads,
            config.head_dim,
            weight.dtype,
            weight.device,
        )
        self.rows = GatheredRows(self.cache)

    def join(self, row: CacheRow, token_ids: list[int], max_len: int) -> None:
        """A found prefix lies in the pages already."""

    def leave(self, row: CacheRow) -> None:
        """Nothing is kept of a request but its pages."""

    def observe(
        self, rows: Sequence[CacheRow], token_ids: Sequence[list[int]], features: Sequence[Tensor | None]
    ) -> None:
        """Project the features of all rows' newly verified tokens in one pass, end to end without padding."""
        counts = [len(ids) for ids in token_ids]
        positions = row_positions(rows, counts)
        given = torch.cat([row_features for row_features in features if row_features is not None]).unsqueeze(
            0
        )
        self.rows.append(rows, counts, self.drafter.model.context(given, positions.to(given.device)))

    def propose(
        self, rows: Sequence[CacheRow], anchors: Sequence[int], block_sizes: Sequence[int]
    ) -> list[list[int]]:
        """Draft ``block_sizes[i] - 1`` tokens for each row in one forward.

        A row sees its own context and block alone, so a wider neighbour does not change its draft.
        """
        order = self.rows.seat([row.key for row in rows])
        positions, kv_len = self.rows.arrange([rows[i] for i in order], max(block_sizes))
        ends: Tensor | None = None
        if len(rows) > 1:
            ends = torch.tensor([rows[i].start + block_sizes[i] for i in order], device=positions.device)
        drafted = self.drafter.draft([anchors[i] for i in order], positions, kv_len, self.rows.layers, ends)
        by_row = dict(zip(order, drafted.tolist(), strict=True))
        return [by_row[i][: size - 1] for i, size in enumerate(block_sizes)]
