"""The search for the best step: of which requests to draft blocks, how long ones, and how much of them to verify.

Every plan is tried that drafts one length of block for the requests with the most to win. What of the drafts is
verified is the one thing in which rows with and without padding differ: a step without padding costs by its tokens, so
a price is set that a token has to be worth; a padded one by its longest row, so a width is set.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flashdraft.control.acceptance import Acceptance, AcceptanceModel
from flashdraft.control.step_costs import Array, StepCosts

_MOST_TURNS = 20  # the price of a second is that of the plan before, until it is the plan's own


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


class Search:
    """The best plan of one step."""

    def __init__(
        self,
        model: AcceptanceModel,
        costs: StepCosts,
        candidates: Sequence[Candidate],
        others: Others,
    ) -> None:
        self.costs, self.candidates, self.others, self.blocks = costs, candidates, others, model.blocks
        states = [candidate.acceptance for candidate in candidates]
        self.num_rows = len(candidates) + len(others.lengths)
        self.token_s: Array = np.array([verified_token_s(costs, state) for state in states])
        pending: Array = np.array([one.num_pending for one in candidates])
        self.observe_s = costs.observe_token_s / model.config.observed_rounds * pending
        self.most: Array = np.array([candidate.most for candidate in candidates], dtype=np.int64)
        self.can_draft = bool((self.most > 1).any())
        if not self.can_draft:
            return
        chances = model.expected(states).transpose(1, 0, 2)
        # Where there is no room for a whole block, its tokens are counted as if they were a chain.
        places = np.arange(1, chances.shape[2] + 1)
        is_whole = self.most[:, None] >= np.array(self.blocks)[:, None, None]
        self.chances = np.where(
            is_whole | (places < self.most[:, None]), chances, 0.0
        )  # [blocks, rows, tokens]
        counts = np.arange(1, len(states) + 1) + others.num_drafting
        self.draft_s = np.stack(
            [costs.draft_seconds(counts, max(block, others.width)) for block in self.blocks]
        )  # [blocks, number that drafts 1 .. rows]
        self.prices: Array = np.array(model.config.prices)

    def best(self, rate: float) -> Plan:
        """The plan of most tokens a second; ``rate`` is a first guess of it."""
        plain = plan = self.plain()
        if not self.can_draft:
            return plain
        for _ in range(_MOST_TURNS):
            plans = [self._best_of(where, rate) for where in range(len(self.blocks))]
            before, plan = plan, max([plain, *plans], key=lambda one: one.rate)
            rate = plan.rate
            if plan == before:
                break
        return plan

    def plain(self) -> Plan:
        """No candidate drafts."""
        seconds = self.costs.host_s + float(
            self.costs.draft_seconds(self.others.num_drafting, self.others.width)
        )
        seconds += float(self._forward_s(np.zeros(1), np.zeros(1))[0])
        return Plan(1, [1] * len(self.candidates), float(self.num_rows), seconds)

    def drafting(self, rows: Sequence[int], block: int, rate: float) -> Plan:
        """The best step in which just these ``rows`` draft a ``block``, where a second is worth ``rate`` tokens."""
        where = self.blocks.index(block)
        taken, gains, counts = self._options(where, rate)
        own = np.array(rows, dtype=np.intp)
        tokens, seconds = self._totals(where, gains[:, own], counts[:, own], np.tile(own, (len(gains), 1)))
        at = int((tokens[:, -1] - rate * seconds[:, -1]).argmax())
        return self._plan(where, rows, taken[at], float(tokens[at, -1]), float(seconds[at, -1]))

    def _best_of(self, where: int, rate: float) -> Plan:
        """The plan of most tokens a second with block ``where``: those with the most to win draft."""
        taken, gains, counts = self._options(where, rate)
        worth = gains - rate * (self.token_s * counts + self.observe_s)
        order = np.argsort(-worth, axis=1, kind="stable")
        gains, counts = (np.take_along_axis(one, order, axis=1) for one in (gains, counts))
        tokens, seconds = self._totals(where, gains, counts, order)
        at = np.unravel_index(int((tokens / seconds).argmax()), tokens.shape)
        option, last = int(at[0]), int(at[1])
        rows = order[option, : last + 1].tolist()
        return self._plan(where, rows, taken[option], float(tokens[at]), float(seconds[at]))

    def _options(self, where: int, rate: float) -> tuple[Array, Array, Array]:
        """Ways to verify drafts: which tokens each takes, what they bring and how many they are, by row.

        [options, rows, tokens], and twice [options, rows].
        """
        chances = self.chances[where]
        own_price = (rate * self.token_s)[:, None]
        if self.costs.is_ragged:
            taken = chances > np.maximum(self.prices[:, None, None], own_price)
        else:
            num_tokens = chances.shape[1]
            taken = np.tri(num_tokens, dtype=bool)[:, None] & (chances > own_price)
        return taken, (chances * taken).sum(axis=2), taken.sum(axis=2).astype(np.float64)

    def _totals(
        self, where: int, gains: Array, counts: Array, order: NDArray[np.intp]
    ) -> tuple[Array, Array]:
        """Tokens and seconds of steps in which the first 1, 2, ... of the rows in ``order`` draft, [options, rows]."""
        totals = counts.cumsum(axis=1)
        widths = np.maximum.accumulate(counts, axis=1)
        seconds = self._forward_s(totals, widths) + self.costs.host_s
        seconds += self.draft_s[where, : counts.shape[1]]
        seconds += (self.token_s[order] * counts + self.observe_s[order]).cumsum(axis=1)
        return self.num_rows + gains.cumsum(axis=1), seconds

    def _forward_s(self, num_drafted: Array, width: Array) -> Array:
        """Of a forward that verifies so many draft tokens of the candidates together, and of one at most."""
        others = self.others
        if self.costs.is_ragged:
            num_tokens = len(self.candidates) + sum(others.lengths) + num_drafted
            return self.costs.forward_seconds(self.num_rows, num_tokens)
        seconds = self.costs.verify_seconds(self.num_rows, np.maximum(1 + width, others.width))
        return seconds + self.costs.logits_s * sum(length - 1 for length in others.lengths)

    def _plan(self, where: int, rows: Sequence[int], taken: Array, tokens: float, seconds: float) -> Plan:
        lengths = [1] * len(self.candidates)
        counts = taken.sum(axis=1).tolist()
        for row in rows:
            # Recorded steps are planned whole; of others a draft that is there tells how much of it is worth it.
            planned = 1 + counts[row] if self.costs.is_recorded else self.blocks[where]
            lengths[row] = min(self.candidates[row].most, planned)
        return Plan(self.blocks[where], lengths, tokens, seconds)


def verified_token_s(costs: StepCosts, request: Acceptance) -> float:
    """Seconds of one more verified token of ``request``, the forward's own aside."""
    # Without padding the forward's price holds all logits.
    return request.choose_s if costs.is_ragged else costs.logits_s + request.choose_s
