"""How a request wants its tokens chosen. Names and meanings are vLLM's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from secrets import randbits
from typing import Any

from flashdraft.errors import UsageError
from flashdraft.grammar import Grammar

GREEDY_BELOW = 1e-5  # vLLM's: logits divided by less leave nothing of all but the likeliest token
MAX_TEMPERATURE = 100.0
MAX_BIAS = 100.0  # OpenAI's
MAX_PENALTY_FACTOR = 100.0
_REALS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
_NUMBERS = (
    (_REALS, Real, "a number"),
    (("top_k", "max_tokens", "min_tokens", "n"), Integral, "a whole number"),
    (("seed", "logprobs", "prompt_logprobs"), Integral | None, "None or a whole number"),
)
# Field, how it is kept, and what may be said.
_COLLECTIONS: tuple[tuple[str, Callable[[Any], Any], str], ...] = (
    ("stop", lambda said: (said,) if isinstance(said, str) else tuple(said), "a text, or several"),
    ("stop_token_ids", tuple, "token ids"),
    ("logit_bias", lambda said: {int(t): float(b) for t, b in said.items()}, "a number for each token id"),
)


@dataclass(frozen=True)
class SamplingParams:
    """Sampling settings of one request. Raises UsageError for a value out of range."""

    temperature: float = 1.0  # below GREEDY_BELOW: greedy
    top_p: float = 1.0  # smallest set of tokens whose probability reaches this
    top_k: int = 0  # 0 or -1: all
    min_p: float = 0.0  # least probability, as a share of the most likely token's
    seed: int | None = None  # one seed gives one text; None: a fresh one for each request
    max_tokens: int = 16  # the answer ends with the model's context too: finish reason length
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    stop: str | Sequence[str] = ()  # texts that end the answer; kept as a tuple
    include_stop_str_in_output: bool = False
    min_tokens: int = 0  # no end token and no stop text before this many
    presence_penalty: float = 0.0  # off the logit of every token of the answer so far
    frequency_penalty: float = 0.0  # the same, times how often it was there
    repetition_penalty: float = 1.0  # divides (a negative logit: multiplies) those of prompt and answer
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id -> added to its logit
    logprobs: int | None = None  # 0: of the chosen tokens; k: of the k most likely too; None: none
    prompt_logprobs: int | None = None  # the same of the prompt's own tokens, all but the first
    grammar: Grammar | None = None  # what the answer must look like
    n: int = 1  # how many answers

    def __post_init__(self) -> None:
        for names, kind, expected in _NUMBERS:
            for name in names:
                if not isinstance(getattr(self, name), kind):
                    raise UsageError(f"{name} is {getattr(self, name)!r}; expected {expected}")
        for name, kept, expected in _COLLECTIONS:
            said = getattr(self, name)
            try:
                object.__setattr__(self, name, kept(said))
            except (AttributeError, TypeError, ValueError):
                raise UsageError(f"{name} is {said!r}; expected {expected}") from None
        checks = (
            (0 <= self.temperature <= MAX_TEMPERATURE, "temperature", f"0 (greedy) to {MAX_TEMPERATURE:g}"),
            (0 < self.top_p <= 1, "top_p", "above 0, at most 1"),
            (self.top_k >= -1, "top_k", "a count, or 0 or -1 for all tokens"),
            (0 <= self.min_p <= 1, "min_p", "between 0 and 1"),
            (self.max_tokens >= 1, "max_tokens", "1 or more"),
            (0 <= self.min_tokens <= self.max_tokens, "min_tokens", "between 0 and max_tokens"),
            (-2 <= self.presence_penalty <= 2, "presence_penalty", "between -2 and 2"),
            (-2 <= self.frequency_penalty <= 2, "frequency_penalty", "between -2 and 2"),
            (
                1 / MAX_PENALTY_FACTOR <= self.repetition_penalty <= MAX_PENALTY_FACTOR,
                "repetition_penalty",
                f"{1 / MAX_PENALTY_FACTOR:g} to {MAX_PENALTY_FACTOR:g}; 1 for none",
            ),
            (all(self.stop), "stop", "texts of at least one character"),
            (self.logprobs is None or self.logprobs >= 0, "logprobs", "None, 0 or a count"),
            (
                self.prompt_logprobs is None or self.prompt_logprobs >= 0,
                "prompt_logprobs",
                "None, 0 or a count",
            ),
            (self.n >= 1, "n", "1 or more"),
        )
        for token, bias in self.logit_bias.items():
            if not -MAX_BIAS <= bias <= MAX_BIAS:
                raise UsageError(
                    f"logit_bias of token {token} is {bias}; expected -{MAX_BIAS:g} to {MAX_BIAS:g}"
                )
        for is_fine, name, expected in checks:
            if not is_fine:
                raise UsageError(f"{name} is {getattr(self, name)!r}; expected {expected}")
        if self.grammar and (self.ignore_eos or self.min_tokens):
            name = "ignore_eos" if self.ignore_eos else "min_tokens"
            raise UsageError(
                f"{name} is set, but a grammar says itself where an answer may end: leave one out"
            )

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature < GREEDY_BELOW

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """``stop`` as it is kept."""
        return tuple(self.stop)

    def split(self) -> list["SamplingParams"]:
        """One set of params for each of the ``n`` answers; their seeds follow one another."""
        if self.n == 1:
            return [self]
        seed = randbits(62) if self.seed is None else self.seed
        return [replace(self, n=1, seed=seed + i) for i in range(self.n)]
