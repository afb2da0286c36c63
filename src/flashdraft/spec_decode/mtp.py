"""An MTP head as a drafter: one token a forward, each from the head's own state after the one before.

A verified token's keys and values come from its embedding and the target's hidden state one token earlier, as in
vLLM's draft loop. The first token of a text has nothing before it, so it has no entry: its slot is never seen.
The anchor is the first draft step; further steps stand on the head's own hidden states. Their keys and values are
staged and never committed: when those tokens are verified, the target's hidden states replace the head's.
"""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from flashdraft.cache.dense_source import DenseLayer, DenseSource
from flashdraft.cache.paged_kv_cache import CacheRow, GatheredRows, PagedKVCache, row_positions
from flashdraft.models.base import TargetModel
from flashdraft.models.mtp import MTPModel
from flashdraft.ops.block_mask import CachedMask
from flashdraft.spec_decode.candidates import Candidates, likeliest_tokens
from flashdraft.spec_decode.drafter import Drafter, DraftShape
from flashdraft.spec_decode.tree import DraftTree


class MTPDrafter(Drafter):
    """Drafts with an MTP head and the target's embedding and output head."""

    def __init__(self, model: MTPModel, target: TargetModel) -> None:
        self.model = model
        self.target = target
        self.feature_layers = model.config.target_layer_ids
        self.max_block_size = model.config.block_size
        size = target.config.hidden_size
        self.before_text = torch.zeros(1, size, dtype=target.dtype, device=target.device)

    def open(self, num_rows: int, num_pages: int, page_size: int) -> "MTPBatch":  # noqa: ARG002
        """See :class:`flashdraft.spec_decode.drafter.Drafter`."""
        return MTPBatch(self, num_pages, page_size)

    def context(
        self, token_ids: Sequence[int], hidden: Tensor, positions: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of verified tokens; ``hidden`` [1, num_tokens, hidden_size] of the ones before them."""
        tokens = torch.tensor([list(token_ids)], device=self.target.device)
        return self.model.context(self.target.embed(tokens), hidden, positions)

    def draft(
        self, anchors: Tensor, hidden: Tensor, positions: Tensor, kv_len: int, layer: DenseLayer
    ) -> tuple[Tensor, Tensor]:
        """Draft greedily behind each of ``anchors`` [rows] as many tokens as ``positions`` [rows, num_draft] has.

        ``hidden`` [rows, hidden_size]: the target's before each anchor. ``kv_len`` covers the last position.
        Returns draft tokens [rows, num_draft] and their log-probabilities.
        """
        tokens, state, drafted, log_probs = anchors.unsqueeze(1), hidden.unsqueeze(1), [], []
        num_draft = positions.shape[1]
        for step in range(num_draft):
            own, seen = positions[:, step : step + 1], kv_len - num_draft + step + 1
            mask = CachedMask(own, seen).dense()
            mask[:, :, 0] = False
            source = DenseSource(layer, own, seen, mask)
            state = self.model(self.target.embed(tokens), state, own, source)
            tokens, sure = (one.squeeze(-1) for one in likeliest_tokens(self.model, self.target, state, 1))
            drafted.append(tokens)
            log_probs.append(sure)
        return torch.cat(drafted, dim=1), torch.cat(log_probs, dim=1)


class MTPBatch:
    """The draft caches of many requests: pages of their own storage under the target's page tables.

    With each full page lies the target's hidden state of its last token: a request that finds its prefix needs it.
    """

    def __init__(self, drafter: MTPDrafter, num_pages: int, page_size: int) -> None:
        self.drafter = drafter
        config, weight = drafter.model.config.layer, drafter.model.fc.weight
        heads = config.num_key_value_heads
        self.cache = PagedKVCache(
            1, num_pages, page_size, heads, config.head_dim, weight.dtype, weight.device
        )
        self.rows = GatheredRows(self.cache)
        self.page_ends = weight.new_zeros((num_pages, config.hidden_size))
        self.last_hidden: dict[Hashable, Tensor] = {}  # [1, hidden_size]

    def join(self, row: CacheRow, token_ids: list[int], max_len: int) -> None:  # noqa: ARG002
        """A found prefix lies in the pages already, and so does its last hidden state."""
        last = self.drafter.before_text
        if token_ids:
            page = row.pages[len(token_ids) // self.cache.page_size - 1]
            last = self.page_ends[page : page + 1].clone()
        self.last_hidden[row.key] = last

    def leave(self, row: CacheRow) -> None:
        """Nothing is kept of a request but its pages."""
        self.last_hidden.pop(row.key, None)

    def observe(
        self, rows: Sequence[CacheRow], token_ids: Sequence[list[int]], features: Sequence[Tensor | None]
    ) -> None:
        """Take all rows' newly verified tokens in one pass, end to end without padding."""
        counts, before = [len(ids) for ids in token_ids], []
        for row, hidden in zip(rows, features, strict=True):
            assert hidden is not None
            before += [self.last_hidden[row.key], hidden[:-1]]
            self.last_hidden[row.key] = hidden[-1:].clone()
            self._keep_page_ends(row, hidden)
        positions = row_positions(rows, counts).to(before[0].device)
        every = [token for ids in token_ids for token in ids]
        self.rows.append(rows, counts, self.drafter.context(every, torch.cat(before).unsqueeze(0), positions))

    def propose(
        self, rows: Sequence[CacheRow], anchors: Sequence[int], shapes: Sequence[DraftShape]
    ) -> list[DraftTree]:
        """Draft ``shapes[i].depth`` tokens for each row, one forward a token for all rows together."""
        if (num_draft := max(shape.depth for shape in shapes)) < 1:
            return [DraftTree() for _ in rows]
        order = self.rows.seat([row.key for row in rows])
        placed = [rows[i] for i in order]
        records = self.rows.records and self.drafter.target.is_recordable
        positions, kv_len = (
            self.rows.arrange_padded(placed, num_draft)
            if records
            else self.rows.arrange(placed, [num_draft] * len(placed))
        )
        num_padding = len(positions) - len(rows)
        positions[len(rows) :] += 1  # nobody sees what lies at 0
        before = [self.last_hidden[row.key] for row in placed] + [self.drafter.before_text] * num_padding
        tokens = torch.tensor([anchors[i] for i in order] + [0] * num_padding, device=positions.device)
        inputs, [layer] = (tokens, torch.cat(before), positions), self.rows.layers

        def work(tokens: Tensor, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
            return self.drafter.draft(tokens, hidden, positions, kv_len, layer)

        ran = self.rows.recorded((*positions.shape, kv_len), work, inputs) if records else work(*inputs)
        places = torch.tensor(order, device=positions.device).argsort()
        token_ids, log_probs = (one[places].unsqueeze(-1) for one in ran)
        return Candidates(token_ids, log_probs).chains([shape.depth for shape in shapes])

    def _keep_page_ends(self, row: CacheRow, hidden: Tensor) -> None:
        size, end = self.cache.page_size, row.start + len(hidden)
        lasts = range(row.start + (-row.start - 1) % size, end, size)
        if lasts:
            pages = torch.tensor([row.pages[at // size] for at in lasts], device=hidden.device)
            self.page_ends[pages] = hidden[lasts.start - row.start :: size]
