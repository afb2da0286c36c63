"""An MTP head as a drafter: one token a forward, each from the head's own state after the one before.

A verified token's keys and values come from its embedding and the target's hidden state one token earlier, as in
vLLM's draft loop. The first token of a text has nothing before it, so it has no entry: its slot is never seen.
The anchor is the first draft step; further steps stand on the head's own hidden states. Their keys and values are
staged and never committed: when those tokens are verified, the target's hidden states replace the head's.
"""

from collections.abc import Hashable, Sequence
from functools import partial

import torch
from torch import Tensor

from flashdraft.cache.paged_kv_cache import CacheRow, PagedKVCache, power_of_two, row_positions, slots_of
from flashdraft.cache.paged_rows import PagedRows, RecordedRows
from flashdraft.cache.paged_step import PagedStep, RowGroup
from flashdraft.models.base import TargetModel
from flashdraft.models.mlp import has_experts
from flashdraft.models.mtp import MTPModel
from flashdraft.ops.attention import FULL_ATTENTION, Mask
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

    def open(
        self, num_rows: int, num_pages: int, page_size: int, num_window_pages: int | None = None  # noqa: ARG002
    ) -> "MTPBatch":  # fmt: skip
        """See :class:`flashdraft.spec_decode.drafter.Drafter`."""
        return MTPBatch(self, num_pages, page_size, num_rows)

    def context(
        self, token_ids: Sequence[int], hidden: Tensor, positions: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of verified tokens; ``hidden`` [1, num_tokens, hidden_size] of the ones before them."""
        tokens = torch.tensor([list(token_ids)], device=self.target.device)
        return self.model.context(self.target.embed(tokens), hidden, positions)

    def draft(
        self, anchors: Tensor, hidden: Tensor, positions: Tensor, context: PagedStep
    ) -> tuple[Tensor, Tensor]:
        """Draft greedily behind each of ``anchors`` [rows] as many tokens as ``positions`` [rows, num_draft] has.

        ``hidden`` [rows, hidden_size]: the target's before each anchor. ``context``: keys and values of the rows, and
        room for these. Returns draft tokens [rows, num_draft] and their log-probabilities.
        """
        tokens, state, drafted, log_probs = anchors.unsqueeze(1), hidden.unsqueeze(1), [], []
        for own in torch.split(positions, 1, dim=1):
            [source] = context.sources(own, partial(_seen, own), [FULL_ATTENTION])
            state = self.model(self.target.embed(tokens), state, own, source)
            tokens, sure = (one.squeeze(-1) for one in likeliest_tokens(self.model, self.target, state, 1))
            drafted.append(tokens)
            log_probs.append(sure)
        return torch.cat(drafted, dim=1), torch.cat(log_probs, dim=1)


def open_drafter(network: MTPModel, target: TargetModel) -> MTPDrafter:
    """See :class:`flashdraft.models.drafter_network.Kind`."""
    return MTPDrafter(network, target)


def _seen(positions: Tensor, group: RowGroup) -> list[Mask]:
    """What the tokens at ``positions`` [rows, 1] see: all up to themselves but a text's first, which has no entry."""
    mask = CachedMask(group.at(positions), group.kv_len).dense()
    mask[:, :, 0] = False
    return [mask]


class MTPBatch:
    """The draft caches of many requests: pages of their own storage under the target's page tables.

    With each full page lies the target's hidden state of its last token: a request that finds its prefix needs it.
    """

    def __init__(self, drafter: MTPDrafter, num_pages: int, page_size: int, num_rows: int) -> None:
        self.drafter = drafter
        model, weight = drafter.model, drafter.model.fc.weight
        num_spare = num_rows * (power_of_two(drafter.max_block_size) + page_size)
        self.cache = PagedKVCache(
            model.kv_shapes(), num_pages, page_size, weight.dtype, weight.device, num_spare, by_layer=True
        )
        is_recorded = weight.is_cuda and not has_experts(model)
        self.rows = RecordedRows(self.cache) if is_recorded else PagedRows(self.cache)
        self.page_ends = weight.new_zeros((num_pages, model.config.hidden_size))
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
        pairs = self.drafter.context(every, torch.cat(before).unsqueeze(0), positions)
        self.cache.write(slots_of(self.cache, rows, counts), pairs)

    def propose(
        self, rows: Sequence[CacheRow], anchors: Sequence[int], shapes: Sequence[DraftShape]
    ) -> list[DraftTree]:
        """Draft ``shapes[i].depth`` tokens for each row, one forward a token for all rows together."""
        if (num_draft := max(shape.depth for shape in shapes)) < 1:
            return [DraftTree() for _ in rows]
        before = [self.last_hidden[row.key] for row in rows]
        if self.rows.records:
            ran = self._replay(rows, anchors, before, num_draft)
        else:
            positions, _ = self.rows.arrange(rows, [num_draft] * len(rows))
            tokens = torch.tensor(anchors, device=positions.device)
            ran = self.drafter.draft(tokens, torch.cat(before), positions, self.rows.step)
        token_ids, log_probs = (found[: len(rows)].unsqueeze(-1) for found in ran)
        return Candidates(token_ids, log_probs).chains([shape.depth for shape in shapes])

    def _replay(
        self, rows: Sequence[CacheRow], anchors: Sequence[int], before: list[Tensor], num_draft: int
    ) -> tuple[Tensor, Tensor]:
        """The drafts of all rows and of padding as one recording for all steps of these shapes."""
        positions, kv_len, pages = self.rows.arrange_padded(rows, [num_draft] * len(rows), num_draft)
        num_padding = len(positions) - len(rows)
        positions[len(rows) :] += 1  # nobody sees what lies at 0
        tokens = torch.tensor([*anchors, *[0] * num_padding], device=positions.device)
        hidden = torch.cat([*before, *[self.drafter.before_text] * num_padding])

        def work(tokens: Tensor, hidden: Tensor, positions: Tensor, pages: Tensor) -> tuple[Tensor, Tensor]:
            return self.drafter.draft(tokens, hidden, positions, self.rows.recorded_step(pages, kv_len))

        return self.rows.recorded((*positions.shape, kv_len), work, (tokens, hidden, positions, pages))

    def _keep_page_ends(self, row: CacheRow, hidden: Tensor) -> None:
        size, end = self.cache.page_size, row.start + len(hidden)
        lasts = range(row.start + (-row.start - 1) % size, end, size)
        if lasts:
            pages = torch.tensor([row.pages[at // size] for at in lasts], device=hidden.device)
            self.page_ends[pages] = hidden[lasts.start - row.start :: size]
