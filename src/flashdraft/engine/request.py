"""One request within the engine: its tokens, how far they are computed, its pages."""

from dataclasses import dataclass, field

from flashdraft.answer import Answer
from flashdraft.cache.paged_kv_cache import CacheRow
from flashdraft.cache.window_pages import WindowPages
from flashdraft.control.acceptance import Acceptance
from flashdraft.engine.late_features import Late
from flashdraft.spec_decode.drafter import DraftShape


@dataclass(eq=False)
class Request:
    """State of one request. Its last token, once there is an answer, is the anchor: decided, not computed."""

    request_id: str
    prompt: list[int]
    answer: Answer
    max_len: int  # prompt and answer
    block_size: int  # of its drafts; 1: plain decoding
    priority: int  # lower runs first
    arrival: int
    client: str | None = None  # who asks: clients share each step (engine/fair_steps.py)
    pages: list[int] = field(default_factory=list)
    # Of layers with windows, where they have their own.
    window: WindowPages = field(default_factory=WindowPages)
    hashes: list[bytes] = field(default_factory=list)  # of its full pages, as far as they were needed
    num_committed: int = 0  # tokens whose keys and values the target's pages hold
    num_in_flight: int = 0  # tokens that a round in flight may commit beside these (engine/overlap.py)
    num_observed: int = 0  # tokens that the drafter has taken
    pending: list[Late] = field(default_factory=list)  # features of committed, not yet observed tokens
    num_registered: int = 0  # pages that can be found by their prefix
    slot: int = 0  # of its states, in hybrid models
    branch: int = 0  # where it leaves the prompts before it: their pages end here, a state may be missing
    checkpoint: int | None = None  # the slot of its found prefix's state
    snapshots: list[tuple[int, int]] = field(default_factory=list)  # (number of tokens, slot), see CacheRow
    num_preemptions: int = 0
    num_cached_tokens: int = 0
    tree_size: int = 0  # tokens of its trees, anchor included; 0: its drafts are chains
    is_automatic: bool = False  # the controller sets block_size and num_verified before each step
    num_verified: int | None = None  # tokens of the next block to verify, anchor included; None: all
    acceptance: Acceptance = field(default_factory=Acceptance)  # what the controller knows of it
    # Pages and tokens that it needs to start, as they were last looked up.
    to_start: tuple[int, int] | None = None
    error: str | None = None  # why it cannot go on
    rank: tuple[int, int] = field(init=False)  # who runs first: priority, then first come, first served

    def __post_init__(self) -> None:
        self.rank = self.priority, self.arrival

    @property
    def token_ids(self) -> list[int]:
        """Prompt and answer so far."""
        return self.prompt + self.answer.output.token_ids

    @property
    def num_said(self) -> int:
        """Tokens of the answer so far."""
        return len(self.answer.output.token_ids)

    @property
    def num_tokens(self) -> int:
        """Of prompt and answer so far."""
        return len(self.prompt) + self.num_said

    @property
    def anchor(self) -> int:
        """The last decided token."""
        return self.answer.output.token_ids[-1]

    @property
    def prefill_len(self) -> int:
        """Tokens to compute before a block can run: the prompt, or after preemption all but the anchor."""
        return len(self.prompt) + max(len(self.answer.output.token_ids) - 1, 0)

    @property
    def num_left(self) -> int:
        """Of these, those that are not computed."""
        return self.prefill_len - self.num_committed

    @property
    def is_prefilling(self) -> bool:
        """Whether there is something to compute before a block can run."""
        # Asked of every request at every step, so not by prefill_len.
        num_said = len(self.answer.output.token_ids)
        return not num_said or self.num_committed < len(self.prompt) + num_said - 1

    @property
    def num_pending(self) -> int:
        """Committed tokens that the drafter has not taken."""
        return self.num_committed - self.num_observed

    @property
    def most_tokens(self) -> int:
        """Of its next block: the last token of an answer is never verified itself, for nothing follows it."""
        return max(self.max_len - self.num_committed - 1, 1)

    @property
    def key(self) -> tuple[int, int]:
        """What its rows are known by, until it is preempted."""
        return self.arrival, self.num_preemptions

    @property
    def row(self) -> CacheRow:
        """Its row in the target's cache for the next forward."""
        return CacheRow(self.key, self.pages, self.num_committed, self.slot, self.snapshots, self.window)

    @property
    def draft_shape(self) -> DraftShape:
        """What it asks of the drafter."""
        size = self.tree_size - 1 if self.tree_size > 1 else None
        return DraftShape(self.block_size - 1, size, self.answer.draft_sampling)

    @property
    def draft_row(self) -> CacheRow:
        """Its row in the drafter's cache."""
        return CacheRow(self.key, self.pages, self.num_observed, window=self.window)

    def lose_pages(self) -> None:
        """Preempted: everything but the tokens is to be computed again."""
        self.pages, self.pending, self.to_start = [], [], None
        self.num_committed = self.num_observed = self.num_registered = self.num_in_flight = 0
        self.num_preemptions += 1
