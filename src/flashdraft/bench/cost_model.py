"""What speed to expect: from step costs and how many tokens a round gains, without answering anything.

A step over ``n`` requests drafts a block for each, verifies all in one forward and gains ``acceptance_length`` tokens
a request; a prompt that is admitted is prefilled in the same step. The closed loop of the benchmark is replayed step
by step on these costs, its end included, where fewer requests are under way. One request alone takes
(draft + verify) / acceptance_length a token (DFlash, arXiv 2602.06036, section 3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from flashdraft.errors import UsageError

_BISECTIONS = 60


class Costs(Protocol):
    """Seconds of the parts of a step."""

    def verify_s(self, num_requests: int, block_size: int) -> float:
        """One target forward over a block of each request, with every slot's logits."""
        ...

    def draft_s(self, num_requests: int, block_size: int) -> float:
        """One drafter forward over a block of each request; 0 for blocks of 1."""
        ...

    def prefill_s(self, num_tokens: int) -> float:
        """The target's forward over prompts of ``num_tokens`` together."""
        ...

    def host_s(self) -> float:
        """Of a step, outside the forwards."""
        ...


@dataclass(frozen=True)
class Job:
    """One request, in tokens."""

    prompt_len: int
    output_len: int


@dataclass(frozen=True)
class AcceptanceProfile:
    """Tokens that a round gains at any block size.

    ``known``: acceptance lengths by block size. Others follow from the nearest known one as if every draft token
    were accepted with one probability r, given those before it: 1 + r + r^2 + ... (block size terms).
    """

    known: Mapping[int, float]

    def __post_init__(self) -> None:
        for size, length in self.known.items():
            if not (size >= 1 and 1 <= length <= size):
                raise UsageError(f"acceptance length {length} at block size {size}; expected 1 to {size}")

    def length(self, block_size: int) -> float:
        """Expected tokens of a round."""
        if block_size == 1:
            return 1.0
        if block_size in self.known:
            return self.known[block_size]
        nearest = min(self.known, key=lambda size: abs(size - block_size))
        return _geometric(_rate(nearest, self.known[nearest]), block_size)


def _geometric(rate: float, block_size: int) -> float:
    return sum(rate**i for i in range(block_size))


def _rate(block_size: int, length: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _geometric(middle, block_size) < length else (low, middle)
    return (low + high) / 2


def predict_seconds(
    costs: Costs, jobs: Sequence[Job], concurrency: int, block_size: int, acceptance_length: float
) -> float:
    """Wall seconds until ``jobs`` are answered, ``concurrency`` at a time, in their order."""
    waiting = list(reversed(jobs))
    left: list[float] = []  # tokens, of each request under way
    seconds = 0.0
    while waiting or left:
        seconds += costs.host_s()
        if left:
            seconds += costs.draft_s(len(left), block_size) + costs.verify_s(len(left), block_size)
            left = [tokens - acceptance_length for tokens in left]
        left = [tokens for tokens in left if tokens > 0]
        admitted = [waiting.pop() for _ in range(min(concurrency - len(left), len(waiting)))]
        if admitted:
            seconds += costs.prefill_s(sum(job.prompt_len for job in admitted))
            left += [job.output_len - 1.0 for job in admitted if job.output_len > 1]
    return seconds


def predict_tokens_per_s(
    costs: Costs, jobs: Sequence[Job], concurrency: int, block_size: int, acceptance_length: float
) -> float:
    """Output tokens a second of :func:`predict_seconds`."""
    seconds = predict_seconds(costs, jobs, concurrency, block_size, acceptance_length)
    return sum(job.output_len for job in jobs) / seconds
