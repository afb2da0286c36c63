"""How long every request's block is in the next step, so that expected tokens a second are highest.

A step drafts blocks of one length for some requests and verifies them, the anchors of all others beside them, in
one forward. What is drafted and what of it is verified are two choices. 1 is plain decoding. Costs and
acceptance are passed in: no clock here, and no tensors.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from flashdraft.spec_decode.acceptance import Acceptance, AcceptanceModel
from flashdraft.spec_decode.block_search import Candidate, Others, PaddedSearch, Plan, RaggedSearch, Search
from flashdraft.spec_decode.step_costs import StepCosts

AUTO: Literal["auto"] = "auto"
BlockSize = int | Literal["auto"]  # tokens of a block, anchor included, or the controller's choice

_PROBE_SHARE = 0.01  # of the time may go into finding out whether drafting has come to pay
_PROBE_WIDTH = 4
_PATIENCE, _MAX_PATIENCE = 8, 256  # plain rounds between the probes of a request
_MOST_KEPT = 7  # steps with one plan


class Controller:
    """Plans steps for a drafter of at most ``max_block``; ``short_log_odds``: see :class:`AcceptanceModel`."""

    def __init__(self, max_block: int, costs: StepCosts, short_log_odds: float = 0.0) -> None:
        self.costs = costs
        self.blocks = drafted_blocks(max_block)
        self.acceptance = AcceptanceModel(max_block, short_log_odds)
        self._credit_s = 0.0  # saved for probes
        self._rate = 0.0  # of the last plan
        self._kept: tuple[dict[Acceptance, int], Others | None, Plan] | None = None
        self._num_kept = 0  # steps for which it was the answer again

    def plan(self, candidates: Sequence[Candidate], others: Others | None = None) -> Plan:
        """The best step for ``candidates``; now and then a slightly worse one that tells more.

        A plan is the answer for a few steps of the same requests, those that end meanwhile aside: chances move
        slowly, and planning takes time.
        """
        states = [candidate.acceptance for candidate in candidates]
        if self._kept and self._num_kept < _MOST_KEPT and self._kept[1] == others:
            kept, _, plan = self._kept
            if all(state in kept for state in states):
                self._num_kept += 1
                lengths = [min(kept[one.acceptance], one.most) for one in candidates]
                for state, length in zip(states, lengths, strict=True):
                    state.num_plain += length == 1
                return replace(plan, lengths=lengths)
        self._credit_s += _PROBE_SHARE * self._num_kept * self._kept[2].seconds if self._kept else 0.0
        best, chosen = self._new_plan(candidates, others)
        self._num_kept = 0
        kept = dict(zip(states, best.lengths, strict=True))
        self._kept = (kept, others, best) if chosen is best else None
        return chosen

    def _new_plan(self, candidates: Sequence[Candidate], others: Others | None) -> tuple[Plan, Plan]:
        """The best, and what is done."""
        kind = RaggedSearch if self.costs.is_ragged else PaddedSearch
        search = kind(self.acceptance, self.costs, candidates, others or Others(), self.blocks)
        best = search.best(self._rate)
        self._rate = best.rate
        chosen = self._with_probes(search, best)
        for candidate, length, on_merit in zip(candidates, chosen.lengths, best.lengths, strict=True):
            state = candidate.acceptance
            if on_merit > 1:
                state.patience = _PATIENCE
            elif length > 1:
                state.patience = min(2 * state.patience, _MAX_PATIENCE)
            else:
                state.num_plain += 1
        return best, chosen

    def observe(self, acceptance: Acceptance, block: int, num_asked: int, num_accepted: int) -> None:
        """What came of ``num_asked`` draft tokens of one request, cut from a block of ``block``."""
        self.acceptance.observe(acceptance, block, num_asked, num_accepted)
        acceptance.num_plain = 0
        if num_accepted == num_asked:
            acceptance.patience = _PATIENCE  # a probe that found nothing but good

    def _with_probes(self, search: Search, best: Plan) -> Plan:
        self._credit_s = min(self._credit_s + _PROBE_SHARE * best.seconds, best.seconds)
        due = [
            idx
            for idx, (candidate, length) in enumerate(zip(search.candidates, best.lengths, strict=True))
            if length == 1
            and candidate.most > 1
            and candidate.acceptance.num_plain >= candidate.acceptance.patience
        ]
        if not due:
            return best
        width = max(max(best.lengths), min(_PROBE_WIDTH, max(self.blocks)))
        due.sort(key=lambda idx: -search.candidates[idx].acceptance.num_plain)
        while due:
            lengths = list(best.lengths)
            for idx in due:
                lengths[idx] = min(width, search.candidates[idx].most)
            probes = [search.evaluate(lengths, block) for block in self.blocks if block >= width]
            probe = max(probes, key=lambda plan: plan.num_tokens - best.rate * plan.seconds)
            loss_s = probe.seconds - probe.num_tokens / best.rate
            if loss_s <= self._credit_s:
                self._credit_s -= max(loss_s, 0.0)
                return probe
            due = due[: len(due) // 2]  # those that have waited longest
        return best


def drafted_blocks(max_block: int) -> tuple[int, ...]:
    """Lengths that may be drafted: the whole block, its half and its quarter."""
    return tuple(sorted({max_block, max(max_block // 2, 2), max(max_block // 4, 2)}, reverse=True))
