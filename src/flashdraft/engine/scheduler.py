"""Who runs in the next step, and in which pages. Touches no tensor.

First come, first served within a priority; what runs with a later one makes room where one that waits needs it. A
step serves the blocks of requests that decode, and beside them chunks of prompts: of the first come and of the shortest
in turns, within a budget of tokens of their own (prompt_pace.py). When pages run out, the request that would be served
last gives up its own and is computed again later; what of it is still cached then is found by its prefix.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

from flashdraft.backends.registry import AUTO_BACKEND, check_backend
from flashdraft.cache.page_pool import PagePool, page_hashes
from flashdraft.cache.paged_kv_cache import CacheRow
from flashdraft.cache.state_slots import StateSlots
from flashdraft.cache.window_pages import WindowPool, WindowRoom
from flashdraft.engine.fair_steps import FairSteps
from flashdraft.engine.prefixes import Prefixes
from flashdraft.engine.prompt_pace import PromptPace
from flashdraft.engine.request import Request
from flashdraft.errors import UsageError

_RANK = attrgetter("rank")
_STEP_TOKENS = 512  # of a step at least: blocks of 16 of 32 requests
PROMPT_TOKENS = 8192  # of prompts on a GPU, where 8 prompts of 1,024 run at 0.78 of the matrix rate


@dataclass(frozen=True)
class EngineConfig:
    """How much the engine does at once. Raises UsageError for a value out of range."""

    max_running: int = 32  # requests in one step
    max_step_tokens: int | None = None  # of blocks; None: whole ones of all max_running, and at least 512
    # Of prompts beside them; None: max_step_tokens, or one for each of max_running and at least 512; on a GPU 8,192.
    max_prompt_tokens: int | None = None
    # How many times as long as without prompts a step may take in which somebody decodes, as a server asks for
    # (prompt_pace.py). None: any, for most tokens a second.
    max_prefill_slowdown: float | None = None
    # Tokens of a step that any client may fill; beyond, nobody has more rows than who has the fewest (fair_steps.py).
    # None: all of them on a GPU, where a step of many costs little more than one of few, elsewhere 1.
    free_step_tokens: int | None = None
    # Plain steps that a GPU takes before the host hears of them, where there is no drafter: more tokens a second of
    # thousands of rows, whose tokens come so many at a time. What is said behind a stop is dropped.
    num_scheduler_steps: int = 1
    page_size: int = 16  # tokens
    num_pages: int | None = None  # None: room for one whole context and for 16,384 tokens
    prefix_caching: bool = True
    attention_backend: str = AUTO_BACKEND  # how the target's steps run: backends/registry.py
    # Of hybrid models: slots for states behind prefixes, beside one of each running request; a step keeps a state at
    # the last border of so many pages that it passes, at the prompt's last page and where prompts part.
    num_checkpoints: int = 32
    checkpoint_pages: int = 16

    def __post_init__(self) -> None:
        check_backend(self.attention_backend)
        tokens = "max_step_tokens", "max_prompt_tokens", "free_step_tokens"
        pages = "page_size", "num_pages", "num_checkpoints", "checkpoint_pages"
        for name in ("max_running", *tokens, "num_scheduler_steps", *pages):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; expected 1 or more")
        slowdown = self.max_prefill_slowdown
        if slowdown is not None and not slowdown > 1:
            raise UsageError(
                f"max_prefill_slowdown is {slowdown}; expected more than 1, or None for no limit"
            )

    def pages_for(self, context: int) -> int:
        """``num_pages``, or its default for a model of ``context`` tokens."""
        if self.num_pages is not None:
            return self.num_pages
        return -(-min(max(context, 16384), context * self.max_running) // self.page_size)

    def on(self, device_type: str, block_size: int) -> "EngineConfig":
        """With the defaults for devices of that type and blocks of at most ``block_size`` tokens."""
        blocks = self.max_step_tokens or max(_STEP_TOKENS, self.max_running * block_size)
        prompts = self.max_step_tokens or max(_STEP_TOKENS, self.max_running)
        prompts = self.max_prompt_tokens or (
            max(PROMPT_TOKENS, prompts) if device_type == "cuda" else prompts
        )
        free = self.free_step_tokens or (blocks if device_type == "cuda" else 1)
        return replace(self, max_step_tokens=blocks, max_prompt_tokens=prompts, free_step_tokens=free)

    @property
    def step_tokens(self) -> int:
        """``max_step_tokens``, as :meth:`on` has filled it in."""
        return self.max_step_tokens or _STEP_TOKENS

    @property
    def prompt_tokens(self) -> int:
        """``max_prompt_tokens`` likewise."""
        return self.max_prompt_tokens or self.step_tokens

    @property
    def most_step_tokens(self) -> int:
        """Of one step, blocks and prompts, what is given each request included."""
        return self.step_tokens + self.max_running + self.prompt_tokens

    @property
    def num_slots(self) -> int:
        """States that a hybrid model's cache holds."""
        return self.max_running + (self.num_checkpoints if self.prefix_caching else 0)


@dataclass
class Step:
    """What to run: (request, tokens) pairs of prefill chunks and of blocks (anchor and drafts verified)."""

    chunks: list[tuple[Request, int]] = field(default_factory=list)
    blocks: list[tuple[Request, int]] = field(default_factory=list)
    joined: list[Request] = field(default_factory=list)  # admitted in this step
    left: list[CacheRow] = field(default_factory=list)  # rows of the requests preempted in this step


class Scheduler:
    """Holds all unfinished requests."""

    def __init__(
        self,
        config: EngineConfig,
        num_pages: int,
        most_tree: Callable[[int], int],
        has_states: bool = False,
        window_room: WindowRoom | None = None,
        chunk_lengths: Sequence[int] = (),
    ) -> None:
        """``most_tree``: tokens of the largest trees that a step of so many requests verifies."""
        self.config, self.most_tree = config, most_tree
        self.windows = WindowPool(window_room, config.page_size) if window_room else None
        self.slots = StateSlots(config.num_slots) if has_states else None
        self.pool = PagePool(num_pages, config.page_size)
        self.prefixes = Prefixes(self.pool, self.slots, self.windows, config.prefix_caching)
        self.fair = FairSteps(config.free_step_tokens or config.step_tokens)
        self.pace = PromptPace(config.prompt_tokens, config.max_prefill_slowdown, chunk_lengths)
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.paused: list[Request] = []  # neither wait nor run
        self.num_preemptions = self.num_cached_tokens = 0

    def add(self, request: Request) -> None:
        """A new request."""
        insort(self.waiting, request, key=_RANK)

    def finish(self, request: Request) -> None:
        """The request is over, wherever it stands: its pages are free."""
        if _is_among(self.running, request):
            _take_out(self.running, request)
            self._release(request)
        else:
            (self.paused if request in self.paused else self.waiting).remove(request)

    def set_paused(self, request: Request, is_paused: bool) -> CacheRow:
        """A paused request neither runs nor waits nor holds pages; the row that its drafter had."""
        row = self.preempt(request) if _is_among(self.running, request) else request.draft_row
        if is_paused:
            _take_out(self.waiting, request)
            self.paused.append(request)
        else:
            self.paused.remove(request)
            self.add(request)
        return row

    def decoding(self) -> list[Request]:
        """The requests whose blocks the next step runs: all, or each client's share of them."""
        decoding: list[Request] = []
        others: list[Request] = []
        for request in self.running:
            (others if request.is_prefilling else decoding).append(request)
        return self.fair.pick(decoding, [*others, *self.waiting])

    def schedule_blocks(self, decoding: Sequence[Request]) -> Step:
        """The next step's blocks, with pages for all that they write. ``decoding``: whose may run."""
        step = Step()
        self._yield_places(step)
        self._schedule_blocks(decoding, step)
        if self.windows:  # pages of layers with windows: what is not seen or was rejected is free
            for request in self.running:
                end = request.num_committed + request.num_in_flight
                self.windows.trim(request.window, request.num_committed, end)
        self._make_ready(step.blocks)
        return step

    def schedule_chunks(self, step: Step) -> None:
        """Chunks of prompts for ``step``, whose blocks have started: who ended meanwhile has left its place."""
        budget = self.pace.tokens if step.blocks else self.pace.most
        if step.blocks and self.fair.is_shared:
            budget = min(budget, self.fair.prompt_tokens)
        if budget:
            self._schedule_chunks(step, budget)
        self._make_ready(step.chunks)

    def preempt(self, request: Request) -> CacheRow:
        """A running request gives up its pages and waits to be computed again; the row that its drafter had."""
        row = request.draft_row
        _take_out(self.running, request)
        self._release(request)
        request.lose_pages()
        self.num_preemptions += 1
        self.add(request)
        return row

    def register_pages(self, request: Request, num_final: int) -> None:
        """The request's first ``num_final`` tokens are in the pages, of target and drafter: let them be found.

        So can the states be that were left at page borders of its tokens.
        """
        if not self.config.prefix_caching:
            return
        self._keep_snapshots(request)
        full = num_final // self.pool.page_size
        if full <= request.num_registered:
            return
        if len(request.hashes) < full:
            request.hashes = page_hashes(request.token_ids, self.pool.page_size, request.hashes)
        for idx in range(request.num_registered, full):
            self.pool.register(request.pages[idx], request.hashes[idx])
            if self.windows:
                self.windows.register(request.window, idx, request.hashes[idx])
        request.num_registered = full

    def check_integrity(self) -> None:
        """Assert that requests and pages are in a sane state."""
        assert not {id(r) for r in self.running} & {id(r) for r in self.waiting}, "waiting and running"
        assert len(self.running) <= self.config.max_running, "too many run"
        assert not any(r.pages for r in (*self.waiting, *self.paused)), "a waiting request holds pages"
        for queue in (self.waiting, self.running):
            assert queue == sorted(queue, key=_RANK), "out of order"
        for request in self.running:
            assert request.num_observed <= request.num_committed <= len(request.token_ids)
            assert request.num_committed <= len(request.pages) * self.pool.page_size, "too few pages"
        self.pool.check_integrity([r.pages for r in self.running])
        if self.windows:
            self.windows.check_integrity([r.window for r in self.running])
        if self.slots:
            kept = [slot for r in self.running for _, slot in r.snapshots]
            self.slots.check_integrity([*(r.slot for r in self.running), *kept])

    def _keep_snapshots(self, request: Request) -> None:
        passed = [one for one in request.snapshots if one[0] <= request.num_committed]
        for border, slot in passed:
            assert self.slots is not None
            request.snapshots.remove((border, slot))
            if border > len(request.token_ids):  # dropped behind a stop text
                self.slots.free(slot)
                continue
            size = self.pool.page_size
            if len(request.hashes) * size < border:
                request.hashes = page_hashes(request.token_ids, size, request.hashes)
            self.slots.keep(slot, request.hashes[border // size - 1])

    def _schedule_blocks(self, decoding: Sequence[Request], step: Step) -> None:
        decoding = [r for r in decoding if r.pages and not (r.num_in_flight and self._ends_in_flight(r))]
        num_left, used, most_tree = len(decoding), 0, self.most_tree(len(decoding))
        most = self.config.step_tokens
        for request in decoding:
            if not request.pages:  # preempted, by this step perhaps
                continue
            share = max((most - used) // num_left, 1)
            num_left -= 1
            num_tokens = min(request.num_verified or request.block_size, request.most_tokens, share)
            # The pages take one path of a tree, and what is in flight may be all true.
            end = min(self._end(request, num_tokens), request.max_len)
            if self._make_room(request, end, step):
                if request.tree_size and num_tokens > 1:
                    num_tokens = min(request.tree_size, share, most_tree)
                step.blocks.append((request, num_tokens))
                used += num_tokens

    def _schedule_chunks(self, step: Step, budget: int) -> None:
        """Chunks of prompts that run or can start, ``budget`` tokens together.

        Where others decode, a prompt that does not end in this step has it alone: rows cost more than their tokens.
        """
        lefts = {request: request.num_left for request in self.running if request.is_prefilling}
        if not step.left:
            places = max(self.config.max_running - len(self.running), 0)
            lefts |= self.prefixes.startable(self.waiting[:places])
        for request in self.pace.in_turns(lefts):
            needs_own_step = lefts[request] > budget and step.blocks and self.pace.is_limited
            is_full = budget <= 0 or len(step.chunks) == self.pace.most_prompts
            if is_full or (step.chunks and needs_own_step):
                break
            if not request.pages and not self._start(request, step):
                continue
            num_tokens = min(request.num_left, budget)
            if num_tokens:
                step.chunks.append((request, num_tokens))
                budget -= num_tokens

    def _start(self, request: Request, step: Step) -> bool:
        """A request that waits runs from now on, or False where others of this step have taken its pages."""
        found, num_needed = self.prefixes.pages_to_start(request)
        if num_needed > self.pool.num_free:
            request.to_start = None  # what was found when it was looked up may be gone
            return False
        _take_out(self.waiting, request)
        self.pool.share(found)
        pages = self.pool.allocate(self.pool.num_pages_for(request.prefill_len + 1) - len(found))
        assert pages is not None
        request.pages = found + pages
        if self.windows:
            request.window = self.windows.join(request.hashes[: len(found)], request.prefill_len)
        if self.slots:
            # Read before it is taken for something else, by this request at the soonest.
            request.checkpoint = self.slots.find(request.hashes[len(found) - 1]) if found else None
            request.slot = self.slots.take()
        request.num_registered = len(found)
        request.num_committed = request.num_observed = len(found) * self.pool.page_size
        request.num_cached_tokens = max(request.num_cached_tokens, request.num_committed)
        self.num_cached_tokens += request.num_committed
        insort(self.running, request, key=_RANK)
        step.joined.append(request)
        return True

    def _yield_places(self, step: Step) -> None:
        """Whoever runs with a later priority than the first who waits gives up its place, where that needs it."""
        while self.waiting and self.running and self.running[-1].priority > self.waiting[0].priority:
            _, num_needed = self.prefixes.pages_to_start(self.waiting[0])
            if num_needed <= self.pool.num_free and len(self.running) < self.config.max_running:
                return
            self._preempt_last(step)

    def _make_ready(self, parts: Sequence[tuple[Request, int]]) -> None:
        """Pages of layers with windows for what (request, tokens) write, and slots for states at page borders."""
        for request, num_tokens in parts if self.windows else ():
            assert self.windows is not None
            end = self._end(request, num_tokens)
            self.windows.reach(request.window, min(self.pool.num_pages_for(end), len(request.pages)))
        if self.slots and self.config.prefix_caching:
            for request, num_tokens in parts:
                self._plan_snapshots(self.slots, request, num_tokens)

    def _ends_in_flight(self, request: Request) -> bool:
        """Whether the round in flight brings its last token for certain: all of several plain steps, else one."""
        least = request.num_in_flight if self.config.num_scheduler_steps > 1 else 1
        return request.num_tokens + least >= request.max_len

    def _end(self, request: Request, num_tokens: int) -> int:
        """Of ``request``'s tokens, where it may stand after a step of ``num_tokens``."""
        reach = max(num_tokens, self.config.num_scheduler_steps)
        return request.num_committed + request.num_in_flight + reach

    def _plan_snapshots(self, slots: StateSlots, request: Request, num_tokens: int) -> None:
        """Slots for the states at borders that the request may come past in this step."""
        # A round in flight keeps no states: what it may have come past is too late to plan.
        size, start = self.pool.page_size, request.num_committed + request.num_in_flight
        every = size * self.config.checkpoint_pages
        end = start + num_tokens
        last = (len(request.prompt) - 1) // size * size
        # Each cuts a prompt's chunk in two: its last border is kept, and those that others are likely to find.
        borders = {border for border in (end // every * every, last, request.branch) if start < border <= end}
        planned = {border for border, _ in request.snapshots}
        for border in sorted(borders - planned):
            # Whoever is admitted finds a slot of its own.
            if slots.num_free > self.config.max_running - len(self.running):
                request.snapshots.append((border, slots.take()))

    def _release(self, request: Request) -> None:
        self.pool.free(request.pages)
        request.pages = []
        if self.windows:
            self.windows.free(request.window)
        if self.slots:
            for slot in (request.slot, *(slot for _, slot in request.snapshots)):
                self.slots.free(slot)
            request.snapshots = []

    def _make_room(self, request: Request, num_tokens: int, step: Step) -> bool:
        """Pages for ``num_tokens`` tokens of ``request``, at the cost of those served last, itself included."""
        missing = self.pool.num_pages_for(num_tokens) - len(request.pages)
        while missing > 0:
            pages = self.pool.allocate(missing)
            if pages is not None:
                request.pages += pages
                return True
            if self._preempt_last(step) is request:
                return False
        return True

    def _preempt_last(self, step: Step) -> Request:
        last = self.running[-1]
        step.left.append(self.preempt(last))
        return last


def _is_among(queue: Sequence[Request], request: Request) -> bool:
    """Whether ``queue``, in the order of ranks, has it."""
    at = bisect_left(queue, request.rank, key=_RANK)
    return at < len(queue) and queue[at] is request


def _take_out(queue: list[Request], request: Request) -> None:
    """``queue`` without it: looked for by rank, for thousands may run."""
    del queue[bisect_left(queue, request.rank, key=_RANK)]
