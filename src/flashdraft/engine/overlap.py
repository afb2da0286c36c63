"""The host one step behind: a round starts before the host has read the one before it (cache/rounds.py).

Until then a request has tokens in flight: the scheduler makes room for as many as there may be, and the device knows
where the request stands. What a round brings to a request that has ended or lost its pages meanwhile is dropped.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import compress, product
from time import perf_counter
from typing import NamedTuple

import torch

from flashdraft.answer import NO_TOKEN
from flashdraft.cache.paged_kv_cache import CacheRow, doubling
from flashdraft.cache.rounds import Round, RoundRow
from flashdraft.engine.late_features import RowOf
from flashdraft.engine.model_runner import ModelRunner, Started, Verified
from flashdraft.engine.recorded_trees import NO_TREES, FewTrees
from flashdraft.engine.request import Request
from flashdraft.ops.sampling_rule import SamplingRule
from flashdraft.spec_decode.simulated import SimulatedAcceptance
from flashdraft.spec_decode.tree import DraftTree

_NO_DRAFT = DraftTree()
_CONTEXTS = 128, 896, 3840  # tokens; recordings are made for keys up to 256, 1,024 and 4,096


class _Seat(NamedTuple):
    """A request in a round."""

    request: Request
    key: Hashable  # by which it was known then
    block: int
    length: int  # tokens committed at most

    @property
    def is_taken(self) -> bool:
        """Whether the request is still there to take what the round brings."""
        return self.request.answer.goes_on and self.request.key == self.key


@dataclass(frozen=True)
class InFlight:
    """A round that was launched and not read."""

    round: Round
    seats: Sequence[_Seat]
    is_usual: bool  # the controller has a price of its shape, and it waited for the round before alone


@dataclass(frozen=True)
class PromptRun:
    """Chunks of prompts that run; their tokens are committed."""

    run: Started
    requests: Sequence[Request]
    keys: Sequence[tuple[int, int]]  # by which they were known then
    is_last: Sequence[bool]  # whether the answer's first token comes of it
    starts: Sequence[int]  # tokens of the prompts before them
    sizes: Sequence[int]  # tokens of each
    seconds: float  # that the host took to start them

    @property
    def num_tokens(self) -> int:
        """Of all together."""
        return sum(self.sizes)

    def results(self) -> list[tuple[Request, Verified, bool, int, int]]:
        """What it says to each request that still is: with its result ``is_last``, start and size. Waits for it."""
        every = zip(self.requests, self.run.results(), self.is_last, self.starts, self.sizes, strict=True)
        there = (
            one.key == key and one.answer.goes_on for one, key in zip(self.requests, self.keys, strict=True)
        )
        return [*compress(every, there)]

    @property
    def keeps_logits(self) -> bool:
        """Whether it holds logits of whole prompts, much memory."""
        return any(request.answer.scores_prompt for request in self.requests)


class Ended(NamedTuple):
    """What a round brought to one request."""

    request: Request
    block: int
    draft: DraftTree  # the part that was verified
    path: Sequence[int]  # places of what is accepted, the anchor's 0 first
    decided: Sequence[int]  # by plain steps of a round of several
    token: int  # behind these


class Overlap:
    """Launches rounds and reads them, at most one behind."""

    def __init__(self, runner: ModelRunner, simulated: SimulatedAcceptance | None) -> None:
        self.runner, self.simulated = runner, simulated
        self.in_flight: InFlight | None = None
        self._since = 0.0  # when the last round was read
        self.seconds = 0.0  # that it took; 0 where that tells nothing of usual ones
        self._disturbs = False  # whether more than a round was launched since

    @torch.inference_mode()
    def record(
        self, blocks: Iterable[int], num_rows: int, tree_size: int = 0, few: FewTrees = NO_TREES
    ) -> None:
        """Make the recordings of rounds of up to ``num_rows`` requests, behind contexts of up to 4,096 tokens.

        Of requests that do not exist, in pages that nobody has yet. ``tree_size``: drafts are trees of so many tokens;
        0: those of ``few``.
        """
        rounds, cache = self.runner.rounds, self.runner.cache
        if rounds is None:
            return
        known = [block for block in blocks if block == 1 or rounds.can_draft]
        longest = {min(context // cache.page_size, cache.num_pages) for context in _CONTEXTS}
        rules = None, SamplingRule(1.0, 0)
        for num_pages, block, count, rule in product(sorted(longest), known, doubling(num_rows), rules):
            pages, start = range(num_pages), num_pages * cache.page_size
            where = [CacheRow(("recorded", idx), pages, start) for idx in range(count)]
            asked = min(tree_size, self.runner.backend.most_tree(count))
            tree = (asked or few.size(count, block)) if block > 1 else 0
            end, steps = start + block + 1, self.runner.num_plain_steps
            rows = [RoundRow(row, -1, 0, 0, block, block, end, tree, rule, None, steps) for row in where]
            for _ in range(2):  # the first chooses kernels
                rounds.launch(rows).ends()

    def suits(self, requests: Sequence[Request]) -> bool:
        """Whether a step of ``requests`` runs as a round: nothing is asked of the host between draft and choice."""
        rounds = self.runner.rounds
        return rounds is not None and all(
            not (request.answer.needs_host or request.snapshots)
            and (rounds.can_draft or request.block_size == 1)
            for request in requests
        )

    def may_wait(self, prompts: Sequence[PromptRun]) -> bool:
        """Whether ``prompts`` that run are read one step behind: the device has a round to go on with.

        Not where logits of whole prompts would be held meanwhile.
        """
        return self.in_flight is not None and not any(run.keeps_logits for run in prompts)

    def must_read(self, requests: Sequence[Request]) -> bool:
        """Whether the round in flight has to be read before a step of ``requests`` is planned."""
        waits = self.in_flight is not None and self.in_flight.round.features is not None
        return waits and any(
            request.block_size > 1 for request in requests
        )  # these features are drafted from

    def launch(self, blocks: Sequence[tuple[Request, int]], is_behind_prompts: bool) -> None:
        """Start a round of ``blocks``, (request, tokens verified at most, whole trees where they are asked for).

        ``is_behind_prompts``: chunks of prompts were started since the round before, and not read.
        """
        rounds, before = self.runner.rounds, self.in_flight
        assert rounds is not None
        if before is None:
            self._since = perf_counter()
        drafts = any(request.block_size > 1 for request, _ in blocks)
        is_late = drafts and self.runner.catch_up([request for request, _ in blocks])
        seats_before = before.seats if before else ()
        places = {id(seat.request): row for row, seat in enumerate(seats_before) if seat.is_taken}
        rows, seats, num_steps = [], [], self.runner.num_plain_steps
        for request, num_verified in blocks:
            block, row = request.block_size if num_verified > 1 else 1, request.row
            tree_size = num_verified if request.tree_size and num_verified > 1 else 0
            length = (
                min(max(block, num_steps), request.most_tokens)
                if tree_size or num_steps > 1
                else num_verified
            )
            rows.append(
                RoundRow(
                    cache_row=row,
                    source=places.get(id(request), -1),
                    anchor=request.anchor,
                    num_in_flight=request.num_in_flight,
                    block=block,
                    length=length,
                    max_len=request.max_len,
                    tree_size=tree_size,
                    sampling=request.answer.chooser.rule,
                    accepted=self.simulated.draw(length - 1) if self.simulated else None,
                    num_steps=num_steps,
                )
            )
            seats.append(_Seat(request, row.key, block, length))
        asked = any(request.tree_size and not request.is_automatic for request, _ in blocks)
        launched = rounds.launch(rows)
        # What the drafter takes late and what is recorded lasts longer than a round, which would seem to take it.
        self._disturbs = is_late or launched.is_new
        is_usual = before is not None and not (is_behind_prompts or asked or self._disturbs)
        self.in_flight = InFlight(launched, seats, is_usual)
        for seat in seats:
            seat.request.num_in_flight += seat.length

    def drop(self) -> None:
        """The round in flight runs for nobody. Who has the device next finds it launched."""
        self.in_flight = None
        self.runner.settle()

    def read(self, flown: InFlight) -> list[Ended]:
        """How ``flown`` ended, committed to the requests that still are."""
        ends, features = flown.round.ends(), flown.round.features
        if self.in_flight is flown:
            self.in_flight = None
        started, self._since = self._since, perf_counter()
        seconds, is_usual = self._since - started, flown.is_usual and not self._disturbs
        self.seconds, self._disturbs = seconds * is_usual, False
        share = seconds / len(flown.seats)
        is_observed = self.runner.drafter is None or self.runner.drafts_in_rounds
        found = []
        for row, (seat, end) in enumerate(zip(flown.seats, ends, strict=True)):
            request = seat.request
            if not seat.is_taken:
                continue
            request.num_in_flight -= seat.length
            if end.token < 0:
                request.error = NO_TOKEN
            draft = _NO_DRAFT
            if end.draft_ids:
                draft = DraftTree(end.draft_ids, end.parents, end.log_probs)
                if draft.is_chain:
                    draft = draft.first(min(seat.length, request.most_tokens) - 1)
            request.num_committed += len(end.decided) + len(end.path)
            if features is not None:
                request.pending.append(RowOf(features, row))
            elif is_observed:
                request.num_observed = request.num_committed
            metrics = request.answer.output.metrics
            if draft is _NO_DRAFT:
                metrics.record_plain_rounds(len(end.decided) + len(end.path))
            else:
                metrics.record_round(draft, len(end.path) - 1)
            metrics.record_seconds(0.0, share)
            metrics.decode_s += share
            found.append(Ended(request, seat.block, draft, end.path, end.decided, end.token))
        return found
