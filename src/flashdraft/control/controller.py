"""What every step drafts, and how much of that it verifies, so that expected tokens a second are highest.

A step drafts blocks of one length for some requests and verifies them, the anchors of all others beside them, in one
forward. Which requests draft how long a block is planned before (:meth:`Controller.plan`), how many of a draft's
tokens are verified is chosen when the drafter has told how sure it is of each (:meth:`Controller.select`). Costs and
acceptance are passed in: no clock here, and no tensors. A plan needs nothing of the step before it: what came of a
step may be told (:meth:`Controller.observe`) after the next one is planned. The formula and an example:
docs/controller.md.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import inf

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flashdraft.control.acceptance import Acceptance, AcceptanceModel, Drafted
from flashdraft.control.config import DEFAULTS, ControllerConfig
from flashdraft.control.step_costs import Array, StepCosts

Counts = NDArray[np.int_]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a step drafts, and what that should bring with as much of it verified as is worth it."""

    block: int  # length of the blocks drafted; 1: nothing is drafted
    drafts: dict[Acceptance, bool]  # of each request that is planned for, whether it does
    rate: float  # expected tokens a second

    def length(self, request: Acceptance) -> int:
        """Tokens that ``request`` drafts, anchor included; one that joined since does as most of the others do."""
        usual = 2 * sum(self.drafts.values()) > len(self.drafts)
        return self.block if self.drafts.get(request, usual) else 1


class Controller:
    """Plans steps for a drafter of blocks of at most ``max_block``."""

    def __init__(self, max_block: int, costs: StepCosts, config: ControllerConfig = DEFAULTS) -> None:
        self.costs, self.config = costs, config
        self.acceptance = AcceptanceModel(drafted_blocks(max_block, config), config)
        self._kept: tuple[Plan, Sequence[int]] | None = None  # the last plan, with the other requests' blocks
        self._steps_left = self._num_plans = 0  # steps for which it is the answer again

    def plan(self, most: Mapping[Acceptance, int], others: Sequence[int] = ()) -> Plan:
        """The best step; now and then one that drafts where that has not paid, to see if it does.

        ``most``: of each request the tokens that its block may have. ``others``: blocks of the step's requests that are
        not to be planned. A plan serves a few steps of the same requests, those that end meanwhile aside: to plan takes
        time, and chances move slowly. Where steps are recorded, who joins meanwhile does as the others do.
        """
        if self._kept and self._steps_left and self._kept[1] == others:
            plan = self._kept[0]
            if self.costs.is_recorded or all(request in plan.drafts for request in most):
                self._steps_left -= 1
                return plan
        best, every, self._num_plans = self._best(most, others), self.config.probe_plans, self._num_plans + 1
        steps = self.config.recorded_plan_steps if self.costs.is_recorded else self.config.plan_steps
        self._kept, self._steps_left = (best, others), steps - 1
        plain = [row for row, one in enumerate(most) if most[one] > 1 and not best.drafts[one]]
        if not every or self._num_plans % every or not plain:
            return best
        probe = self._best(most, others, must=plain[self._num_plans // every % len(plain)])
        return probe if probe.rate > self.config.probe_rate * best.rate else best

    def select(self, drafts: Sequence[Drafted], others: Sequence[int]) -> list[int]:
        """How many tokens of each draft are worth verifying, all of one block; ``others``: of the step's other rows.

        A recorded step is as wide as it was planned: it comes in few widths, and is over before all are weighed.
        """
        costs, num_rows = self.costs, len(drafts) + len(others)
        if costs.is_recorded or self._kept is None:
            return [draft.num_tokens for draft in drafts]
        chances = self.acceptance.foresee(drafts)
        if costs.is_ragged:  # the surest tokens of all drafts
            gains = sorted((one for row in chances for one in row), reverse=True)
            num_tokens = len(drafts) + sum(others) + np.arange(len(gains) + 1)
        else:  # the first tokens of each
            gains = [sum(column) for column in zip_longest(*chances, fillvalue=0.0)]
            num_tokens = num_rows * np.maximum(1 + np.arange(len(gains) + 1), max(others, default=1))
        price_s = self._kept[0].rate * costs.forward_seconds(num_rows, num_tokens)
        best = int((np.cumsum([0.0, *gains]) - price_s).argmax())
        if not costs.is_ragged:
            return [min(best, len(row)) for row in chances]
        least = gains[best - 1] if best else inf
        return [sum(one >= least for one in row) for row in chances]

    @property
    def listens(self) -> bool:
        """Whether :meth:`observe` has something to learn: of recorded steps, one a plan teaches."""
        return not self.costs.is_recorded or not self._steps_left

    def observe(self, drafts: Sequence[Drafted]) -> None:
        """Take what came of a step's drafts, all of one block."""
        if self.costs.is_recorded:
            self.acceptance.foresee(drafts)
        self.acceptance.observe(drafts)

    def _best(self, most: Mapping[Acceptance, int], others: Sequence[int], must: int | None = None) -> Plan:
        """The plan of most tokens a second; row ``must`` drafts in it."""
        room, nobody = np.array([*most.values()]), np.zeros((1, 1), int)
        num_rows, chances = len(most) + len(others), self.acceptance.expected([*most])
        # Where there is no room for a whole block, its tokens are counted as if they were a chain.
        chances = np.where(np.arange(1, chances.shape[2] + 1) < room[:, None], chances, 0.0)
        rate = num_rows / float(self._step_s(len(most), 1, nobody, nobody, others)[0, 0])
        plain = Plan(1, dict.fromkeys(most, False), rate)
        if room.max(initial=0) < 2:
            return plain
        if self.costs.is_ragged:
            block, rows, rate = self._ragged(chances, others, must)
        else:
            block, rows, rate = self._padded(chances, others)
        drafts = {one: row in rows and room[row] > 1 for row, one in enumerate(most)}
        return plain if must is None and plain.rate > rate else Plan(block, drafts, rate)

    def _padded(self, chances: Array, others: Sequence[int]) -> tuple[int, Container[int], float]:
        """A step costs by its longest row, so that nobody gains by staying plain: all draft.

        A recorded step is verified whole, as it comes in few widths.
        """
        blocks, (_, num_rows, width) = np.array(self.acceptance.blocks)[:, None], chances.shape
        widths = np.arange(1, width + 1)  # draft tokens verified
        tokens = num_rows + len(others) + chances.sum(axis=1).cumsum(axis=1)  # [blocks, widths]
        may_be = widths == blocks - 1 if self.costs.is_recorded else widths < blocks
        num_drafting = np.array((chances[0, :, 0] > 0).sum())
        rates = np.where(may_be, tokens / self._step_s(num_rows, blocks, num_drafting, widths, others), 0.0)
        return self.acceptance.blocks[int(rates.max(axis=1).argmax())], range(num_rows), float(rates.max())

    def _ragged(
        self, chances: Array, others: Sequence[int], must: int | None
    ) -> tuple[int, Container[int], float]:
        """A step costs by its tokens: a price is set that one has to be worth; those with the most to win draft."""
        blocks, num_rows = np.array(self.acceptance.blocks)[:, None, None], chances.shape[1]
        # [blocks, prices, rows, tokens]
        taken = chances[:, None] > np.array(self.config.prices)[:, None, None]
        gains, counts = (chances[:, None] * taken).sum(axis=3), taken.sum(axis=3)
        is_first = np.arange(num_rows) == (-1 if must is None else must)
        order = np.argsort(-np.where(is_first, inf, gains), axis=2, kind="stable")
        gains, counts = (np.take_along_axis(one, order, axis=2).cumsum(axis=2) for one in (gains, counts))
        seconds = self._step_s(num_rows, blocks, np.arange(1, num_rows + 1), counts, others)
        rates = (num_rows + len(others) + gains) / seconds
        at = np.unravel_index(int(rates.argmax()), rates.shape)
        return self.acceptance.blocks[at[0]], order[at[0], at[1], : at[2] + 1].tolist(), float(rates[at])

    def _step_s(
        self, num_own: int, blocks: ArrayLike, num_drafting: Counts, num_verified: Counts, others: Sequence[int]
    ) -> Array:  # fmt: skip
        """Of steps in which so many of ``num_own`` draft ``blocks``: draft tokens of all, padded of each one."""
        num_rows, widest = num_own + len(others), max(others, default=1)
        num_tokens = num_verified + num_own + sum(others)
        if not self.costs.is_ragged:
            num_tokens = num_rows * np.maximum(1 + num_verified, widest)
        num_drafting = num_drafting + sum(length > 1 for length in others)
        draft_s = self.costs.draft_seconds(num_drafting, np.maximum(blocks, widest))
        return draft_s + self.costs.forward_seconds(num_rows, num_tokens)


def drafted_blocks(max_block: int, config: ControllerConfig = DEFAULTS) -> tuple[int, ...]:
    """Lengths that may be drafted, the longest first."""
    blocks = {max(int(max_block * share), min(max_block, 2)) for share in config.block_shares}
    return (*sorted(blocks, reverse=True),)
