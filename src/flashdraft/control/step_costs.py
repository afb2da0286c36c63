"""What a step costs on this machine, in seconds: measured once, then kept current by the steps themselves.

Knows shapes and seconds, neither models nor clocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# Standard deviations of logarithms: of the first measurements, of a step's seconds, and of what changes between two.
_FIRST, _NOISE, _DRIFT, _PACE_DRIFT = 0.3, 0.05, 0.003, 0.05
_KINSHIP = 3.0  # doublings of tokens over which what is learned of a shape fades to a third
_HOST_RATE = 0.2
_MAX_LOG_RATIO = 0.7  # one step that something else disturbed teaches no more than a factor of 2


class Curve:
    """Seconds by tokens: straight lines between measured points, the last one goes on."""

    def __init__(self, num_tokens: Sequence[int], seconds: Sequence[float]) -> None:
        assert len(num_tokens) == len(seconds)
        assert list(num_tokens) == sorted(set(num_tokens))
        self.num_tokens: Array = np.array(num_tokens, dtype=np.float64)
        self.seconds: Array = np.array(seconds, dtype=np.float64)

    def __call__(self, num_tokens: ArrayLike) -> Array:
        """Seconds for each of ``num_tokens``; before the first point what that took."""
        tokens = np.asarray(num_tokens, dtype=np.float64)
        inside: Array = np.interp(tokens, self.num_tokens, self.seconds)
        if len(self.seconds) < 2:
            return inside
        rise, run = self.seconds[-1] - self.seconds[-2], self.num_tokens[-1] - self.num_tokens[-2]
        beyond: Array = np.maximum(tokens - self.num_tokens[-1], 0.0) * max(rise / run, 0.0)
        return inside + beyond

    def reaching(self, most: int) -> "Curve":
        """The same with points at every doubling to ``most`` tokens, for steps to teach what was not measured."""
        tokens = self.num_tokens.tolist()
        while tokens[-1] < most:
            tokens.append(2 * tokens[-1])
        return Curve(tokens, self(tokens).tolist())

    def terms(self, num_tokens: float) -> Array:
        """[points]: what each point adds to the seconds of ``num_tokens``; beyond the last point all is the last's."""
        last = len(self.seconds) - 1
        right = min(int(np.searchsorted(self.num_tokens, num_tokens)), last)
        terms = np.zeros(last + 1)
        if num_tokens >= self.num_tokens[right] or right == 0:
            terms[right] = float(self(num_tokens))
            return terms
        gap = self.num_tokens[right] - self.num_tokens[right - 1]
        share = (num_tokens - self.num_tokens[right - 1]) / gap
        terms[right - 1] = (1 - share) * self.seconds[right - 1]
        terms[right] = share * self.seconds[right]
        return terms


@dataclass
class StepCosts:
    """The cost model: ``verify`` and ``draft`` by tokens of the forward, and what rows and logits add.

    A change that holds for every shape alike, as on a busy machine, goes into ``pace``, which no choice depends on.
    Which of the parts a step's surprise is due to, is a Kalman filter's to say, over the logarithms of all of
    them: the pace changes fast and the rest slowly, but the rest was measured once, in a moment like any other.
    """

    is_recorded: ClassVar[bool] = False  # steps come in few shapes (RecordedCosts), and are planned so

    verify: Curve  # the target's forward with the logits of every token
    draft: Curve  # the drafter's, each row with its whole block
    verify_row_s: float = 0.0  # of each row after the first, its tokens aside
    draft_row_s: float = 0.0
    logits_s: float = 0.0  # of one token's logits
    context_row_s: float = 0.0  # of each row, for each token of context beyond those of the measured steps
    context_token_s: float = 0.0  # of each token of the forward, likewise
    observe_token_s: float = 0.0  # of a committed token that the drafter takes, beyond what ``draft`` holds
    host_s: float = 0.0  # of a step, outside both forwards
    pace: float = 1.0  # seconds seen for one expected
    context: int = 0  # of the next step: tokens of its longest request beyond those of the measured steps
    is_ragged: bool = False  # rows are computed without padding; ``context`` is then the mean of all requests
    _covariance: Array = field(default_factory=lambda: np.zeros((0, 0)))  # [parts, parts], pace first

    def forward_seconds(self, num_rows: ArrayLike, num_tokens: ArrayLike) -> Array:
        """A target forward over ``num_tokens`` of ``num_rows`` requests, padding included, logits of all of them."""
        rows, tokens = np.asarray(num_rows, dtype=np.float64), np.asarray(num_tokens, dtype=np.float64)
        seconds = self.verify(tokens) + self.verify_row_s * np.maximum(rows - 1, 0)
        seconds += self.context * (rows * self.context_row_s + tokens * self.context_token_s)
        return np.asarray(seconds)

    def verify_seconds(self, num_rows: ArrayLike, width: ArrayLike) -> Array:
        """A target forward over ``num_rows`` rows of ``width`` tokens, logits of one token a row."""
        rows, wide = np.asarray(num_rows, dtype=np.float64), np.asarray(width, dtype=np.float64)
        seconds = self.forward_seconds(rows, rows * wide)
        return np.asarray(np.maximum(seconds - self.logits_s * rows * (wide - 1), 0.0))

    def draft_seconds(self, num_rows: ArrayLike, block: int) -> Array:
        """The drafter's forward over ``num_rows`` blocks; nothing for no rows."""
        rows = np.asarray(num_rows, dtype=np.float64)
        seconds = self.draft(rows * block) + self.draft_row_s * np.maximum(rows - 1, 0)
        return np.where(rows > 0, seconds, 0.0)

    def learn(
        self, verified: tuple[int, int, int], verify_s: float, drafted: tuple[int, int], draft_s: float
    ) -> None:
        """Take a step's seconds: of (rows, tokens, logits) verified and of (rows, block) drafted.

        Tokens are those of the forward, with its padding.
        """
        if not len(self._covariance):
            self._covariance = self._first_covariance()
        drift = np.full(len(self._covariance), _DRIFT)
        drift[0] = _PACE_DRIFT
        self._covariance[np.diag_indices_from(self._covariance)] += drift**2
        rows, tokens, num_logits = verified
        num_verify, num_draft = len(self.verify.seconds), len(self.draft.seconds)
        of_verify = [
            *self.verify.terms(tokens),
            self.verify_row_s * (rows - 1),
            self.context * rows * self.context_row_s,
            self.context * tokens * self.context_token_s,
        ]
        expected_s = sum(of_verify) - self.logits_s * (tokens - num_logits)
        self._correct([*of_verify, *[0.0] * (num_draft + 1)], expected_s, verify_s)
        if drafted[0]:
            of_draft = [*self.draft.terms(drafted[0] * drafted[1]), self.draft_row_s * (drafted[0] - 1)]
            self._correct([*[0.0] * (num_verify + 3), *of_draft], sum(of_draft), draft_s)

    def _first_covariance(self) -> Array:
        """Nothing is known for sure of the pace nor of any part; shapes of like size were measured alike."""
        num_verify, num_draft = len(self.verify.seconds), len(self.draft.seconds)
        covariance = np.diag([_FIRST**2] * (1 + num_verify + 3 + num_draft + 1))
        for curve, first in ((self.verify, 1), (self.draft, 1 + num_verify + 3)):
            doublings: Array = np.log2(curve.num_tokens)
            apart = np.abs(doublings[:, None] - doublings) / _KINSHIP
            own = slice(first, first + len(doublings))
            covariance[own, own] = _FIRST**2 * np.exp(-apart)
        return covariance

    def _correct(self, terms: Sequence[float], expected_s: float, seen_s: float) -> None:
        """The filter's step: ``terms`` are what each part, pace aside, adds to ``expected_s``."""
        if seen_s <= 0 or expected_s <= 0:
            return
        surprise = log(seen_s / (expected_s * self.pace))
        surprise = min(max(surprise, -_MAX_LOG_RATIO), _MAX_LOG_RATIO)
        # Of the logarithm of the seconds by those of the parts.
        slopes: Array = np.array([1.0, *(term / expected_s for term in terms)])
        gains = self._covariance @ slopes
        gains /= np.sqrt(variance := float(slopes @ gains) + _NOISE**2)
        self._covariance -= np.outer(gains, gains)
        factors = np.exp(gains * (surprise / np.sqrt(variance)))
        edges = np.cumsum([1, len(self.verify.seconds), 3, len(self.draft.seconds)])
        pace, of_verify, others, of_draft, row = np.split(factors, edges)
        self.pace *= float(pace[0])
        self.verify.seconds = _rising(self.verify.seconds * of_verify)
        self.draft.seconds = _rising(self.draft.seconds * of_draft)
        self.verify_row_s *= float(others[0])
        self.context_row_s *= float(others[1])
        self.context_token_s *= float(others[2])
        self.draft_row_s *= float(row[0])

    def learn_observe(self, num_tokens: int, seconds: float) -> None:
        """Take what it took the drafter to take ``num_tokens`` committed ones."""
        self.observe_token_s += _HOST_RATE * (seconds / self.pace / num_tokens - self.observe_token_s)

    def learn_host(self, host_s: float) -> None:
        """Take a step's seconds outside both forwards."""
        self.host_s += _HOST_RATE * (host_s / self.pace - self.host_s)


def _rising(seconds: Array) -> Array:
    """The nearest that never falls: more tokens never take less, whatever a few steps make it look like."""
    if (seconds[1:] >= seconds[:-1]).all():
        return seconds
    levels: list[tuple[float, int]] = []
    for one in seconds.tolist():
        level, count = one, 1
        while levels and levels[-1][0] > level:
            before, num_before = levels.pop()
            level = (before * num_before + level * count) / (num_before + count)
            count += num_before
        levels.append((level, count))
    return np.repeat([level for level, _ in levels], [count for _, count in levels])
