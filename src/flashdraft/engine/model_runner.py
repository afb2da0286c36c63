"""Runs target and drafter for the requests of one step: one ForwardBatch for rows of similar width."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from flashdraft.admission import MAX_TREE
from flashdraft.backends.base import Room, TargetStep
from flashdraft.backends.registry import choose_backend
from flashdraft.cache.paged_kv_cache import CacheRow
from flashdraft.cache.paged_rows import PagedRows
from flashdraft.cache.window_pages import WindowRoom
from flashdraft.engine.late_features import gathered
from flashdraft.engine.request import Request
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.models.base import TargetModel
from flashdraft.ops import sampling_rule
from flashdraft.ops.greedy import greedy_tokens
from flashdraft.ops.host_copy import Awaited, HostCopy, told
from flashdraft.ops.triton import runs_on
from flashdraft.spec_decode.drafter import Drafter, Drafts
from flashdraft.spec_decode.tree import DraftTree

_FEWEST_TOKENS = 64  # of prompts: with less memory than they take nothing runs


@dataclass(frozen=True)
class Verified:
    """What the target says to one request's tokens."""

    logits: Tensor  # [num_wanted, vocab_size], float32, of the last tokens; empty where no request reads them
    argmax: list[int]  # -1: the logits are no numbers
    features: Tensor | None  # [num_tokens, feature_size], padding behind them
    is_sampled: bool = False  # ``argmax`` has the request's own choices, by its temperature

    def at(self, places: list[int]) -> "Verified":
        """The same with the choices at ``places`` alone, which rise."""
        if len(places) == len(self.argmax):
            return self
        logits = self.logits[places] if len(self.logits) else self.logits
        return replace(self, logits=logits, argmax=[self.argmax[place] for place in places])


@dataclass(frozen=True)
class Started:
    """A forward that runs, or has run; the host need not wait for it yet."""

    argmax: Awaited
    slots: Sequence[int]  # where in it the wanted tokens' are, request after request
    num_wanted: Sequence[int]  # of each request
    features: Sequence[Tensor | None]  # of each request
    logits: Tensor  # of the wanted tokens; empty where no request reads them
    is_sampled: bool = False  # see :class:`Verified`
    # Requests by the key of their row, and why the device had no memory for them; known with the results.
    lost: Mapping[Hashable, str] = field(default_factory=dict)

    def results(self) -> list[Verified]:
        """What it says to each request; waits for it."""
        every = self.argmax.wait().tolist()
        results, done = [], 0
        for wanted, features in zip(self.num_wanted, self.features, strict=True):
            own = slice(done, done + wanted)
            done += wanted
            logits = self.logits[own] if len(self.logits) else self.logits
            choices = [every[slot] for slot in self.slots[own]]
            results.append(Verified(logits, choices, features, self.is_sampled))
        return results


@dataclass(frozen=True)
class _Rules:
    """By which rules a kernel chooses tokens."""

    rules: Sequence[Sequence[int]]  # of each token, as a kernel is told them
    positions: Sequence[int]  # where in its answer it stands

    @classmethod
    def of(
        cls, requests: Sequence[Request], token_ids: Sequence[list[int]], num_wanted: Sequence[int]
    ) -> "_Rules":
        """The requests' own, of the last ``num_wanted[i]`` of the tokens that each runs."""
        rules: list[Sequence[int]] = []
        positions: list[int] = []
        for request, ids, wanted in zip(requests, token_ids, num_wanted, strict=True):
            rule, end = request.answer.chooser.rule, request.num_committed + len(ids)
            rules += [rule.told if rule else sampling_rule.GREEDY] * wanted
            positions += range(end + 1 - wanted, end + 1)
        return cls(rules, positions)

    def part(self, at: slice) -> "_Rules":
        """Those of some of the tokens."""
        return _Rules(self.rules[at], self.positions[at])

    def choose(self, logits: Tensor) -> Tensor:
        """The tokens, int64, by ``logits`` [tokens, vocab_size]; -1: of no numbers."""
        from flashdraft.ops.triton.sampling import sampled_tokens

        if not self.rules:
            return torch.empty(0, dtype=torch.int64, device=logits.device)
        device = logits.device
        return sampled_tokens(logits, told(self.rules, device).int(), told(self.positions, device))


class ModelRunner:
    """Holds the caches. Knows requests, but neither who runs nor what is kept."""

    def __init__(
        self, target: TargetModel, drafter: Drafter | None, config: EngineConfig, num_pages: int
    ) -> None:
        self.target = target
        size, num_rows = config.page_size, config.max_running
        self.feature_layers = drafter.feature_layers if drafter else ()
        largest = drafter.max_block_size if drafter else 1
        step_tokens = config.step_tokens
        backend = choose_backend(config.attention_backend, target)
        windows = [shape.window for shape in target.kv_shapes() if shape.window and backend.cuts_windows]
        draft_windows = drafter.windows if drafter else ()
        every = [*windows, *draft_windows]
        windowed = WindowRoom.of(every, num_rows, config.most_step_tokens, size, is_drafters=not windows)
        self.window_room = windowed if windowed and windowed.num_pages < num_pages else None
        num_window_pages = self.window_room.num_pages if self.window_room else None
        self.drafter: Drafts | None = None
        if drafter:
            given = (num_window_pages,) if draft_windows else ()
            self.drafter = drafter.open(num_rows, num_pages, size, *given)
        room = Room(
            num_rows, num_pages, size, config.num_slots, MAX_TREE, max(largest, 1), step_tokens,
            drafter is not None and drafter.can_branch,
            num_window_pages if windows else None,
        )  # fmt: skip
        self.backend = backend(target, room, self.feature_layers)
        self.cache, self.states = self.backend.cache, self.backend.states
        self._no_logits = torch.empty(0, target.config.vocab_size, device=target.device)
        self.rounds = self.backend.new_rounds(
            drafter.in_rounds(self.drafter) if drafter and self.drafter else None
        )
        # Plain steps of a round: of several where there are rounds, and nothing drafts in them.
        self.num_plain_steps = config.num_scheduler_steps if self.rounds and not drafter else 1
        # Prefill chunks and blocks differ too much in width to share rows.
        self.chunk_rows, self.block_rows = self.new_rows(), self.new_rows()

    @property
    def drafts_in_rounds(self) -> bool:
        """Whether blocks run as rounds that the host does not wait for."""
        return self.rounds is not None and self.rounds.can_draft

    def new_rows(self) -> PagedRows:
        """Rows for the target's forwards."""
        return self.backend.new_rows()

    @torch.inference_mode()
    def record_prompts(self) -> None:
        """Make the recordings of prompts' chunks, of requests that do not exist, in pages that nobody has yet."""
        self.backend.record_prompts(self.chunk_rows)

    def join(self, request: Request) -> None:
        """A request was admitted; its state is that of its found prefix, and the drafter hears of it."""
        if self.states or self.drafter:  # else nothing is launched
            self.settle()
        self.backend.begin(self.chunk_rows, request.slot, request.checkpoint)
        if self.drafter:
            prefix = request.token_ids[: request.num_committed]
            self.drafter.join(request.draft_row, prefix, request.max_len)

    def propose(self, requests: Sequence[Request]) -> dict[Request, DraftTree]:
        """The draft of each: a tree of ``tree_size - 1`` tokens, or a chain of ``block_size - 1``, at most.

        The drafter has taken all that they committed (:meth:`catch_up`).
        """
        if not requests:
            return {}
        assert self.drafter is not None
        drafts = self.drafter.propose(
            [request.draft_row for request in requests],
            [request.anchor for request in requests],
            [request.draft_shape for request in requests],
        )
        # No room is taken behind the answer's end; a chain is cut there when its length is known.
        return {
            request: draft.up_to(request.most_tokens - 1) if request.tree_size else draft
            for request, draft in zip(requests, drafts, strict=True)
        }

    def catch_up(self, requests: Sequence[Request]) -> bool:
        """Let the drafter take what is committed but not observed, of all ``requests`` in one projection.

        Whether there was anything.
        """
        late = [r for r in requests if r.num_observed < r.num_committed]
        if not late or self.drafter is None:
            return False
        token_ids = [r.token_ids[r.num_observed : r.num_committed] for r in late]
        features = gathered([r.pending for r in late])
        self.drafter.observe([r.draft_row for r in late], token_ids, features)
        for request in late:
            request.num_observed, request.pending = request.num_committed, []
        return True

    def run(
        self,
        rows: PagedRows,
        requests: Sequence[Request],
        token_ids: Sequence[list[int]],
        num_wanted: Sequence[int],
        parents: Sequence[Sequence[int]] | None = None,
    ) -> "Started":
        """One target forward over ``token_ids`` of each request, which follow what it has committed.

        ``num_wanted``: for how many of its last tokens each wants logits. ``parents``: of tokens that are trees
        (ForwardBatch.as_trees).
        """
        self.settle()
        reads_logits = any(request.answer.reads_logits for request in requests)
        step = self.forward(rows, [request.row for request in requests], token_ids, parents, not reads_logits)
        slots = _wanted_slots(step, token_ids, num_wanted)
        logits, argmax = None, step.argmax
        is_sampled = reads_logits and parents is None and self._samples(requests)
        if is_sampled:
            rules = _Rules.of(requests, token_ids, num_wanted)
            argmax = rules.choose(self.backend.logits(step.hidden_at(slots)))
        elif reads_logits:
            logits = self.backend.logits(step.hidden_at(slots))
            argmax = greedy_tokens(logits)
        elif argmax is None:
            argmax = self.backend.argmax(step.hidden_at(slots))
        own = step.features_of(len(requests))
        chosen = slots if argmax is step.argmax else range(len(slots))
        given = self._no_logits if logits is None else logits
        return Started(HostCopy(argmax), chosen, list(num_wanted), own, given, is_sampled)

    def run_prompts(
        self, requests: Sequence[Request], token_ids: Sequence[list[int]], num_wanted: Sequence[int]
    ) -> Started:
        """:meth:`run` of chunks of prompts, whose tokens are true from now on (:meth:`commit`).

        Beside rounds of several plain steps the host does not wait until they are launched: a thousand launches
        wait for the device. What states and drafts need of a prompt the host does itself.
        """
        paths = [range(len(ids)) for ids in token_ids]
        is_alone = self.num_plain_steps > 1 and not self.states
        if self.rounds is None or not is_alone or any(request.answer.needs_host for request in requests):
            run = self.run(self.chunk_rows, requests, token_ids, num_wanted)
            self.commit(self.chunk_rows, requests, paths, run.features)
            return run
        # The host goes on, and a row's pages with it.
        placed = [request.row._replace(pages=tuple(request.pages)) for request in requests]
        is_sampled = any(request.answer.reads_logits for request in requests)
        rules = _Rules.of(requests, token_ids, num_wanted) if is_sampled else None
        lost: dict[Hashable, str] = {}
        tokens = self.rounds.behind(lambda: self._first_tokens(placed, token_ids, num_wanted, rules, lost))
        nothing = [None] * len(requests)
        self._committed(requests, paths, nothing)
        slots = range(sum(num_wanted))
        return Started(tokens, slots, list(num_wanted), nothing, self._no_logits, is_sampled, lost)

    def _first_tokens(
        self,
        placed: Sequence[CacheRow],
        token_ids: Sequence[list[int]],
        num_wanted: Sequence[int],
        rules: "_Rules | None",
        lost: dict[Hashable, str],
    ) -> Tensor:
        """The tokens behind the wanted ones of prompts' chunks, int64 [sum of num_wanted].

        Where the device has no memory for all it has them in halves, and ``lost`` is told of the request that it has
        none for a few tokens of: its tokens are -1.
        """
        try:
            step = self.forward(self.chunk_rows, placed, token_ids)
            self.chunk_rows.commit_paths(placed, [range(len(ids)) for ids in token_ids])
            hidden = step.hidden_at(_wanted_slots(step, token_ids, num_wanted))
            return rules.choose(self.backend.logits(hidden)) if rules else self.backend.argmax(hidden)
        except torch.OutOfMemoryError as error:
            why = no_memory(error)
        torch.cuda.empty_cache()
        if len(placed) == 1 and len(token_ids[0]) <= _FEWEST_TOKENS:
            lost[placed[0].key] = why
            return torch.full((num_wanted[0],), -1, device=self.target.device)
        found, done = [], 0
        for part in _halves(placed, token_ids, num_wanted):
            end = done + sum(part[2])
            found.append(self._first_tokens(*part, rules.part(slice(done, end)) if rules else None, lost))
            done = end
        return torch.cat(found)

    def settle(self) -> None:
        """What is launched from now on runs behind every round."""
        if self.rounds is not None:
            self.rounds.settle()

    def _samples(self, requests: Sequence[Request]) -> bool:
        """Whether a kernel chooses the tokens of all: the host would wait for each, and for a round before it."""
        return runs_on(self.target.device) and not any(request.answer.needs_host for request in requests)

    def forward(
        self,
        rows: PagedRows,
        placed: Sequence[CacheRow],
        token_ids: Sequence[list[int]],
        parents: Sequence[Sequence[int]] | None = None,
        with_head: bool = True,
    ) -> TargetStep:
        """The target over ``token_ids`` of each row, padded to one width.

        ``parents``: see :meth:`run`. ``with_head``: whether the choice behind each token is wanted. Nothing of it but
        the features outlasts the next forward.
        """
        if rows is self.chunk_rows:
            return self.backend.prompt_step(rows, placed, token_ids)
        return self.backend.block_step(rows, placed, token_ids, parents, with_head)

    def commit(
        self,
        rows: PagedRows,
        requests: Sequence[Request],
        paths: Sequence[Sequence[int]],
        features: Sequence[Tensor | None],
    ) -> None:
        """Make the tokens of each request at places ``paths[i]``, as :meth:`run` had them, true.

        Keeps their features until the drafter takes them (:meth:`catch_up`).
        """
        rows.commit_paths([request.row for request in requests], paths)
        self._committed(requests, paths, features)

    def _committed(
        self,
        requests: Sequence[Request],
        paths: Sequence[Sequence[int]],
        features: Sequence[Tensor | None],
    ) -> None:
        for request, path, given in zip(requests, paths, features, strict=True):
            request.num_committed += len(path)
            if given is not None:
                is_chain = path[-1] == len(path) - 1
                request.pending.append(given[: len(path)] if is_chain else given[list(path)])
            if self.drafter is None:
                request.num_observed = request.num_committed


def no_memory(error: torch.OutOfMemoryError) -> str:
    """What a request is told that the device has no memory for."""
    return f"the device has no memory for it: {str(error).splitlines()[0]}"


def _wanted_slots(step: TargetStep, token_ids: Sequence[list[int]], num_wanted: Sequence[int]) -> list[int]:
    """Where in ``step`` the last ``num_wanted[i]`` of each row's tokens are; these alone go through the head."""
    every = zip(step.firsts(len(token_ids)), token_ids, num_wanted, strict=True)
    return [first + len(ids) - wanted + k for first, ids, wanted in every for k in range(wanted)]


def _halves(
    placed: Sequence[CacheRow], token_ids: Sequence[list[int]], num_wanted: Sequence[int]
) -> list[tuple[Sequence[CacheRow], Sequence[list[int]], Sequence[int]]]:
    """Chunks of prompts in two parts. A single one, of which one token at most is wanted, is cut."""
    if len(placed) > 1:
        half = len(placed) // 2
        parts = slice(half), slice(half, None)
        return [(placed[at], token_ids[at], num_wanted[at]) for at in parts]
    [row], [ids] = placed, token_ids
    half = len(ids) // 2
    return [([row], [ids[:half]], [0]), ([row._replace(start=row.start + half)], [ids[half:]], num_wanted)]
