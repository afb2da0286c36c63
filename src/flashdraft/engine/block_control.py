"""The controller within the engine: measures the machine once, plans each step, and learns from it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from flashdraft.cache.paged_kv_cache import power_of_two
from flashdraft.control.acceptance import Acceptance, Drafted
from flashdraft.control.controller import Controller
from flashdraft.control.search import Candidate, Plan
from flashdraft.control.step_costs import StepCosts
from flashdraft.engine.kept_costs import keep, kept_or_measured
from flashdraft.engine.model_runner import ModelRunner
from flashdraft.engine.overlap import Ended
from flashdraft.engine.request import Request
from flashdraft.engine.step_timing import CONTEXT, NO_TREES, ROUND_TREES, STEP_TREES, FewTrees
from flashdraft.spec_decode.drafter import Drafter
from flashdraft.spec_decode.tree import DraftTree

_MOST_ROWS = 8  # measured; from there on seconds grow by tokens
MOST_RECORDED_ROWS = 32  # measured where they are recorded
_CHOOSE_RATE = 0.1
_LEARN_EVERY = 16  # steps: costs drift slowly, and learning takes time too; each of the first so many teaches
_KEEP_EVERY = 256  # steps: what they taught is written for the next process; what the first ones did, at once


class StepSeconds(NamedTuple):
    """What the parts of a step took."""

    observe: float  # the drafter takes what was committed
    draft: float
    verify: float  # the target's forward
    choose: float  # tokens of its logits


class BlockControl:
    """Chooses the blocks of requests that leave it to the engine. ``costs``: measured when first needed if None.

    ``trusts_drafter``: what is accepted has to do with the drafter's confidence, as it has unless it is simulated.
    ``round_trees``: which of them verify trees in rounds on a GPU.
    """

    def __init__(
        self,
        runner: ModelRunner,
        drafter: Drafter | None = None,
        costs: StepCosts | None = None,
        trusts_drafter: bool = True,
        round_trees: FewTrees = ROUND_TREES,
    ) -> None:
        self.runner = runner
        self.max_block = drafter.max_block_size if drafter else 1
        self.trusts_drafter = trusts_drafter
        # Recorded trees of recurrent states are right and not timed on any card: `auto` leaves them to who asks.
        is_timed = not (runner.states and runner.backend.is_recorded)
        self.draws_trees = trusts_drafter and drafter is not None and drafter.can_branch and is_timed
        of_recorded = round_trees if runner.drafts_in_rounds else STEP_TREES
        fitting = of_recorded.fitting(self.max_block, runner.backend.most_tree)
        self.trees = fitting if self.draws_trees else NO_TREES  # of recorded steps
        self.controller = Controller(self.max_block, costs) if costs else None
        self._num_measured_rows = MOST_RECORDED_ROWS if costs else 0
        self._choose_s = self._told_s = 0.0  # of a sampled token; of the last step, in parts
        self._num_steps, self._drafted, self._keeps_costs = 0, False, costs is None
        self._last: tuple[Plan, bool] | None = None  # the last plan, and whether there were few requests

    def calibrate(self, num_rows: int = _MOST_ROWS) -> Controller:
        """Measure steps of up to ``num_rows`` requests, unless that is done: part of a second, recorded ones a few."""
        if self.must_measure(num_rows):
            self._num_measured_rows = 1 << (self._most_rows(num_rows) - 1).bit_length()
            costs = kept_or_measured(self.runner, self.max_block, self._num_measured_rows, self.trees)
            self.controller = self.controller or Controller(self.max_block, costs)
            self.controller.costs = costs
        assert self.controller is not None
        return self.controller

    def must_measure(self, num_rows: int) -> bool:
        """Whether :meth:`calibrate` has something to measure, for which nothing else may run."""
        return self.controller is None or self._most_rows(num_rows) > self._num_measured_rows

    def _most_rows(self, num_rows: int) -> int:
        return min(num_rows, MOST_RECORDED_ROWS if self.runner.backend.is_recorded else _MOST_ROWS)

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
        plan = controller.kept([request.acceptance for request in automatic if request.acceptance], others)
        if plan is None:
            contexts = [request.num_committed for request in decoding]
            context = sum(contexts) // len(contexts) if controller.costs.is_ragged else max(contexts)
            controller.costs.context = max(context - CONTEXT, 0)
            plan = controller.plan(list(map(self._candidate, automatic)), others)
        # Of a plan that stands the others do as they did.
        last, self._last = self._last, (plan, len(decoding) <= self.trees.most)
        for request in joined if self._last == last else automatic:
            self._set(request, plan, controller.costs.is_recorded, len(decoding))

    def _candidate(self, request: Request) -> Candidate:
        assert request.acceptance is not None
        # Of what needs no host the price is a round's.
        is_priced = self.runner.drafts_in_rounds and not request.answer.needs_host
        is_free = is_priced or request.answer.chooser.is_argmax
        request.acceptance.choose_s = 0.0 if is_free else self._choose_s
        return Candidate(request.acceptance, request.most_tokens)

    def _set(self, request: Request, plan: Plan, is_recorded: bool, num_rows: int) -> None:
        assert request.acceptance is not None
        request.block_size = request.num_verified = plan.length(request.acceptance)
        # A grammar cuts a chain before it is verified, but does not thin out a tree. Recorded, every place of a tree
        # is computed, and in separate steps it costs the host time.
        branches = self.draws_trees and request.block_size > 1 and not request.answer.chooser.grammar
        wide = self.trees.size(num_rows, request.block_size) if is_recorded else self.max_block
        request.tree_size = wide if branches else 0

    def select(
        self, blocks: Sequence[tuple[Request, int]], proposed: Mapping[Request, DraftTree]
    ) -> list[tuple[Request, int]]:
        """``blocks`` with as many tokens of each automatic draft as are worth verifying, now that it is there."""
        if self.controller is None or self.controller.costs.is_recorded:
            return list(blocks)
        drafts = {}
        for request, size in blocks:
            if request in proposed and request.acceptance is not None:
                draft = self._draft(request, proposed[request])
                drafts[request] = draft._replace(num_tokens=min(size - 1, draft.num_tokens))
        if not drafts:
            return list(blocks)
        others = [size for request, size in blocks if request not in drafts]
        lengths = dict(zip(drafts, self.controller.select(list(drafts.values()), others), strict=True))
        return [(request, 1 + lengths.get(request, size - 1)) for request, size in blocks]

    def learn_step(self, seconds: float) -> None:
        """Take what the step of the last :meth:`learn` took in all: what was not told of then is the host's."""
        if self.controller and self._is_due and not self.runner.drafts_in_rounds:
            self.controller.costs.learn_host(seconds - self._told_s)

    def learn(
        self,
        blocks: Sequence[tuple[Request, int]],
        proposed: Mapping[Request, DraftTree],
        drafts: Sequence[DraftTree],
        paths: Sequence[Sequence[int]],
        num_observed: int,
        seconds: StepSeconds,
    ) -> None:
        """Take what a step brought and took.

        ``proposed``: whole drafts, and of each of ``blocks`` the part in ``drafts`` was verified, which begins it; of
        that ``paths`` were accepted. ``num_observed``: tokens that the drafter took before it drafted.
        """
        self._told_s = sum(seconds)
        if self.controller is None:
            return
        self._num_steps += 1
        is_due = self._is_due or bool(proposed) != self._drafted
        self._drafted = bool(proposed)
        if is_due and not self.runner.drafts_in_rounds:  # a step that is no round tells nothing of rounds
            self._learn_costs(self.controller.costs, proposed, drafts, num_observed, seconds)
        if self._keeps_costs and (self._num_steps % _KEEP_EVERY == 0 or self._num_steps == _LEARN_EVERY):
            keep(self.controller.costs, self.runner, self.max_block, self._num_measured_rows)
        if proposed:
            self._learn_choosing(blocks, drafts, seconds.choose)
        if proposed and self.controller.listens:
            observed = [
                self._draft(request, proposed[request])._replace(num_verified=len(draft), path=path)
                for (request, _), draft, path in zip(blocks, drafts, paths, strict=True)
                if request in proposed and request.acceptance is not None
            ]
            if observed:
                self.controller.observe(observed)

    @property
    def _is_due(self) -> bool:
        return self._num_steps <= _LEARN_EVERY or self._num_steps % _LEARN_EVERY == 0

    def learn_round(self, ended: Sequence[Ended], num_rows: int, seconds: float | None) -> None:
        """Take what a round of ``num_rows`` brought and took, from the one before it on (engine/overlap.py).

        ``seconds``: None where something else ran meanwhile.
        """
        if self.controller is None or not ended:
            return
        self._num_steps += 1
        if seconds is not None and self._num_steps % _LEARN_EVERY == 0:
            num_tokens = num_rows * power_of_two(max(one.block for one in ended))
            self.controller.costs.learn((num_rows, num_tokens), seconds, (0, 0), 0.0)
        if self.controller.listens:
            observed = [
                self._draft(one.request, one.draft, one.block)._replace(
                    num_verified=len(one.draft), path=one.path
                )
                for one in ended
                if one.block > 1 and one.request.acceptance is not None
            ]
            if observed:
                self.controller.observe(observed)

    def _learn_costs(
        self,
        costs: StepCosts,
        proposed: Mapping[Request, DraftTree],
        drafts: Sequence[DraftTree],
        num_observed: int,
        seconds: StepSeconds,
    ) -> None:
        num_rows, num_drafting = len(drafts), len(proposed)
        num_tokens = num_rows + sum(map(len, drafts))
        if not costs.is_ragged:
            num_tokens = num_rows * (1 + max(map(len, drafts)))
        block = max((request.block_size for request in proposed), default=0)
        # What a round commits is part of the next draft's price; what plain rounds left behind is not.
        is_usual = num_observed <= num_drafting * self.max_block
        draft_s = seconds.draft + seconds.observe * is_usual
        costs.learn((num_rows, num_tokens), seconds.verify, (num_drafting, num_drafting * block), draft_s)

    def _learn_choosing(
        self, blocks: Sequence[tuple[Request, int]], drafts: Sequence[DraftTree], seconds: float
    ) -> None:
        sampled = [
            1 + len(draft)
            for (request, _), draft in zip(blocks, drafts, strict=True)
            if not request.answer.chooser.is_argmax
        ]
        if sampled:
            rate = _CHOOSE_RATE if self._choose_s else 1.0
            self._choose_s += rate * (seconds / sum(sampled) - self._choose_s)

    def _draft(self, request: Request, draft: DraftTree, block: int | None = None) -> Drafted:
        assert request.acceptance is not None
        trusted = draft if self.trusts_drafter else replace(draft, log_probs=[])
        return Drafted(request.acceptance, block or request.block_size, trusted, len(draft))
