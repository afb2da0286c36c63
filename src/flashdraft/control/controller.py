"""What every step drafts, and how much of that it verifies, so that expected tokens a second are highest.

A step drafts blocks of one length for some requests and verifies them, the anchors of all others beside them, in one
forward. Which requests draft how long a block is planned before (:meth:`Controller.plan`), how many of a draft's
tokens are verified is chosen when the drafter has told how sure it is of each (:meth:`Controller.select`). Costs and
acceptance are passed in: no clock here, and no tensors.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flashdraft.control.acceptance import PRICES, Acceptance, AcceptanceModel, Drafted
from flashdraft.control.block_search import (
    Candidate,
    Others,
    PaddedSearch,
    Plan,
    RaggedSearch,
    Search,
    verified_token_s,
)
from flashdraft.control.step_costs import StepCosts
from flashdraft.control.verified_lengths import padded_lengths, ragged_lengths

_PROBE_SHARE = 0.003  # of the time may go into finding out whether drafting has come to pay
# Of several requests those draft that promise most, and luck is part of a promise (docs/log.md): what is thought at
# first to come of it, the promised tokens that weighs, what a plan leaves of the weight of those before, and the least.
_KEPT_PROMISE, _PROMISED, _PROMISES_KEPT, _LEAST_KEPT = 0.85, 40.0, 0.97, 0.25
_PATIENCE, _MAX_PATIENCE = 8, 256  # plain rounds between the probes of a request
# Steps with one plan; and with one in which not all draft, for a draft is much like the last one, not like the tenth.
_MOST_KEPT, _MOST_KEPT_UNEVEN = 11, 2


class Controller:
    """Plans steps for a drafter of at most ``max_block``; ``short_log_odds``: see :class:`AcceptanceModel`."""

    def __init__(self, max_block: int, costs: StepCosts, short_log_odds: float = 0.0) -> None:
        self.costs = costs
        self.blocks = drafted_blocks(max_block)
        # Where rows are padded a token has no price of its own: what is accepted whatever it costs is all that counts.
        prices = PRICES if costs.is_ragged else PRICES[:1]
        self.acceptance = AcceptanceModel(self.blocks, short_log_odds, prices)
        self._credit_s = 0.0  # saved for probes
        self._least_loss_s = 0.0  # of the last one that was too dear
        self._rate = 0.0  # of the last plan
        self._came, self._promised = (
            _KEPT_PROMISE * _PROMISED,
            _PROMISED,
        )  # draft tokens, of plans for several requests
        self._promise = 0.0  # of a new plan, until its first draft is there
        self._forward_s: list[float] = []  # of that plan's step, by its tokens or by its width
        self._kept: tuple[dict[Acceptance, int], Others | None, Plan] | None = None
        self._num_kept = self._most_kept = 0  # steps for which it was the answer again, and may be
        self._was_in_vain = False  # the last step's drafting

    def plan(self, candidates: Sequence[Candidate], others: Others | None = None) -> Plan:
        """The best step for ``candidates``; now and then a slightly worse one that tells more.

        A plan is the answer for a few steps of the same requests, those that end meanwhile aside: chances move
        slowly, and planning takes time. Where steps are recorded, who joins meanwhile does as the others do.
        """
        states = [candidate.acceptance for candidate in candidates]
        if self._kept and self._num_kept < self._most_kept and self._kept[1] == others:
            kept, _, plan = self._kept
            are_known = [state in kept for state in states]
            if all(are_known) or (self.costs.is_recorded and any(are_known)):
                self._num_kept += 1
                usual = max(plan.lengths)
                lengths = [min(kept.get(one.acceptance, usual), one.most) for one in candidates]
                for state, length in zip(states, lengths, strict=True):
                    state.num_plain += length == 1
                return replace(plan, lengths=lengths)
        self._credit_s += _PROBE_SHARE * self._num_kept * self._kept[2].seconds if self._kept else 0.0
        best, chosen = self._new_plan(candidates, others)
        self._num_kept, self._forward_s = 0, []
        kept = dict(zip(states, best.lengths, strict=True))
        self._kept = (kept, others, best) if chosen is best else None
        is_even = len({length > 1 for length in best.lengths}) < 2
        self._most_kept = _MOST_KEPT if is_even else _MOST_KEPT_UNEVEN
        return chosen

    @property
    def kept_promise(self) -> float:
        """What drafts bring of what they promise, where the most promising of several requests draft."""
        return min(max(self._came / self._promised, _LEAST_KEPT), 1.0)

    def _new_plan(self, candidates: Sequence[Candidate], others: Others | None) -> tuple[Plan, Plan]:
        """The best, and what is done."""
        kind = RaggedSearch if self.costs.is_ragged else PaddedSearch
        search = kind(self.acceptance, self.costs, candidates, others or Others(), self.kept_promise)
        best = search.best(self._rate)
        self._rate = best.rate
        chosen = self._with_probes(search, best)
        is_promise = chosen is best and len(candidates) > 1
        self._promise = (best.num_tokens - search.num_rows) / search.kept_promise if is_promise else 0.0
        for candidate, length, on_merit in zip(candidates, chosen.lengths, best.lengths, strict=True):
            state = candidate.acceptance
            if on_merit > 1:
                state.patience = _PATIENCE
            elif length > 1:
                state.patience = min(2 * state.patience, _MAX_PATIENCE)
            else:
                state.num_plain += 1
        return best, chosen

    def select(self, drafts: Sequence[Drafted], others: Others) -> list[int]:
        """How many tokens of each draft are worth verifying, all of one block; ``others``: the step's other rows.

        A recorded step is as wide as it was planned: it comes in few widths, and is over before all are weighed.
        """
        costs, rate = self.costs, self._rate
        if costs.is_recorded:
            return [draft.num_tokens for draft in drafts]
        survival = self.acceptance.foresee(drafts)
        prices = [rate * verified_token_s(costs, draft.request) for draft in drafts]
        worth = [[one - price for one in row] for row, price in zip(survival, prices, strict=True)]
        num_rows, num_others = len(drafts) + len(others.lengths), len(drafts) + sum(others.lengths)
        if costs.is_ragged:
            num_tokens = num_others + sum(map(len, worth))
            if len(self._forward_s) < num_tokens:
                self._forward_s = costs.forward_seconds(num_rows, np.arange(1, num_tokens + 1)).tolist()
            lengths = ragged_lengths(worth, num_others, self._forward_s, rate)
            self._keep_promise(sum(sum(row[:length]) for row, length in zip(survival, lengths, strict=True)))
            return lengths
        width = max(self.blocks[0], others.width)  # trees are wider than blocks
        if len(self._forward_s) < width:
            self._forward_s = costs.verify_seconds(num_rows, np.arange(1, width + 1)).tolist()
        return padded_lengths(worth, others.width, self._forward_s, rate)

    def _keep_promise(self, came: float) -> None:
        """Take what the first draft of a new plan should bring, now that it is there."""
        if self._promise:
            self._came = _PROMISES_KEPT * self._came + came
            self._promised = _PROMISES_KEPT * self._promised + self._promise
            self._promise = 0.0

    def observe(self, drafts: Sequence[Drafted]) -> None:
        """Take what came of a step's drafts, all of one block."""
        if not self.costs.is_recorded:
            self.acceptance.observe(drafts)
            in_vain = not any(draft.num_accepted for draft in drafts)
            if in_vain and self._was_in_vain:
                self._most_kept = 0  # that was not what the plan hoped for
            self._was_in_vain = in_vain
        elif self._kept is None or self._num_kept == self._most_kept:  # a probe, or the last step of a plan
            self.acceptance.foresee(drafts)
            self.acceptance.observe(drafts)
        for draft in drafts:
            if draft.is_all_accepted:
                draft.request.patience = _PATIENCE  # a probe that found nothing but good

    def _with_probes(self, search: Search, best: Plan) -> Plan:
        self._credit_s = min(self._credit_s + _PROBE_SHARE * best.seconds, best.seconds)
        if self._credit_s < min(self._least_loss_s, best.seconds) / 2:
            return best  # far from enough: to search for a probe takes time too
        drafting = [idx for idx, length in enumerate(best.lengths) if length > 1]
        due = [
            idx
            for idx, (candidate, length) in enumerate(zip(search.candidates, best.lengths, strict=True))
            if length == 1
            and candidate.most > 1
            and candidate.acceptance.num_plain >= candidate.acceptance.patience
        ]
        due.sort(key=lambda idx: -search.candidates[idx].acceptance.num_plain)
        while due:
            probes = [search.drafting([*drafting, *due], block, best.rate) for block in self.blocks]
            probe = max(probes, key=lambda plan: plan.num_tokens - best.rate * plan.seconds)
            loss_s = probe.seconds - probe.num_tokens / best.rate
            if loss_s <= self._credit_s:
                self._credit_s -= max(loss_s, 0.0)
                self._least_loss_s = 0.0
                return probe
            self._least_loss_s = loss_s
            due = due[: len(due) // 2]  # those that have waited longest
        return best


def drafted_blocks(max_block: int) -> tuple[int, ...]:
    """Lengths that may be drafted: the whole block, its half and its quarter."""
    return tuple(sorted({max_block, max(max_block // 2, 2), max(max_block // 4, 2)}, reverse=True))
