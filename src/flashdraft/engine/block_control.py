"""The controller within the engine: measures the machine once, plans each step, and learns from it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from flashdraft.cache.paged_kv_cache import power_of_two
from flashdraft.control.acceptance import Acceptance, Drafted
from flashdraft.control.controller import Controller, Plan
from flashdraft.control.step_costs import StepCosts
from flashdraft.engine.kept_costs import keep, kept_or_measured
from flashdraft.engine.model_runner import ModelRunner
from flashdraft.engine.request import Request
from flashdraft.engine.step_timing import MOST_TREES
from flashdraft.spec_decode.drafter import Drafter
from flashdraft.spec_decode.tree import DraftTree

_MOST_ROWS = 32  # of recorded steps that are measured; from there on seconds grow by tokens
_KEEP_EVERY = 256  # steps: what they taught is written for the next process

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
        # A hybrid's states follow one path, and a round's drafts too.
        can_branch = drafter is not None and drafter.can_branch
        self.draws_trees = trusts_drafter and not runner.states and can_branch and not runner.drafts_in_rounds
        self.controller = Controller(self.max_block, costs) if costs else None
        self._num_measured_rows = _MOST_ROWS if costs else 0
        self._num_steps, self._keeps_costs = 0, costs is None
        self._last: tuple[Plan, bool] | None = None  # the last plan, and whether there were few requests

    def calibrate(self, num_rows: int = 1) -> Controller:
        """Measure steps, recorded ones of up to ``num_rows`` requests, unless that is done: it may take seconds."""
        if self.must_measure(num_rows):
            self._num_measured_rows = power_of_two(self._most_rows(num_rows))
            trees = MOST_TREES if self.draws_trees else 0
            costs = kept_or_measured(self.runner, self.max_block, self._num_measured_rows, trees)
            self.controller = self.controller or Controller(self.max_block, costs)
            self.controller.costs = costs
        assert self.controller is not None
        return self.controller

    def must_measure(self, num_rows: int) -> bool:
        """Whether :meth:`calibrate` has something to measure, for which nothing else may run."""
        return self._most_rows(num_rows) > self._num_measured_rows

    def _most_rows(self, num_rows: int) -> int:
        return min(num_rows, _MOST_ROWS) if self.runner.backend.is_recorded else 1

    def plan(self, decoding: Sequence[Request], num_requests: int) -> None:
        """Set the next block of each automatic request; ``num_requests``: as many may soon run at once."""
        automatic = [request for request in decoding if request.is_automatic]
        if not automatic:
            return
        controller = self.calibrate(num_requests)
        joined = [request for request in automatic if request.acceptance is None]
        for request in joined:
            request.acceptance = Acceptance()
        others = tuple(min(r.block_size, r.most_tokens) for r in decoding if not r.is_automatic)
        plan = controller.plan({r.acceptance: r.most_tokens for r in automatic if r.acceptance}, others)
        # Of a plan that stands the others do as they did.
        last, self._last = self._last, (plan, len(decoding) <= MOST_TREES)
        for request in joined if self._last == last else automatic:
            self._set(request, plan, controller.costs.is_recorded, self._last[1])

    def _set(self, request: Request, plan: Plan, is_recorded: bool, are_few: bool) -> None:
        assert request.acceptance is not None
        request.block_size = request.num_verified = plan.length(request.acceptance)
        # A grammar cuts a chain before it is verified, but does not thin out a tree. A recorded tree is as wide as a
        # chain, and costs the host time.
        branches = self.draws_trees and request.block_size > 1 and not request.answer.chooser.grammar
        wide = request.block_size if are_few else 0
        request.tree_size = (wide if is_recorded else self.max_block) if branches else 0

    def select(
        self, blocks: Sequence[tuple[Request, int]], proposed: Mapping[Request, DraftTree]
    ) -> list[tuple[Request, int]]:
        """``blocks`` with as many tokens of each automatic draft as are worth verifying, now that it is there."""
        if self.controller is None or self.controller.costs.is_recorded:
            return list(blocks)
        drafts = {}
        for request, size in blocks:
            if request in proposed and request.acceptance:
                draft = self._draft(request.acceptance, request.block_size, proposed[request])
                drafts[request] = draft._replace(num_tokens=min(size - 1, draft.num_tokens))
        if not drafts:
            return list(blocks)
        others = [size for request, size in blocks if request not in drafts]
        lengths = dict(zip(drafts, self.controller.select(list(drafts.values()), others), strict=True))
        return [(request, 1 + lengths.get(request, size - 1)) for request, size in blocks]

    def learn(self, seen: Sequence[Seen], num_rows: int, draft_s: float, verify_s: float) -> None:
        """Take what a step of ``num_rows`` brought and took: 0 seconds are of a step that tells nothing of usual ones.

        ``verify_s``: the forward and the choice of tokens; a round (engine/overlap.py) is all of it.
        """
        if self.controller is None:
            return
        self._num_steps += 1
        costs = self.controller.costs
        if self._num_steps % self.controller.config.cost_steps == 0:
            counts = [count for *_, count, _ in seen]
            num_tokens = num_rows + (sum(counts) if costs.is_ragged else num_rows * max(counts, default=0))
            drafted = len(seen), len(seen) * max((block for _, block, *_ in seen), default=0)
            costs.learn((num_rows, num_tokens), verify_s, drafted, draft_s)
        if self._keeps_costs and self._num_steps % _KEEP_EVERY == 0:
            keep(costs, self.runner, self.max_block)
        if self.controller.listens:
            self.controller.observe([
                self._draft(request.acceptance, block, draft)._replace(num_verified=count, path=path)
                for request, block, draft, count, path in seen
                if request.acceptance
            ])  # fmt: skip

    def _draft(self, acceptance: Acceptance, block: int, draft: DraftTree) -> Drafted:
        trusted = draft if self.trusts_drafter else replace(draft, log_probs=[])
        return Drafted(acceptance, block, trusted, len(draft))
