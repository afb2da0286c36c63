"""The search for the best step: of which requests to draft blocks, how long ones, and how much of them to verify.

Rows that are padded cost by the longest of them, rows without padding by the tokens that they have together; so
there are two searches. Each holds all lengths of a block at once: many small calls cost more than a few larger ones.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flashdraft.control.acceptance import Acceptance, AcceptanceModel, mean_survival
from flashdraft.control.step_costs import Array, StepCosts

Places = NDArray[np.intp]

_MAX_ITERATIONS = 20
_CLOSE, _ABOUT = (
    3e-3,
    0.1,
)  # relatively: guesses of the rate this good leave plans as good as the best, or almost
_TAKEN_FOR = 8  # rounds over which the price of a token that the drafter takes is spread: it serves them all


class Candidate(NamedTuple):
    """A request that decodes in the next step."""

    acceptance: Acceptance
    most: int  # tokens that its block may have at most
    num_pending: int = 0  # committed tokens that the drafter takes before it drafts


@dataclass(frozen=True)
class Plan:
    """What a step drafts, and what that should bring and cost with as much of it verified as is worth it."""

    block: int  # length of the blocks drafted; 1: nothing is drafted
    lengths: list[int]  # tokens of each request that may be verified, anchor included; 1: plain decoding
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


class Search(ABC):
    """The best plan of one step. A subclass knows what the target's forward costs.

    ``kept_promise``: what drafts bring of what they promise, where of several requests the most promising draft.
    """

    def __init__(
        self,
        model: AcceptanceModel,
        costs: StepCosts,
        candidates: Sequence[Candidate],
        others: Others,
        kept_promise: float = 1.0,
    ) -> None:
        self.kept_promise = kept_promise if len(candidates) > 1 else 1.0
        self.costs, self.candidates, self.others, self.blocks = costs, candidates, others, model.blocks
        states = [candidate.acceptance for candidate in candidates]
        self.num_rows = len(candidates) + len(others.lengths)
        self.token_s: Array = np.array([verified_token_s(costs, state) for state in states])
        pending: Array = np.array([one.num_pending for one in candidates])
        self.observe_s = costs.observe_token_s / _TAKEN_FOR * pending
        self.most: Array = np.array([candidate.most for candidate in candidates], dtype=np.int64)
        if not self.can_draft:
            return
        self.prices, self.offers = (
            model.prices,
            model.offers(states),
        )  # [rows, blocks, 2, prices, draft tokens]
        counts = np.arange(1, len(states) + 1) + others.num_drafting
        self.draft_s = np.stack(
            [costs.draft_seconds(counts, max(block, others.width)) for block in self.blocks]
        )  # [blocks, number that drafts 1 .. rows]

    @property
    def can_draft(self) -> bool:
        """Whether some candidate's answer has room for a draft."""
        return bool((self.most > 1).any())

    @abstractmethod
    def best(self, rate: float) -> Plan:
        """The plan of most tokens a second; ``rate`` is a first guess of it."""

    @abstractmethod
    def drafting(self, rows: Sequence[int], block: int, rate: float) -> Plan:
        """The best step in which just these ``rows`` draft a ``block``, where a second is worth ``rate`` tokens."""

    def plain(self) -> Plan:
        """No candidate drafts."""
        seconds = self.costs.host_s + self._plain_s()
        seconds += float(self.costs.draft_seconds(self.others.num_drafting, self.others.width))
        return Plan(1, [1] * len(self.candidates), float(self.num_rows), seconds)

    def lengths_of(self, rows: Sequence[int], block: int) -> list[int]:
        """What a plan tells of each candidate where just ``rows`` draft a ``block``."""
        lengths = [1] * len(self.candidates)
        for row in rows:
            lengths[row] = min(self.candidates[row].most, block)
        return lengths

    @abstractmethod
    def _plain_s(self) -> float:
        """Of the target's forward where no candidate drafts."""


class PaddedSearch(Search):
    """The best plan of a step whose forward is as wide as the longest piece that it verifies.

    How many tokens are worth it hangs on all rows together: what one draft turns out to be changes little of it, so
    rows are planned by the mean of what they may be.
    """

    def best(self, rate: float) -> Plan:
        """The plan of most tokens a second; ``rate`` is a first guess of it.

        Dinkelbach: at the highest rate, the plan of most ``tokens - rate * seconds`` is the one that reaches it.
        """
        plain = plan = self.plain()
        if not self.can_draft:
            return plain
        for _ in range(_MAX_ITERATIONS):
            plan = self._best_at(rate)
            if plan.num_tokens - rate * plan.seconds <= plain.num_tokens - rate * plain.seconds:
                plan = plain
            is_found = abs(plan.rate - rate) <= _CLOSE * rate
            rate = plan.rate
            if is_found:
                break
        return plan

    def drafting(self, rows: Sequence[int], block: int, rate: float) -> Plan:
        """See :class:`Search`."""
        where = self.blocks.index(block)
        net = self._gains(rate)[where, rows].cumsum(axis=1).sum(axis=0) - rate * self._verify_s
        return self._plan(where, rows, int(net.argmax()), rate)

    @cached_property
    def _mean(self) -> Array:
        """[blocks, rows, draft tokens]: the chance that a token is accepted; 0 where the answer has no room."""
        mean = mean_survival(self.offers)
        mean = np.where(np.arange(2, mean.shape[2] + 2) <= self.most[:, None, None], mean, 0.0)
        return mean.transpose(1, 0, 2)

    @cached_property
    def _verify_s(self) -> Array:
        """Of the target's forward by the draft tokens that a row may have, their logits aside."""
        widths = np.arange(2, self._mean.shape[2] + 2)
        seconds = self.costs.verify_seconds(self.num_rows, np.maximum(widths, self.others.width))
        return seconds + self.costs.logits_s * sum(length - 1 for length in self.others.lengths)

    def _gains(self, rate: float) -> Array:
        """[blocks, rows, draft tokens]: what each brings beyond its own cost, if that is anything."""
        return np.maximum(self._mean - (rate * self.token_s)[:, None], 0.0)

    def _best_at(self, rate: float) -> Plan:
        """The best way to draft when a second is worth ``rate`` tokens.

        Rows then do not depend on each other but for the width of the forward and the number that drafts, so
        both are tried: the best rows first, each with every token that is worth its own cost.
        """
        of_row = self._gains(rate).cumsum(axis=2) - (rate * self.observe_s)[:, None]  # by width
        order = np.argsort(-of_row, axis=1, kind="stable")
        of_first = np.take_along_axis(of_row, order, axis=1).cumsum(axis=1)  # by number that drafts 1 .. rows
        net = of_first - rate * (self.draft_s[:, :, None] + self._verify_s)
        where, last, column = (int(i) for i in np.unravel_index(int(net.argmax()), net.shape))
        return self._plan(where, order[where, : last + 1, column].tolist(), column, rate)

    def _plan(self, where: int, rows: Sequence[int], column: int, rate: float) -> Plan:
        """Block ``where`` for ``rows``, of which draft tokens up to ``column`` are verified if they are worth it."""
        taken = self._gains(rate)[where, rows, : column + 1] > 0
        tokens = self.num_rows + float((self._mean[where, rows, : column + 1] * taken).sum())
        seconds = self.costs.host_s + float(self.draft_s[where, len(rows) - 1] + self._verify_s[column])
        seconds += float(self.token_s[rows] @ taken.sum(axis=1)) + float(self.observe_s[rows].sum())
        lengths = self.lengths_of(rows, self.blocks[where])
        if self.costs.is_recorded:
            for row, count in zip(rows, taken.sum(axis=1).tolist(), strict=True):
                lengths[row] = 1 + count
        return Plan(self.blocks[where], lengths, tokens, seconds)

    def _plain_s(self) -> float:
        """See :class:`Search`."""
        others_s = self.costs.logits_s * sum(length - 1 for length in self.others.lengths)
        return float(self.costs.verify_seconds(self.num_rows, self.others.width)) + others_s


class RaggedSearch(Search):
    """The best plan of a step that computes no padding: it costs by its tokens, whosesoever they are.

    A price for a verified token settles which tokens of which rows are worth it. The model's are tried, for every
    number of rows that draft, the ones with the most to win first.
    """

    def best(self, rate: float) -> Plan:
        """See :class:`Search`. The guess tells what rows are worth whose drafts do not cost the same beforehand."""
        plain = plan = self.plain()
        if not self.can_draft:
            return plain
        for _ in range(_MAX_ITERATIONS):
            plan = self._best_at(rate)
            if plan.rate <= plain.rate:
                plan = plain
            is_found = not self.observe_s.any() or abs(plan.rate - rate) <= _ABOUT * rate
            rate = plan.rate
            if is_found:
                break
        return plan

    def _best_at(self, rate: float) -> Plan:
        gains, counts = self._offered  # [blocks, prices, rows]
        order = np.argsort(rate * self.observe_s - gains, axis=2, kind="stable")
        tokens, seconds = self._step(
            np.take_along_axis(gains, order, axis=2), np.take_along_axis(counts, order, axis=2), order, rate
        )
        seconds += self.draft_s[:, None]
        at = np.unravel_index(int((tokens / seconds).argmax()), tokens.shape)
        where, price, last = (int(i) for i in at)
        lengths = self.lengths_of(order[where, price, : last + 1].tolist(), self.blocks[where])
        return Plan(self.blocks[where], lengths, float(tokens[at]), float(seconds[at]))

    def drafting(self, rows: Sequence[int], block: int, rate: float) -> Plan:
        """See :class:`Search`."""
        where = self.blocks.index(block)
        order = np.array(rows, dtype=np.intp)
        gains, counts = (one[where][:, order] for one in self._offered)
        tokens, seconds = (one[:, -1] for one in self._step(gains, counts, order, rate))  # by price
        seconds = seconds + self.draft_s[where, len(rows) - 1]
        price = int((tokens - rate * seconds).argmax())
        return Plan(block, self.lengths_of(rows, block), float(tokens[price]), float(seconds[price]))

    @cached_property
    def _offered(self) -> tuple[Array, Array]:
        """What each price of a verified token buys of each row: what it brings beyond the price, and how many tokens,
        both [blocks, prices, rows]."""
        blocks: Array = np.array(self.blocks)
        # [rows, blocks]: the last draft token. A tree has more than its block; where there is no room for a whole
        # block, its tokens are counted as if they were a chain.
        whole = self.offers.shape[-1] - 1
        last = np.where(self.most[:, None] >= blocks, whole, self.most[:, None] - 2)
        rows = np.arange(len(self.candidates))[:, None]
        offered = self.offers[rows, np.arange(len(blocks)), :, :, np.maximum(last, 0)]
        offered = np.where((last >= 0)[:, :, None, None], self.kept_promise * offered, 0.0)
        return offered[:, :, 0].transpose(1, 2, 0), offered[:, :, 1].transpose(1, 2, 0)

    def _step(self, gains: Array, counts: Array, order: Places, rate: float) -> tuple[Array, Array]:
        """Tokens, and seconds but for the drafter's forward, of steps in which the first 1, 2, ... of the rows in
        ``order`` draft; the host's seconds for verified tokens are taken from the tokens."""
        tokens = gains + (self.prices[:, None] - rate * self.token_s[order]) * counts
        seconds = self._seconds_of(len(self.candidates) + counts.cumsum(axis=-1))
        seconds += self.costs.host_s + self.observe_s[order].cumsum(axis=-1)
        return self.num_rows + tokens.cumsum(axis=-1), seconds

    def _plain_s(self) -> float:
        """See :class:`Search`."""
        return float(self._seconds_of(len(self.candidates)))

    def _seconds_of(self, num_tokens: ArrayLike) -> Array:
        """Of a forward that verifies so many tokens of the candidates, and the others'."""
        return self.costs.forward_seconds(self.num_rows, np.asarray(num_tokens) + sum(self.others.lengths))


def verified_token_s(costs: StepCosts, request: Acceptance) -> float:
    """Seconds of one more verified token of ``request``, the forward's own aside."""
    # Without padding the forward's price holds all logits.
    return request.choose_s if costs.is_ragged else costs.logits_s + request.choose_s
