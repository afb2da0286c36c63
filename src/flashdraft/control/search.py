"""The search for the best step: who drafts how long a block before it, how much of the drafts is verified within it.

A step without padding costs by its tokens: a price is set that a token has to be worth, and the requests with the most
to win draft. A padded one costs by its longest row, so that nobody gains by staying plain: all draft, or none does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flashdraft.control.acceptance import Acceptance, AcceptanceModel
from flashdraft.control.step_costs import Array, StepCosts

Counts = NDArray[np.int_]


class Candidate(NamedTuple):
    """A request that decodes in the next step."""

    acceptance: Acceptance
    most: int  # tokens that its block may have at most


@dataclass(frozen=True, eq=False)
class Plan:
    """What a step drafts, and what that should bring and cost with as much of it verified as is worth it."""

    block: int  # length of the blocks drafted; 1: nothing is drafted
    drafts: dict[Acceptance, bool]  # of each candidate, whether it does
    num_tokens: float
    seconds: float

    @property
    def rate(self) -> float:
        """Expected tokens a second."""
        return self.num_tokens / self.seconds

    def length(self, request: Acceptance) -> int:
        """Tokens that ``request`` drafts, anchor included; one that joined since does as most of the others do."""
        usual = 2 * sum(self.drafts.values()) > len(self.drafts)
        return self.block if self.drafts.get(request, usual) else 1


class Search:
    """The best plan of one step. ``others``: blocks of its requests that are not the controller's to choose."""

    def __init__(
        self, model: AcceptanceModel, costs: StepCosts, candidates: Sequence[Candidate], others: Sequence[int]
    ) -> None:
        self.costs, self.blocks, self.others, self.prices = costs, model.blocks, others, model.config.prices
        self.states = [candidate.acceptance for candidate in candidates]
        self.num_rows = len(candidates) + len(others)
        self.choose_s = np.array([state.choose_s for state in self.states])
        self.most = np.array([candidate.most for candidate in candidates])
        chances = model.expected(self.states)
        # Where there is no room for a whole block, its tokens are counted as if they were a chain.
        places = np.arange(1, chances.shape[2] + 1)
        is_whole = self.most[:, None] >= np.array(self.blocks)[:, None, None]
        self.chances = np.where(
            is_whole | (places < self.most[:, None]), chances, 0.0
        )  # [blocks, rows, tokens]

    def best(self, rate: float, must: int | None = None) -> Plan:
        """The plan of most tokens a second, where a second is worth about ``rate``; row ``must`` drafts in it."""
        plain = self.plain()
        if self.most.max(initial=0) < 2:
            return plain
        drafting = self._ragged(rate, must) if self.costs.is_ragged else self._padded()
        return plain if must is None and plain.rate > drafting.rate else drafting

    def plain(self) -> Plan:
        """Nobody drafts."""
        nobody = np.zeros((1, 1), int)
        seconds = float(self._step_s(1, nobody, nobody)[0, 0])
        return Plan(1, dict.fromkeys(self.states, False), float(self.num_rows), seconds)

    def _padded(self) -> Plan:
        """All draft. How much of a recorded step is verified is known before, as it comes in few widths."""
        can, widths = self.most > 1, np.arange(1, self.blocks[0])  # draft tokens verified
        tokens = self.num_rows + self.chances.sum(axis=1).cumsum(axis=1)  # [blocks, widths]
        seconds = self._step_s(np.array(self.blocks)[:, None], can.sum(), widths)
        seconds = seconds + self.choose_s.sum() * widths
        # Not recorded, a step is as wide as its drafts turn out to be worth.
        last = np.array(self.blocks)[:, None] - 1
        may_be = widths == last if self.costs.is_recorded else widths <= last
        where, at = np.unravel_index(int(np.where(may_be, tokens / seconds, 0.0).argmax()), tokens.shape)
        drafts = dict(zip(self.states, can.tolist(), strict=True))
        return Plan(self.blocks[where], drafts, float(tokens[where, at]), float(seconds[where, at]))

    def _ragged(self, rate: float, must: int | None) -> Plan:
        """Those with the most to win draft."""
        prices = np.array(self.prices)[:, None, None]
        own_s = rate * self.choose_s
        taken = self.chances[:, None] > np.maximum(prices, own_s[:, None])  # [blocks, prices, rows, tokens]
        gains, counts = (self.chances[:, None] * taken).sum(axis=3), taken.sum(axis=3)
        worth = gains - own_s * counts
        if must is not None:
            worth[..., must] = inf
        order = np.argsort(-worth, axis=2, kind="stable")
        gains, counts = (np.take_along_axis(one, order, axis=2) for one in (gains, counts))
        blocks, num_drafting = np.array(self.blocks)[:, None, None], np.arange(1, len(self.states) + 1)
        seconds = self._step_s(blocks, num_drafting, counts.cumsum(axis=2))
        seconds = seconds + (self.choose_s[order] * counts).cumsum(axis=2)
        tokens = self.num_rows + gains.cumsum(axis=2)
        at = np.unravel_index(int((tokens / seconds).argmax()), tokens.shape)
        drafting = set(order[at[0], at[1], : at[2] + 1].tolist())
        drafts = {state: row in drafting and self.most[row] > 1 for row, state in enumerate(self.states)}
        return Plan(self.blocks[at[0]], drafts, float(tokens[at]), float(seconds[at]))

    def _step_s(self, blocks: ArrayLike, num_drafting: Counts, num_verified: Counts) -> Array:
        """Of steps in which so many candidates draft ``blocks``: draft tokens of all of them, padded of each one."""
        costs, others = self.costs, self.others
        num_tokens = num_verified + len(self.states) + sum(others)
        if not costs.is_ragged:
            num_tokens = self.num_rows * np.maximum(1 + num_verified, max(others, default=1))
        num_drafting = num_drafting + sum(length > 1 for length in others)
        draft_s = costs.draft_seconds(num_drafting, np.maximum(blocks, max(others, default=1)))
        return costs.host_s + draft_s + costs.forward_seconds(self.num_rows, num_tokens)


def ragged_lengths(
    worth: Sequence[Sequence[float]], num_others: int, seconds: Sequence[float], rate: float
) -> list[int]:
    """How many tokens of drafts that are there are worth verifying in a forward without padding.

    ``worth``: of each draft the chances that a token and all before it are accepted, less the token's own cost; they
    fall. The forward takes ``seconds[n - 1]`` for n tokens, ``num_others`` of them anyway; ``rate``: tokens that a
    second is worth. In lists: every step does it.
    """
    every = sorted((one for row in worth for one in row if one > 0), reverse=True)
    best, price, gained = -rate * seconds[num_others - 1], inf, 0.0
    for count, one in enumerate(every[: len(seconds) - num_others]):
        gained += one
        value = gained - rate * seconds[num_others + count]
        if value > best:
            best, price = value, one
    return [sum(one >= price for one in row) for row in worth]


def padded_lengths(
    worth: Sequence[Sequence[float]], width: int, seconds: Sequence[float], rate: float
) -> list[int]:
    """For one as wide as its longest row: it takes ``seconds[n - 1]`` if that is n, and others' rows have ``width``."""
    best, last, gained = -rate * seconds[width - 1], 0, 0.0
    for column in range(max(map(len, worth), default=0)):
        gained += sum(max(row[column], 0.0) for row in worth if column < len(row))
        value = gained - rate * seconds[max(column + 2, width) - 1]
        if value > best:
            best, last = value, column + 1
    return [sum(one > 0 for one in row[:last]) for row in worth]
