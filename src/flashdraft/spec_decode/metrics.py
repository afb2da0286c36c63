"""What a request cost and what its drafts were worth. Over many requests every rate is a ratio of sums."""

from dataclasses import dataclass, field
from itertools import zip_longest

from flashdraft.spec_decode.tree import DraftTree


@dataclass
class RequestMetrics:
    """Counts and seconds of one request, or the sum over several."""

    num_rounds: int = 0
    num_drafted: int = 0  # draft tokens proposed
    num_accepted: int = 0  # draft tokens delivered
    num_output_tokens: int = 0
    num_requests: int = 1
    accepted_histogram: list[int] = field(default_factory=list)  # [i]: rounds that accepted i draft tokens
    verified_histogram: list[int] = field(
        default_factory=list
    )  # [i]: rounds that verified i tokens; 1: plain
    prefill_s: float = 0.0
    decode_s: float = 0.0  # all rounds, host work included
    draft_s: float = 0.0
    verify_s: float = 0.0  # drafting included in rounds that a GPU runs from end to end

    @property
    def acceptance_length(self) -> float:
        """Tokens gained a verification: (output tokens - 1) / rounds over delivered tokens; 1.0 without rounds."""
        if not self.num_rounds:
            return 1.0
        return (self.num_output_tokens - self.num_requests) / self.num_rounds

    @property
    def num_plain_rounds(self) -> int:
        """Rounds that verified no draft."""
        return sum(self.verified_histogram[1:2])

    @property
    def accepted_by_position(self) -> list[float]:
        """Share of rounds in which draft token i (0-based) was accepted."""
        total = sum(self.accepted_histogram)
        return [
            sum(self.accepted_histogram[i + 1 :]) / total for i in range(len(self.accepted_histogram) - 1)
        ]

    def record_round(self, draft: DraftTree, num_accepted: int) -> None:
        """Count one verification."""
        self.num_rounds += 1
        self.num_drafted += len(draft)
        _count(self.accepted_histogram, num_accepted, max(draft.depth, num_accepted) + 1)
        _count(self.verified_histogram, 1 + len(draft), 2 + len(draft))

    def record_plain_rounds(self, count: int) -> None:
        """Count ``count`` rounds that verified no draft."""
        if count:
            self.num_rounds += count
            _count(self.accepted_histogram, 0, 1, count)
            _count(self.verified_histogram, 1, 2, count)

    def record_seconds(self, draft_s: float, verify_s: float) -> None:
        """Add what a round's two halves took."""
        self.draft_s += draft_s
        self.verify_s += verify_s

    def record_tokens(self, num_tokens: int, num_accepted: int) -> None:
        """Count delivered tokens, of which ``num_accepted`` were drafted."""
        self.num_output_tokens += num_tokens
        self.num_accepted += num_accepted

    def add(self, other: "RequestMetrics") -> None:
        """Add another's counts to these."""
        own, others = vars(self), vars(other)
        for name in ("accepted_histogram", "verified_histogram"):
            both = zip_longest(own[name], others[name], fillvalue=0)
            own[name] = [a + b for a, b in both]
        for name in (
            "num_rounds",
            "num_drafted",
            "num_accepted",
            "num_output_tokens",
            "num_requests",
            "prefill_s",
            "decode_s",
            "draft_s",
            "verify_s",
        ):
            own[name] += others[name]


def _count(histogram: list[int], value: int, length: int, count: int = 1) -> None:
    histogram += [0] * (length - len(histogram))
    histogram[value] += count
