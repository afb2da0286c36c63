"""What every step drafts, and how much of that it verifies, so that expected tokens a second are highest.

A step drafts blocks of one length for some requests and verifies them, the anchors of all others beside them, in one
forward. Which requests draft how long a block is planned before (:meth:`Controller.plan`), how many of a draft's
tokens are verified is chosen when the drafter has told how sure it is of each (:meth:`Controller.select`). Costs and
acceptance are passed in: no clock here, and no tensors. A plan needs nothing of the step before it: what came of a
step may be told (:meth:`Controller.observe`) after the next one is planned. The formula and an example:
docs/controller.md.
"""

from collections.abc import Sequence

import numpy as np

from flashdraft.control.acceptance import Acceptance, AcceptanceModel, Drafted
from flashdraft.control.config import DEFAULTS, ControllerConfig
from flashdraft.control.search import Candidate, Plan, Search, padded_lengths, ragged_lengths
from flashdraft.control.step_costs import StepCosts

_MOST_TAUGHT = 8  # drafts of one recorded step that teach: it is over soon


class Controller:
    """Plans steps for a drafter of blocks of at most ``max_block``."""

    def __init__(self, max_block: int, costs: StepCosts, config: ControllerConfig = DEFAULTS) -> None:
        self.costs, self.config = costs, config
        self.acceptance = AcceptanceModel(drafted_blocks(max_block, config), config)
        self._credit_s = 0.0  # saved for probes
        self._look_s = 0.0  # so much of it is worth a look at what one costs
        self._rate = 0.0  # of the last plan
        self._forward_s: list[float] = []  # of that plan's step, by its tokens or by its width
        self._kept: tuple[Plan, Sequence[int]] | None = None  # with the other requests' blocks
        self._steps_left = 0  # for which it is the answer again
        self._num_plans = 0

    def kept(self, states: Sequence[Acceptance], others: Sequence[int] = ()) -> Plan | None:
        """The last plan where it still serves: planning takes time, and chances move slowly.

        It does for a few steps of the same requests, those that end meanwhile aside. Where steps are recorded, who
        joins meanwhile does as the others do.
        """
        if not self._steps_left or self._kept is None or self._kept[1] != others:
            return None
        plan = self._kept[0]
        if not self.costs.is_recorded and any(state not in plan.drafts for state in states):
            return None
        self._steps_left -= 1
        return plan

    def plan(self, candidates: Sequence[Candidate], others: Sequence[int] = ()) -> Plan:
        """The best step for ``candidates``; now and then a slightly worse one that tells more."""
        search = Search(self.acceptance, self.costs, candidates, others)
        best = search.best(self._rate)
        self._rate, self._forward_s, self._num_plans = best.rate, [], self._num_plans + 1
        chosen = self._with_probe(search, best)
        self._kept = best, others
        self._steps_left = self._plan_steps - 1
        for state, drafts in chosen.drafts.items():
            state.drafted_at = self._num_plans if drafts else state.drafted_at or self._num_plans
        return chosen

    def select(self, drafts: Sequence[Drafted], others: Sequence[int]) -> list[int]:
        """How many tokens of each draft are worth verifying, all of one block; ``others``: of the step's other rows.

        A recorded step is as wide as it was planned: it comes in few widths, and is over before all are weighed.
        """
        costs, rate = self.costs, self._rate
        if costs.is_recorded:
            return [draft.num_tokens for draft in drafts]
        chances = self.acceptance.foresee(drafts)
        prices = [rate * draft.request.choose_s for draft in drafts]
        worth = [[one - price for one in row] for row, price in zip(chances, prices, strict=True)]
        num_rows, num_others = len(drafts) + len(others), len(drafts) + sum(others)
        if costs.is_ragged:
            num_tokens = num_others + sum(map(len, worth))
            if len(self._forward_s) < num_tokens:
                self._forward_s = costs.forward_seconds(num_rows, np.arange(1, num_tokens + 1)).tolist()
            return ragged_lengths(worth, num_others, self._forward_s, rate)
        width = max([self.acceptance.max_block, *others])  # trees are wider than blocks
        if len(self._forward_s) < width:
            self._forward_s = costs.forward_seconds(num_rows, num_rows * np.arange(1, width + 1)).tolist()
        return padded_lengths(worth, max(others, default=1), self._forward_s, rate)

    @property
    def listens(self) -> bool:
        """Whether :meth:`observe` has something to learn: of recorded steps, one a plan teaches."""
        return not self.costs.is_recorded or not self._steps_left

    def observe(self, drafts: Sequence[Drafted]) -> None:
        """Take what came of a step's drafts, all of one block."""
        if self.costs.is_recorded:
            drafts = drafts[
                self._num_plans % -(-len(drafts) // _MOST_TAUGHT) :: -(-len(drafts) // _MOST_TAUGHT)
            ]
            self.acceptance.foresee(drafts)
        self.acceptance.observe(drafts)

    @property
    def _plan_steps(self) -> int:
        return self.config.recorded_plan_steps if self.costs.is_recorded else self.config.plan_steps

    def _with_probe(self, search: Search, best: Plan) -> Plan:
        """``best``, or with a draft of the request that has decoded plainly for longest, once that is paid for.

        While no step has shown what the costs say, there is no price: both kinds of steps are tried.
        """
        is_drafting = any(best.drafts.values())
        if is_drafting and self.costs.plain_trials:
            return search.plain()
        self._credit_s += self.config.probe_share * best.seconds * self._plan_steps
        self._credit_s = min(self._credit_s, max(best.seconds, self._look_s))
        is_trial = not is_drafting and self.costs.draft_trials > 0
        if self._credit_s < self._look_s and not is_trial:
            return best
        plain = [
            (state.drafted_at, row)
            for row, state in enumerate(search.states)
            if not best.drafts[state] and search.most[row] > 1
        ]
        if not plain:
            return best
        probe = search.best(best.rate, must=min(plain)[1])
        if is_trial:
            return probe
        loss_s = probe.seconds - probe.num_tokens / best.rate
        is_paid = loss_s <= self._credit_s
        self._credit_s -= max(loss_s, 0.0) if is_paid else 0.0
        self._look_s = min(loss_s, self._credit_s + best.seconds)
        return probe if is_paid else best


def drafted_blocks(max_block: int, config: ControllerConfig = DEFAULTS) -> tuple[int, ...]:
    """Lengths that may be drafted, the longest first."""
    blocks = {max(int(max_block * share), min(max_block, 2)) for share in config.block_shares}
    return tuple(sorted(blocks, reverse=True))
