"""What every step drafts, and how much of that it verifies, so that expected tokens a second are highest.

A step drafts blocks of one length for some requests and verifies them, the anchors of all others beside them, in one
forward. Which requests draft how long a block is planned before (:meth:`Controller.plan`), how many of a draft's
tokens are verified is chosen when the drafter has told how sure it is of each (:meth:`Controller.select`). Costs and
acceptance are passed in: no clock here, and no tensors. The formula and an example: docs/controller.md.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flashdraft.control.acceptance import Acceptance, AcceptanceModel, Drafted
from flashdraft.control.block_search import Candidate, Others, Plan, Search, verified_token_s
from flashdraft.control.config import DEFAULTS, ControllerConfig
from flashdraft.control.step_costs import StepCosts
from flashdraft.control.verified_lengths import padded_lengths, ragged_lengths


class Controller:
    """Plans steps for a drafter of blocks of at most ``max_block``."""

    def __init__(self, max_block: int, costs: StepCosts, config: ControllerConfig = DEFAULTS) -> None:
        self.costs, self.config = costs, config
        self.blocks = drafted_blocks(max_block, config)
        self.acceptance = AcceptanceModel(self.blocks, config)
        self._credit_s = 0.0  # saved for probes
        self._rate = 0.0  # of the last plan
        self._forward_s: list[float] = []  # of that plan's step, by its tokens or by its width
        self._kept: tuple[dict[Acceptance, int], Others | None, Plan] | None = None
        self._steps_left = 0  # for which it is the answer again
        self._num_in_vain = 0  # the last steps of which no draft token was accepted

    def plan(self, candidates: Sequence[Candidate], others: Others | None = None) -> Plan:
        """The best step for ``candidates``; now and then a slightly worse one that tells more.

        A plan is the answer for a few steps of the same requests, those that end meanwhile aside: chances move
        slowly, and planning takes time. Where steps are recorded, who joins meanwhile does as the others do.
        """
        states = [candidate.acceptance for candidate in candidates]
        if self._kept and self._steps_left and self._kept[1] == others:
            kept, _, plan = self._kept
            are_known = [state in kept for state in states]
            if all(are_known) or (self.costs.is_recorded and any(are_known)):
                self._steps_left -= 1
                usual = max(plan.lengths)
                lengths = [min(kept.get(one.acceptance, usual), one.most) for one in candidates]
                self._credit_s += self.config.probe_share * plan.seconds
                return self._told(candidates, replace(plan, lengths=lengths))
        search = Search(self.acceptance, self.costs, candidates, others or Others())
        best = search.best(self._rate)
        self._rate, self._forward_s = best.rate, []
        chosen = self._with_probe(search, best)
        self._kept = (dict(zip(states, best.lengths, strict=True)), others, best) if chosen is best else None
        is_even = len({length > 1 for length in best.lengths}) < 2
        self._steps_left = (self.config.plan_steps if is_even else self.config.uneven_plan_steps) - 1
        return self._told(candidates, chosen)

    def select(self, drafts: Sequence[Drafted], others: Others) -> list[int]:
        """How many tokens of each draft are worth verifying, all of one block; ``others``: the step's other rows.

        A recorded step is as wide as it was planned: it comes in few widths, and is over before all are weighed.
        """
        costs, rate = self.costs, self._rate
        if costs.is_recorded:
            return [draft.num_tokens for draft in drafts]
        chances = self.acceptance.foresee(drafts)
        prices = [rate * verified_token_s(costs, draft.request) for draft in drafts]
        worth = [[one - price for one in row] for row, price in zip(chances, prices, strict=True)]
        num_rows, num_others = len(drafts) + len(others.lengths), len(drafts) + sum(others.lengths)
        if costs.is_ragged:
            num_tokens = num_others + sum(map(len, worth))
            if len(self._forward_s) < num_tokens:
                self._forward_s = costs.forward_seconds(num_rows, np.arange(1, num_tokens + 1)).tolist()
            return ragged_lengths(worth, num_others, self._forward_s, rate)
        width = max(self.blocks[0], others.width)  # trees are wider than blocks
        if len(self._forward_s) < width:
            self._forward_s = costs.verify_seconds(num_rows, np.arange(1, width + 1)).tolist()
        return padded_lengths(worth, others.width, self._forward_s, rate)

    def observe(self, drafts: Sequence[Drafted]) -> None:
        """Take what came of a step's drafts, all of one block."""
        if not self.costs.is_recorded:
            self.acceptance.observe(drafts)
            self._num_in_vain = 0 if any(draft.num_accepted for draft in drafts) else self._num_in_vain + 1
            if self._num_in_vain >= self.config.most_in_vain:
                self._steps_left = 0  # that was not what the plan hoped for
        elif self._kept is None or not self._steps_left:  # a probe, or the last step of a plan
            self.acceptance.foresee(drafts)
            self.acceptance.observe(drafts)
        for draft in drafts:
            if draft.is_all_accepted:
                draft.request.patience = self.config.patience  # a probe that found nothing but good

    def _told(self, candidates: Sequence[Candidate], plan: Plan) -> Plan:
        for candidate, length in zip(candidates, plan.lengths, strict=True):
            candidate.acceptance.num_plain += length == 1
        return plan

    def _with_probe(self, search: Search, best: Plan) -> Plan:
        """``best``, or with a draft of the request that has decoded plainly for longest, once that is paid for."""
        self._credit_s = min(self._credit_s + self.config.probe_share * best.seconds, best.seconds)
        due = [
            (candidate.acceptance.num_plain, idx)
            for idx, (candidate, length) in enumerate(zip(search.candidates, best.lengths, strict=True))
            if length == 1
            and candidate.most > 1
            and candidate.acceptance.num_plain >= candidate.acceptance.patience
        ]
        if not due:
            return best
        drafting = [idx for idx, length in enumerate(best.lengths) if length > 1]
        _, longest = max(due)
        block = best.block if drafting else self.blocks[-1]
        probe = search.drafting([*drafting, longest], block, best.rate)
        loss_s = probe.seconds - probe.num_tokens / best.rate
        if loss_s > self._credit_s:
            return best
        self._credit_s -= max(loss_s, 0.0)
        state = search.candidates[longest].acceptance
        state.patience = min(2 * state.patience, self.config.most_patience)
        return probe


def drafted_blocks(max_block: int, config: ControllerConfig = DEFAULTS) -> tuple[int, ...]:
    """Lengths that may be drafted, the longest first."""
    return tuple(
        sorted(
            {max(int(max_block * share), min(max_block, 2)) for share in config.block_shares}, reverse=True
        )
    )
