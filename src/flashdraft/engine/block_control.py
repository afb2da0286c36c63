"""The controller within the engine: measures the machine once, plans each step, and learns from it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flashdraft.cache.paged_kv_cache import power_of_two
from flashdraft.control.acceptance import Drafted
from flashdraft.control.controller import Controller, Plan
from flashdraft.control.step_costs import StepCosts
from flashdraft.engine.kept_costs import kept_or_measured
from flashdraft.engine.model_runner import ModelRunner
from flashdraft.engine.recorded_trees import NO_TREES, ROUND_TREES, STEP_TREES
from flashdraft.engine.request import Request
from flashdraft.spec_decode.drafter import Drafter
from flashdraft.spec_decode.tree import DraftTree

_MOST_ROWS, MOST_RECORDED_ROWS = 8, 32  # of measured steps; from there on seconds grow by tokens

# A request that drafted: its block's length, the whole draft, tokens verified, places of those accepted.
Seen = tuple[Request, int, DraftTree, int, Sequence[int]]


class BlockControl:
    """Chooses the blocks of requests that leave it to the engine. ``costs``: measured when first needed if None.

    ``trusts_drafter``: what is accepted has to do with the drafter's confidence, as it has unless it is simulated.
    """

    def __init__(
        self, runner: ModelRunner, drafter: Drafter | None = None, costs: StepCosts | None = None,
        trusts_drafter: bool = True,
    ) -> None:  # fmt: skip
        self.runner, self.trusts_drafter = runner, trusts_drafter
        self.max_block = drafter.max_block_size if drafter else 1
        # Recorded trees of recurrent states cost 4 to 9 % more than chains at one request on an H200, and no drafter
        # has shown what they bring there: `auto` leaves them to who asks.
        pays = not (runner.states and runner.backend.is_recorded)
        self.draws_trees = trusts_drafter and drafter is not None and drafter.can_branch and pays
        few = ROUND_TREES if runner.drafts_in_rounds else STEP_TREES
        fits = few.size(1, self.max_block) <= runner.backend.most_tree(few.most)
        self.trees = few if self.draws_trees and fits else NO_TREES  # of recorded steps
        self.controller = Controller(self.max_block, costs) if costs else None
        self._num_measured_rows = MOST_RECORDED_ROWS if costs else 0
        self._num_steps, self._drafted = 0, False
        self._last: tuple[Plan, int] | None = None  # the last plan, and the tokens of its trees

    def calibrate(self, num_rows: int = 1) -> Controller:
        """Measure steps, recorded ones of up to ``num_rows`` requests, unless that is done: it may take seconds."""
        if self.must_measure(num_rows):
            self._num_measured_rows = power_of_two(self._most_rows(num_rows))
            costs = kept_or_measured(self.runner, self.max_block, self._num_measured_rows, self.trees)
            self.controller = self.controller or Controller(self.max_block, costs)
            self.controller.costs = costs
        assert self.controller is not None
        return self.controller

    def must_measure(self, num_rows: int) -> bool:
        """Whether :meth:`calibrate` has something to measure, for which nothing else may run."""
        return self._most_rows(num_rows) > self._num_measured_rows

    def _most_rows(self, num_rows: int) -> int:
        room = self.runner.backend.room.num_rows
        return min(num_rows, MOST_RECORDED_ROWS) if self.runner.backend.is_recorded else min(room, _MOST_ROWS)

    def plan(self, decoding: Sequence[Request], num_requests: int) -> None:
        """Set the next block of each automatic request; ``num_requests``: as many may soon run at once."""
        automatic = [request for request in decoding if request.is_automatic]
        if not automatic:
            return
        controller = self.calibrate(num_requests)
        others = tuple(min(r.block_size, r.most_tokens) for r in decoding if not r.is_automatic)
        plan = controller.plan({r.acceptance: r.most_tokens for r in automatic}, others)
        # Recorded, every place of a tree is computed, and in separate steps it costs the host time.
        wide = self.trees.size(len(decoding), plan.block) if controller.costs.is_recorded else self.max_block
        last, self._last = self._last, (plan, wide)
        for request in automatic:
            if self._last == last and request.acceptance in plan.drafts:
                continue  # it does as it did
            request.block_size = request.num_verified = plan.length(request.acceptance)
            # A grammar cuts a chain before it is verified, but does not thin out a tree.
            branches = self.draws_trees and request.block_size > 1 and not request.answer.chooser.grammar
            request.tree_size = wide if branches else 0

    def select(
        self, blocks: Sequence[tuple[Request, int]], proposed: Mapping[Request, DraftTree]
    ) -> list[tuple[Request, int]]:
        """``blocks`` with as many tokens of each automatic draft as are worth verifying, now that it is there."""
        drafts = {}
        for request, size in blocks:
            if request.is_automatic and request in proposed:
                draft = self._draft(request, request.block_size, proposed[request])
                drafts[request] = draft._replace(num_tokens=min(size - 1, draft.num_tokens))
        if self.controller is None or not drafts:
            return list(blocks)
        others = [size for request, size in blocks if request not in drafts]
        lengths = dict(zip(drafts, self.controller.select(list(drafts.values()), others), strict=True))
        return [(request, 1 + lengths.get(request, size - 1)) for request, size in blocks]

    def learn(self, seen: Sequence[Seen], num_rows: int, draft_s: float, rest_s: float) -> None:
        """Take what a step of ``num_rows``, or a round (engine/overlap.py), brought and took.

        ``draft_s``: its drafts, ``rest_s``: all else; 0 seconds are of a step that tells nothing of usual ones.
        """
        if self.controller is None:
            return
        self._num_steps += rest_s > 0
        costs, every = self.controller.costs, self.controller.config.learn_steps
        is_due = self._num_steps <= every or self._num_steps % every == 0 or bool(seen) != self._drafted
        if rest_s and (is_due or costs.is_recorded):
            block = max((block for _, block, *_ in seen), default=1)
            counts = [count for *_, count, _ in seen]
            # A round is as wide as its blocks.
            width = power_of_two(block) if self.runner.drafts_in_rounds else 1 + max(counts, default=0)
            num_tokens = num_rows + sum(counts) if costs.is_ragged else num_rows * width
            costs.learn((num_rows, num_tokens), rest_s, (len(seen), len(seen) * block), draft_s)
            self._drafted = bool(seen)
        self.controller.observe([self._draft(*one) for one in seen if one[0].is_automatic])

    def _draft(self, request: Request, block: int, draft: DraftTree, *came: Any) -> Drafted:
        """``came``: of it, once it was verified, the tokens verified and the places accepted."""
        trusted = draft if self.trusts_drafter else replace(draft, log_probs=[])
        return Drafted(request.acceptance, block, trusted, len(draft), *came)
