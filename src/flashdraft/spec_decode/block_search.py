"""The search for the best step: of which requests to draft blocks, how long ones, and how much of them to verify.

Rows that are padded cost by the longest of them, rows without padding by the tokens that they have together; so
there are two searches. Each holds all lengths of a block at once: many small calls cost more than a few larger ones.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from flashdraft.spec_decode.acceptance import Acceptance, AcceptanceModel
from flashdraft.spec_decode.step_costs import Array, StepCosts

_MAX_ITERATIONS = 20
_CLOSE = 3e-3  # relatively: a guess of the rate this good leaves the plan as good as the best
_NUM_PRICES = 16


@dataclass(frozen=True)
class Candidate:
    """A request that decodes in the next step."""

    acceptance: Acceptance
    most: int  # tokens that its block may have at most
    num_pending: int = 0  # committed tokens that the drafter takes before it drafts


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


class Search(ABC):
    """The best plan of one step. A subclass knows what the target's forward costs."""

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
        logits_s = (
            0.0 if costs.is_ragged else costs.logits_s
        )  # without padding the forward's price holds all of them
        self.token_s: Array = np.array(
            [logits_s + state.choose_s for state in states]
        )  # of one more to verify
        self.observe_s: Array = costs.observe_token_s * np.array([one.num_pending for one in candidates])
        self.most = max((candidate.most for candidate in candidates), default=1)
        if self.most < 2:
            return
        self.lengths = np.arange(2, model.max_block + 1)
        self.survival = model.survival(states, blocks)  # [blocks, rows, lengths]
        most: Array = np.array([candidate.most for candidate in candidates])[:, None]
        self.possible = np.where(self.lengths <= most, self.survival, 0.0)
        counts = np.arange(1, len(states) + 1) + others.num_drafting
        self.draft_s = np.stack(
            [costs.draft_seconds(counts, max(block, others.width)) for block in blocks]
        )  # [blocks, number that drafts 1 .. rows]

    @abstractmethod
    def best(self, rate: float) -> Plan:
        """The plan of most tokens a second; ``rate`` is a first guess of it."""

    @abstractmethod
    def forward_s(self, verified: Array) -> float:
        """Seconds of the target's forward that verifies so many tokens of each row, ``token_s`` aside."""

    def evaluate(self, lengths: Sequence[int], block: int) -> Plan:
        """What a step with ``lengths`` brings and costs."""
        verified: Array = np.array(lengths, dtype=np.int64)
        drafts = verified > 1
        num_drafting = int(drafts.sum())
        tokens, seconds = float(self.num_rows), self.costs.host_s + self.forward_s(verified)
        if num_drafting:
            idx = self.blocks.index(block)
            seconds += float(self.draft_s[idx, num_drafting - 1])
            seconds += float(self.token_s @ (verified - 1)) + float(self.observe_s @ drafts)
            tokens += float((self.survival[idx] * (self.lengths <= verified[:, None])).sum())
        else:
            seconds += float(self.costs.draft_seconds(self.others.num_drafting, self.others.width))
        return Plan(block, list(lengths), tokens, seconds)


class PaddedSearch(Search):
    """The best plan of a step whose forward is as wide as the longest piece that it verifies."""

    @property
    def others_s(self) -> float:
        """Of the logits of the others' draft tokens."""
        return self.costs.logits_s * sum(length - 1 for length in self.others.lengths)

    def best(self, rate: float) -> Plan:
        """The plan of most tokens a second; ``rate`` is a first guess of it.

        Dinkelbach: at the highest rate, the plan of most ``tokens - rate * seconds`` is the one that reaches it.
        """
        plain = self.evaluate([1] * len(self.candidates), 1)
        if self.most < 2:
            return plain
        verify_s = self.costs.verify_seconds(self.num_rows, np.maximum(self.lengths, self.others.width))
        for _ in range(_MAX_ITERATIONS):
            value, block, lengths = self._best_at(rate, verify_s)
            plan = self.evaluate(lengths, block) if value > plain.num_tokens - rate * plain.seconds else plain
            is_found = abs(plan.rate - rate) <= _CLOSE * rate
            rate = plan.rate
            if is_found:
                break
        return plan

    def forward_s(self, verified: Array) -> float:
        """See :class:`Search`."""
        width = max(int(verified.max(initial=1)), self.others.width)
        return float(self.costs.verify_seconds(self.num_rows, width)) + self.others_s

    def _best_at(self, rate: float, verify_s: Array) -> tuple[float, int, list[int]]:
        """The best way to draft when a second is worth ``rate`` tokens: (value, block, lengths).

        Rows then do not depend on each other but for the width of the forward and the number that drafts, so
        both are tried: the best rows first, each with every token that is worth its own cost. ``verify_s``: by width.
        """
        gains = np.maximum(self.possible - (rate * self.token_s)[:, None], 0.0)
        of_row = gains.cumsum(axis=2) - (rate * self.observe_s)[:, None]  # by width
        order = np.argsort(-of_row, axis=1, kind="stable")
        of_first = np.take_along_axis(of_row, order, axis=1).cumsum(axis=1)  # by number that drafts 1 .. rows
        net = of_first - rate * (self.draft_s[:, :, None] + verify_s)
        where, last, column = (int(i) for i in np.unravel_index(int(net.argmax()), net.shape))
        lengths = np.ones(gains.shape[1], dtype=np.int64)
        drafting = order[where, : last + 1, column]
        lengths[drafting] += (gains[where, drafting, : column + 1] > 0).sum(axis=1)
        value = float(net[where, last, column]) + self.num_rows - rate * (self.costs.host_s + self.others_s)
        return value, self.blocks[where], lengths.tolist()


class RaggedSearch(Search):
    """The best plan of a step that computes no padding: it costs by its tokens, whosesoever they are.

    A price for a verified token settles which tokens of which rows are worth it. Every price between what there
    is to be had is tried, for every number of rows that draft, the ones with the most to win first.
    """

    def best(self, rate: float) -> Plan:
        """See :class:`Search`."""
        plain = self.evaluate([1] * len(self.candidates), 1)
        if self.most < 2:
            return plain
        worth = self.possible - rate * self.token_s[:, None]
        every = -np.sort(-worth.reshape(len(self.blocks), -1), axis=1)
        num_prices = min(every.shape[1], _NUM_PRICES)
        prices = np.maximum(every[:, np.linspace(0, every.shape[1] - 1, num_prices).astype(int)], 1e-9)
        taken = worth[:, None] >= prices[:, :, None, None]  # [blocks, prices, rows, lengths - 1]
        counts = taken.sum(axis=3)
        gains = (worth[:, None] * taken).sum(axis=3)
        values = gains - prices[:, :, None] * counts - rate * self.observe_s
        order = np.argsort(-values, axis=2, kind="stable")
        counts = np.take_along_axis(counts, order, axis=2)
        gains = np.take_along_axis(gains, order, axis=2)
        tokens = self.num_rows + gains.cumsum(axis=2)  # by number that drafts
        seconds = (
            self.costs.host_s
            + self._seconds_of(len(self.candidates) + counts.cumsum(axis=2))
            + self.draft_s[:, None]
            + self.observe_s[order].cumsum(axis=2)
        )
        rates = np.where(counts > 0, tokens / seconds, 0.0)
        where, price, last = (int(i) for i in np.unravel_index(int(rates.argmax()), rates.shape))
        chosen: Array = np.ones(len(self.candidates), dtype=np.int64)
        chosen[order[where, price, : last + 1]] += counts[where, price, : last + 1]
        plan = self.evaluate(chosen.tolist(), self.blocks[where])
        return plan if plan.rate > plain.rate else plain

    def forward_s(self, verified: Array) -> float:
        """See :class:`Search`."""
        return float(self._seconds_of(verified.sum()))

    def _seconds_of(self, num_tokens: ArrayLike) -> Array:
        """Of a forward that verifies so many tokens of the candidates, and the others'."""
        return self.costs.forward_seconds(self.num_rows, np.asarray(num_tokens) + sum(self.others.lengths))
