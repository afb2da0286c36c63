"""What every step drafts, and how much of that it verifies, so that expected tokens a second are highest.

A step drafts blocks of one length for some requests and verifies them, the anchors of all others beside them, in one
forward. Costs and acceptance are passed in: no clock here, and no tensors. A plan needs nothing of the step before it:
what came of a step may be told after the next one is planned. The formula and an example: docs/controller.md.
"""

from collections.abc import Mapping, Sequence
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
    """What a step drafts, and what that should bring and cost with as much of it verified as is worth it."""

    block: int  # length of the blocks drafted; 1: nothing is drafted
    drafts: dict[Acceptance, bool]  # of each request that is planned for, whether it does
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


class Controller:
    """Plans steps for a drafter of blocks of at most ``max_block``."""

    def __init__(self, max_block: int, costs: StepCosts, config: ControllerConfig = DEFAULTS) -> None:
        self.costs, self.config = costs, config
        self.acceptance = AcceptanceModel(drafted_blocks(max_block, config), config)
        self._kept = Plan(1, {}, 0.0, inf)
        self._others: Sequence[int] = ()  # blocks of requests that it was not for
        self._steps_left = self._num_plans = 0  # steps for which it is the answer again
        self._credit_s = self._probe_s = 0.0  # saved for probes; what the next one may cost

    def plan(self, most: Mapping[Acceptance, int], others: Sequence[int] = ()) -> Plan:
        """The best step; now and then a slightly worse one that tells more.

        ``most``: of each request the tokens that its block may have. ``others``: blocks of the step's requests that are
        not to be planned. A plan serves a few steps of these requests or fewer; recorded ones of those too that join.
        """
        stands = self.costs.is_recorded or most.keys() <= self._kept.drafts.keys()
        if self._steps_left and self._others == others and stands:
            self._steps_left -= 1
            return self._kept
        best, self._num_plans = self._best(most, others), self._num_plans + 1
        steps = self.config.recorded_plan_steps if self.costs.is_recorded else self.config.plan_steps
        self._credit_s += self.config.probe_share * steps * best.seconds
        plan = self._with_probe(best, most, others)
        if self.costs.is_recorded and plan is not best:
            best, steps = plan, self.config.recorded_probe_steps
        self._kept, self._others, self._steps_left = best, others, steps - 1
        return plan

    def select(self, drafts: Sequence[Drafted], others: Sequence[int]) -> list[int]:
        """How many tokens of each draft are worth verifying, all of one block; ``others``: of the step's other rows.

        A recorded step is as wide as it was planned: it comes in few widths, and is over before all are weighed.
        """
        costs, num_rows = self.costs, len(drafts) + len(others)
        if costs.is_recorded:
            return [draft.num_tokens for draft in drafts]
        chances = self.acceptance.foresee(drafts)
        if costs.is_ragged:  # the surest tokens of all drafts
            gains = sorted((one for row in chances for one in row), reverse=True)
            num_tokens = len(drafts) + sum(others) + np.arange(len(gains) + 1)
        else:  # the first tokens of each
            gains = [sum(column) for column in zip_longest(*chances, fillvalue=0.0)]
            num_tokens = num_rows * np.maximum(1 + np.arange(len(gains) + 1), max(others, default=1))
        price_s = self._kept.rate * costs.verify(num_rows, num_tokens)
        best = int((np.cumsum([0.0, *gains]) - price_s).argmax())
        if not costs.is_ragged:
            return [min(best, len(row)) for row in chances]
        least = gains[best - 1] if best else inf
        return [sum(one >= least for one in row) for row in chances]

    def observe(self, drafts: Sequence[Drafted]) -> None:
        """Take what came of a step's drafts, all of one block; of recorded steps, one a plan teaches."""
        if not drafts or (self.costs.is_recorded and self._steps_left):
            return
        if self.costs.is_recorded:
            every = -(-len(drafts) // self.config.most_taught)
            drafts = drafts[self._num_plans % every :: every]
            self.acceptance.foresee(drafts)
        self.acceptance.observe(drafts)

    def _with_probe(self, best: Plan, most: Mapping[Acceptance, int], others: Sequence[int]) -> Plan:
        """``best``, or a step that tells more: once that is paid for, or while no step has shown what the costs say."""
        if self.costs.plain_trials and any(best.drafts.values()):
            return self._plain(most, others)
        plain = [row for row, one in enumerate(most) if most[one] > 1 and not best.drafts[one]]
        credit_s = inf if self.costs.draft_trials else self._credit_s
        if plain and credit_s >= self._probe_s:
            probe = self._best(most, others, must=plain[self._num_plans % len(plain)])
            loss_s = probe.seconds - probe.num_tokens / best.rate
            self._probe_s = loss_s * (self.config.recorded_probe_steps if self.costs.is_recorded else 1)
            if credit_s >= self._probe_s:
                self._credit_s = 0.0
                return probe
        return best

    def _plain(self, most: Mapping[Acceptance, int], others: Sequence[int]) -> Plan:
        seconds = self._step_s(len(most), others, 1, np.array(0), np.array(0))
        return Plan(1, dict.fromkeys(most, False), len(most) + len(others), float(seconds))

    def _best(self, most: Mapping[Acceptance, int], others: Sequence[int], must: int | None = None) -> Plan:
        """The plan of most tokens a second; row ``must`` drafts in it.

        A step without padding costs by its tokens: a price is set that each has to be worth, and the requests with the
        most to win draft. A padded one costs by its longest row, so that nobody gains by staying plain.
        """
        costs, model, room, num_rows = self.costs, self.acceptance, np.array([*most.values()]), len(most)
        plain = self._plain(most, others)
        blocks, chances = np.array(model.blocks)[:, None, None], model.expected([*most])
        # Where there is no room for a whole block, its tokens are counted as if they were a chain.
        places = np.arange(1, chances.shape[2] + 1)
        chances = chances * ((places < room[:, None]) | (room[:, None] >= blocks))
        widths = (places[-1:] if costs.is_recorded else places)[:, None, None]
        least = np.array(self.config.prices)[:, None, None]
        # [blocks, prices or widths, rows, tokens]
        taken = chances[:, None] > least if costs.is_ragged else (places <= widths) & (chances[:, None] > 0)
        gains, counts = (chances[:, None] * taken).sum(axis=3), taken.sum(axis=3)
        order = np.argsort(-np.where(np.arange(num_rows) == must, inf, gains), axis=2, kind="stable")
        gains, counts = (np.take_along_axis(one, order, axis=2).cumsum(axis=2) for one in (gains, counts))
        if not costs.is_ragged:
            counts = np.minimum(widths[..., 0], blocks - 1)
        seconds = self._step_s(num_rows, others, blocks, (room[order] > 1).cumsum(axis=2), counts)
        tokens = num_rows + len(others) + gains
        rates = tokens / seconds
        rates[..., : 0 if costs.is_ragged else -1] = 0.0
        at = np.unravel_index(int(rates.argmax()), rates.shape)
        drafting = set(order[at[0], at[1], : at[2] + 1].tolist())
        drafts = {one: row in drafting and most[one] > 1 for row, one in enumerate(most)}
        best = Plan(model.blocks[at[0]], drafts, float(tokens[at]), float(seconds[at]))
        return plain if must is None and plain.rate > best.rate else best

    def _step_s(
        self, num_own: int, others: Sequence[int], blocks: ArrayLike, num_drafting: Counts, num_verified: Counts
    ) -> Array:  # fmt: skip
        """Of steps in which so many of ``num_own`` draft ``blocks``: draft tokens of all, padded of each one."""
        num_rows, widest = num_own + len(others), max(others, default=1)
        num_tokens = num_verified + num_own + sum(others)
        if not self.costs.is_ragged:
            num_tokens = num_rows * np.maximum(1 + num_verified, widest)
        num_drafting = num_drafting + sum(length > 1 for length in others)
        draft_s = self.costs.draft_seconds(num_drafting, np.maximum(blocks, widest))
        return draft_s + self.costs.verify(num_rows, num_tokens)


def drafted_blocks(max_block: int, config: ControllerConfig = DEFAULTS) -> tuple[int, ...]:
    """Lengths that may be drafted, the longest first."""
    blocks = {max(int(max_block * share), min(max_block, 2)) for share in config.block_shares}
    return (*sorted(blocks, reverse=True),)
