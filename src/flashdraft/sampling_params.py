"""How a request wants its tokens chosen. Names and meanings are vLLM's."""

from dataclasses import dataclass

from flashdraft.errors import UsageError


@dataclass(frozen=True)
class SamplingParams:
    """Sampling settings of one request. Raises UsageError for a value out of range."""

    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0  # smallest set of tokens whose probability reaches this
    top_k: int = 0  # 0 or -1: all
    min_p: float = 0.0  # least probability, as a share of the most likely token's
    seed: int | None = None  # one seed gives one text; None: a fresh one for each request
    max_tokens: int = 16
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        checks = (
            (self.temperature >= 0, "temperature", self.temperature, "0 (greedy) or more"),
            (0 < self.top_p <= 1, "top_p", self.top_p, "above 0, at most 1"),
            (self.top_k >= -1, "top_k", self.top_k, "a count, or 0 or -1 for all tokens"),
            (0 <= self.min_p <= 1, "min_p", self.min_p, "between 0 and 1"),
            (self.max_tokens >= 1, "max_tokens", self.max_tokens, "1 or more"),
        )
        for is_fine, name, found, expected in checks:
            if not is_fine:
                raise UsageError(f"{name} is {found}; expected {expected}")

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0
