"""How long every request's block is in the next step, so that expected tokens a second are highest.

A step drafts blocks of one length for some requests and verifies them, the anchors of all others beside them, in
one forward as wide as the longest piece that is verified. What is drafted and what of it is verified are two
choices. 1 is plain decoding. Costs and acceptance are passed in: no clock here, and no tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flashdraft.spec_decode.acceptance import Acceptance, AcceptanceModel
from flashdraft.spec_decode.step_costs import Array, StepCosts

AUTO: Literal["auto"] = "auto"
BlockSize = int | Literal["auto"]  # tokens of a block, anchor included, or the controller's choice

_PROBE_SHARE = 0.015  # of the time may go into finding out whether drafting has come to pay
_PROBE_WIDTH = 4
_PATIENCE, _MAX_PATIENCE = 8, 256  # plain rounds between the probes of a request
_MAX_ITERATIONS = 20
_MOST_KEPT, _MOST_KEPT_PLAIN = 3, 7  # steps; plain ones bring nothing new
_CLOSE = 3e-3  # relatively: a guess of the rate this good leaves the plan as good as the best


@dataclass(frozen=True)
class Candidate:
    """A request that decodes in the next step."""

    acceptance: Acceptance
    most: int  # tokens that its block may have at most


@dataclass(frozen=True)
class Plan:
    """What a step drafts and verifies, and what that should bring and cost."""

    block: int  # length of the blocks drafted; 1: nothing is drafted
    lengths: list[int]  # tokens verified of each request, anchor included; 1: plain decoding
    num_tokens: float
    seconds: float

    @property
    def rate(self) -> float:
        """Expected tokens a second."""
        return self.num_tokens / self.seconds


@dataclass(frozen=True)
class Others:
    """Requests of the same step whose block is not for the controller to choose."""

    lengths: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """Of the longest."""
        return max(self.lengths, default=1)

    @property
    def num_drafting(self) -> int:
        """How many draft."""
        return sum(length > 1 for length in self.lengths)


class Controller:
    """Plans steps for a drafter of at most ``max_block``; ``short_log_odds``: see :class:`AcceptanceModel`."""

    def __init__(self, max_block: int, costs: StepCosts, short_log_odds: float = 0.0) -> None:
        self.costs = costs
        self.blocks = drafted_blocks(max_block)
        self.acceptance = AcceptanceModel(max_block, short_log_odds)
        self._credit_s = 0.0  # saved for probes
        self._rate = 0.0  # of the last plan
        self._kept: tuple[list[Acceptance], Others | None, Plan] | None = None
        self._num_kept = 0  # steps for which it was the answer again

    def plan(self, candidates: Sequence[Candidate], others: Others | None = None) -> Plan:
        """The best step for ``candidates``; now and then a slightly worse one that tells more.

        A plan is the answer for a few steps of the same requests: chances move slowly, and planning takes time.
        """
        states = [candidate.acceptance for candidate in candidates]
        if self._kept and self._kept[:2] == (states, others):
            plan = self._kept[2]
            is_fresh = self._num_kept < (_MOST_KEPT if plan.block > 1 else _MOST_KEPT_PLAIN)
            if is_fresh and all(
                length <= one.most for length, one in zip(plan.lengths, candidates, strict=True)
            ):
                self._num_kept += 1
                for state, length in zip(states, plan.lengths, strict=True):
                    state.num_plain += length == 1
                return plan
        best, chosen = self._new_plan(candidates, others)
        self._num_kept = 0
        self._kept = (states, others, best) if chosen is best else None
        return chosen

    def _new_plan(self, candidates: Sequence[Candidate], others: Others | None) -> tuple[Plan, Plan]:
        """The best, and what is done."""
        search = _Search(self.acceptance, self.costs, candidates, others or Others(), self.blocks)
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

    def _with_probes(self, search: "_Search", best: Plan) -> Plan:
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
        lengths = list(best.lengths)
        for idx in due:
            lengths[idx] = min(width, search.candidates[idx].most)
        probes = [search.evaluate(lengths, block) for block in self.blocks if block >= width]
        probe = max(probes, key=lambda plan: plan.num_tokens - best.rate * plan.seconds)
        loss_s = probe.seconds - probe.num_tokens / best.rate
        if loss_s > self._credit_s:
            return best
        self._credit_s -= max(loss_s, 0.0)
        return probe


class _Search:
    """The best plan of one step. Tables hold all ``blocks`` at once: many small calls cost more than a few larger ones.

    [i] of the last axis stands for verified lengths of i + 2; nothing is gained beyond a block's own end.
    """

    def __init__(
        self,
        model: AcceptanceModel,
        costs: StepCosts,
        candidates: Sequence[Candidate],
        others: Others,
        blocks: Sequence[int],
    ) -> None:
        self.costs, self.candidates, self.others, self.blocks = costs, candidates, others, blocks
        states = [candidate.acceptance for candidate in candidates]
        self.num_rows = len(candidates) + len(others.lengths)
        self.fixed_s = costs.host_s + costs.logits_s * sum(length - 1 for length in others.lengths)
        self.token_s: Array = np.array([costs.logits_s + state.choose_s for state in states])
        self.most = max((candidate.most for candidate in candidates), default=1)
        if self.most < 2:
            return
        widths = np.arange(2, model.max_block + 1)
        self.survival = model.survival(states, blocks)  # [blocks, rows, widths]
        most: Array = np.array([candidate.most for candidate in candidates])[:, None]
        self.possible = np.where(widths <= most, self.survival, 0.0)
        counts = np.arange(1, len(states) + 1) + others.num_drafting
        self.draft_s = np.stack(
            [costs.draft_seconds(counts, max(block, others.width)) for block in blocks]
        )  # [blocks, number that drafts 1 .. rows]
        self.verify_s = costs.verify_seconds(self.num_rows, np.maximum(widths, others.width))

    def best(self, rate: float) -> Plan:
        """The plan of most tokens a second; ``rate`` is a first guess of it.

        Dinkelbach: at the highest rate, the plan of most ``tokens - rate * seconds`` is the one that reaches it.
        """
        plain = self.evaluate([1] * len(self.candidates), 1)
        if self.most < 2:
            return plain
        for _ in range(_MAX_ITERATIONS):
            value, block, lengths = self._best_at(rate)
            plan = self.evaluate(lengths, block) if value > plain.num_tokens - rate * plain.seconds else plain
            is_found = abs(plan.rate - rate) <= _CLOSE * rate
            rate = plan.rate
            if is_found:
                break
        return plan

    def evaluate(self, lengths: Sequence[int], block: int) -> Plan:
        """What a step with ``lengths`` brings and costs."""
        num_drafting = sum(length > 1 for length in lengths)
        tokens, seconds = float(self.num_rows), self.fixed_s
        width = max(*lengths, 1, self.others.width)
        seconds += float(self.costs.verify_seconds(self.num_rows, width))
        if num_drafting:
            idx = self.blocks.index(block)
            verified: Array = np.array(lengths)
            seconds += float(self.draft_s[idx, num_drafting - 1]) + float(self.token_s @ (verified - 1))
            counted = np.arange(1, self.survival.shape[2] + 1) < verified[:, None]
            tokens += float((self.survival[idx] * counted).sum())
        else:
            seconds += float(self.costs.draft_seconds(self.others.num_drafting, self.others.width))
        return Plan(block, list(lengths), tokens, seconds)

    def _best_at(self, rate: float) -> tuple[float, int, list[int]]:
        """The best way to draft when a second is worth ``rate`` tokens: (value, block, lengths).

        Rows then do not depend on each other but for the width of the forward and the number that drafts, so
        both are tried: the best rows first, each with every token that is worth its own cost.
        """
        gains = np.maximum(self.possible - (rate * self.token_s)[:, None], 0.0)
        of_row = gains.cumsum(axis=2)  # by width
        order = np.argsort(-of_row, axis=1, kind="stable")
        of_first = np.take_along_axis(of_row, order, axis=1).cumsum(axis=1)  # by number that drafts 1 .. rows
        net = of_first - rate * (self.draft_s[:, :, None] + self.verify_s)
        where, last, column = (int(i) for i in np.unravel_index(int(net.argmax()), net.shape))
        lengths = np.ones(gains.shape[1], dtype=np.int64)
        drafting = order[where, : last + 1, column]
        lengths[drafting] += (gains[where, drafting, : column + 1] > 0).sum(axis=1)
        value = float(net[where, last, column]) + self.num_rows - rate * self.fixed_s
        return value, self.blocks[where], lengths.tolist()


def drafted_blocks(max_block: int) -> tuple[int, ...]:
    """Lengths that may be drafted: the whole block, its half and its quarter."""
    return tuple(sorted({max_block, max(max_block // 2, 2), max(max_block // 4, 2)}, reverse=True))
