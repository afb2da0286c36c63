"""What a block's forward gives to draft from: the likeliest tokens of its slots, and the walk over them.

A plain DFlash drafter's slots are independent. DFlash 2's selector adds a score to every pair of neighbours; then a
slot's best token is the best one behind the token that was chosen before it. Drafting, trees and what training
simulates take the same walk.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from flashdraft.models.base import TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.drafter_network import DrafterNetwork
from flashdraft.native.drafter import NativeDrafter
from flashdraft.ops.host_copy import told
from flashdraft.ops.sampling_rule import GREEDY, SamplingRule
from flashdraft.ops.triton import runs_on
from flashdraft.spec_decode.drafter import DraftSampling
from flashdraft.spec_decode.tree import DraftTree, best_first, likeliest

NUM_SAMPLED = 16  # candidates of a slot for sampled tokens, where no selector says how many


@dataclass(frozen=True)
class Candidates:
    """Tokens that may stand in each slot of blocks behind their anchors, best first."""

    token_ids: Tensor  # [rows, slots, count]
    log_probs: Tensor  # float32 [rows, slots, count]: of the slot by itself, among all that is drafted among
    # float32 [rows, slots, count, count]: added to a slot's by the candidate before, of the first slot's by the anchor,
    # whose row is repeated. None: slots are independent.
    pairs: Tensor | None = None
    # In place of ``pairs``: what :meth:`ranked` makes of them.
    behind: tuple[Tensor, Tensor] | None = None

    def at(self, rows: Tensor | slice) -> "Candidates":
        """Those of some rows."""
        pairs = None if self.pairs is None else self.pairs[rows]
        behind = self.behind and (self.behind[0][rows], self.behind[1][rows])
        return Candidates(self.token_ids[rows], self.log_probs[rows], pairs, behind)

    def walk(self) -> "Candidates":
        """Each row's draft alone: one candidate a slot, from the anchor on the best behind the one before it."""
        if self.pairs is None and self.behind is None:
            return Candidates(self.token_ids[..., :1], self.log_probs[..., :1])
        behind = self._behind()
        scores, places, log_probs = behind[:, 0, 0], [], []
        for slot in range(behind.shape[1]):
            best = scores.argmax(-1, keepdim=True)
            places.append(best)
            log_probs.append(scores.gather(1, best))
            if slot + 1 < behind.shape[1]:
                of_best = best.unsqueeze(-1).expand(-1, 1, behind.shape[-1])
                scores = behind[:, slot + 1].gather(1, of_best).squeeze(1)
        chosen = torch.stack(places, 1)
        return Candidates(self.token_ids.gather(2, chosen), torch.stack(log_probs, 1))

    def as_sampled(self, noise: Tensor, temperatures: Tensor, scores_first: bool = True) -> "Candidates":
        """Best first as the target will sample: by their scores at ``temperatures`` [rows] and with ``noise``.

        ``noise`` float32 [rows, slots, count]: the target's own, of these tokens in their places. Rows of temperature
        0 stay as they are. The log-probabilities are those of a softmax over all that. Without ``scores_first`` pairs
        of the first slot are left out.
        """
        assert self.behind is None, "noise is added to the scores of pairs"
        asked = (temperatures > 0).view(-1, 1, 1)
        scale = torch.where(asked, temperatures.view(-1, 1, 1), 1.0)
        scores = torch.where(asked, self.log_probs / scale + noise, self.log_probs)
        if self.pairs is not None:
            pairs = self.pairs / scale.unsqueeze(-1)
            if not scores_first:
                pairs[:, 0] = torch.where(asked, 0.0, pairs[:, 0])
            return Candidates(self.token_ids, scores, pairs)
        order = scores.argsort(-1, descending=True)
        log_probs = torch.where(asked, scores.log_softmax(-1), scores).gather(-1, order)
        return Candidates(self.token_ids.gather(-1, order), log_probs)

    def chains(self, lengths: Sequence[int]) -> list[DraftTree]:
        """The first ``lengths[row]`` tokens of each row's walk as a draft."""
        if self.pairs is None and self.behind is None:
            rows = zip(self.token_ids[..., 0].tolist(), self.log_probs[..., 0].tolist(), lengths, strict=True)
            return [DraftTree.chain(ids[:length], values[:length]) for ids, values, length in rows]
        # As walk(), on the host: of every candidate the best one behind it is asked for at once.
        best = [one[..., 0].tolist() for one in self.behind or self._behind().max(-1, keepdim=True)]
        every = zip(self.token_ids.tolist(), *best, lengths, strict=True)
        drafts = []
        for ids, values, places, length in every:
            draft, before = DraftTree.chain([]), 0
            for slot in range(length):
                draft.log_probs.append(values[slot][before])
                before = places[slot][before]
                draft.token_ids.append(ids[slot][before])
            drafts.append(DraftTree.chain(draft.token_ids, draft.log_probs))
        return drafts

    def trees(self, depths: Sequence[int], sizes: Sequence[int], num_ranks: int) -> list[DraftTree]:
        """Of each row the tree of its ``sizes[row]`` likeliest continuations, ``depths[row]`` tokens deep at most.

        Size 0: a chain of ``depths[row]`` tokens. ``num_ranks``: how many tokens behind another one may enter a tree.
        """
        chains = self.chains(depths) if 0 in sizes else [DraftTree()] * len(sizes)
        behind, order = self.ranked(num_ranks)
        places = None if order is None else order.tolist()
        rows = zip(self.token_ids.tolist(), behind.tolist(), chains, depths, sizes, strict=True)
        return [
            best_first(ids[:depth], values[:depth], size, places[row] if places else None) if size else chain
            for row, (ids, values, chain, depth, size) in enumerate(rows)
        ]

    def ranked(self, num_ranks: int) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities [rows, slots, num_before, num_ranks] of the likeliest behind each candidate, best first.

        And which candidates those are, of that shape. Where slots are independent, num_before is 1 and they are the
        first ones: None.
        """
        if self.behind:
            values, places = self.behind
            return values[..., :num_ranks], places[..., :num_ranks]
        if self.pairs is None:
            return self.log_probs[:, :, None, :num_ranks], None
        behind, order = self._behind().topk(min(num_ranks, self.token_ids.shape[-1]), -1)
        return behind, order

    def _behind(self) -> Tensor:
        """Log-probabilities [rows, slots, count, count] among a slot's candidates behind each one before it."""
        assert self.pairs is not None
        return (self.log_probs.unsqueeze(2) + self.pairs).log_softmax(-1)


def noise_of(
    token_ids: Tensor, samplings: Sequence[DraftSampling | None], vocab_size: int
) -> tuple[Tensor, Tensor]:
    """The target's noise of ``token_ids`` [rows, slots, count], and the temperatures [rows] of ``samplings``.

    Rows that are not sampled have temperature 0.
    """
    (_, slots, _), device = token_ids.shape, token_ids.device
    temperatures = torch.tensor([one.temperature if one else 0.0 for one in samplings], device=device)
    if runs_on(device):
        from flashdraft.ops.triton import sampling

        rules = [SamplingRule(one.temperature, one.noise.seed).told if one else GREEDY for one in samplings]
        firsts = told([one.first_position if one else 0 for one in samplings], device)
        return sampling.noise_of(token_ids, told(rules, device).int(), firsts), temperatures
    noise = torch.zeros(token_ids.shape, device=device)
    for row, one in enumerate(samplings):
        if one is not None:
            positions = list(range(one.first_position, one.first_position + slots))
            noise[row] = one.noise.at(positions, vocab_size, device).gather(1, token_ids[row])
    return noise, temperatures


def candidates_of(
    model: DFlashModel,
    target: TargetModel,
    hidden: Tensor,
    anchors: Tensor,
    count: int,
    native: NativeDrafter | None = None,
) -> Candidates:
    """The candidates of blocks' slots behind their ``anchors`` [rows]: ``count`` a slot, or those of its selector.

    ``hidden`` [rows, slots, hidden_size] are the drafter's final hidden states there. ``native``: its fast form.
    """
    selector = model.candidate_selector
    find = native.likeliest if native else partial(likeliest_tokens, model, target)
    if selector is None:
        return Candidates(*find(hidden, count))
    token_ids, log_probs = find(hidden, model.config.selector_top_k)
    if native and (fast := native.native.selector):
        return Candidates(token_ids, log_probs, fast.pairs(hidden, anchors, token_ids))
    before_first = anchors[:, None, None].expand(-1, 1, token_ids.shape[-1])
    before = torch.cat((before_first, token_ids[:, :-1]), 1)
    return Candidates(token_ids, log_probs, selector(hidden, before, token_ids, target.head_weight()))


def likeliest_token(model: DrafterNetwork, target: TargetModel, hidden: Tensor) -> Tensor:
    """The first of :func:`likeliest_tokens` [...], without probabilities: fewer passes over a large vocabulary."""
    if model.draft_vocab_size is None:
        return target.argmax(hidden).clamp(min=0)  # of no numbers a draft is any token
    return model.head_tokens(F.linear(hidden, model.head_rows(target.head_weight())).argmax(-1))


def likeliest_tokens(
    model: DrafterNetwork, target: TargetModel, hidden: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """The ``count`` likeliest tokens [..., count] of the drafter's final hidden states, of those that it drafts among.

    With each its log-probability [..., count], float32, among them; best first.
    """
    if model.draft_vocab_size is None:
        logits = target.logits(hidden)
    else:
        logits = F.linear(hidden, model.head_rows(target.head_weight())).float()
    rows, log_probs = likeliest(model.scaled(logits), count)
    return model.head_tokens(rows), log_probs
