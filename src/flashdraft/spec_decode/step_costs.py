"""What a step costs on this machine, in seconds: measured once, then kept current by the steps themselves.

Knows shapes and seconds, neither models nor clocks. A forward runs over rows of one width, padding included.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_PACE_RATE, _NODE_RATE = 0.2, 0.05
_MAX_LOG_RATIO = 0.7  # one step that something else disturbed teaches no more than a factor of 2


class Curve:
    """Seconds by tokens: straight lines between measured points, the last one goes on."""

    def __init__(self, num_tokens: Sequence[int], seconds: Sequence[float]) -> None:
        assert len(num_tokens) == len(seconds)
        assert list(num_tokens) == sorted(set(num_tokens))
        self.num_tokens: Array = np.array(num_tokens, dtype=np.float64)
        self.seconds: Array = np.array(seconds, dtype=np.float64)
        self._points = list(num_tokens)

    def __call__(self, num_tokens: ArrayLike) -> Array:
        """Seconds for each of ``num_tokens``; before the first point what that took."""
        tokens = np.asarray(num_tokens, dtype=np.float64)
        inside: Array = np.interp(tokens, self.num_tokens, self.seconds)
        if len(self.seconds) < 2:
            return inside
        rise, run = self.seconds[-1] - self.seconds[-2], self.num_tokens[-1] - self.num_tokens[-2]
        beyond: Array = np.maximum(tokens - self.num_tokens[-1], 0.0) * max(rise / run, 0.0)
        return inside + beyond

    def learn(self, num_tokens: int, log_ratio: float) -> None:
        """Move the points beside ``num_tokens`` towards what was seen there."""
        points = self._points
        above = min(bisect_left(points, num_tokens), len(points) - 1)
        below = max(above - 1, 0)
        gap = points[above] - points[below]
        share = min((num_tokens - points[below]) / gap, 1.0) if gap else 1.0  # of the point above
        self.seconds[above] *= exp(_NODE_RATE * share * log_ratio)
        if above > below:
            self.seconds[below] *= exp(_NODE_RATE * (1 - share) * log_ratio)


@dataclass
class StepCosts:
    """The cost model: ``verify`` and ``draft`` by tokens of the forward, and what rows and logits add.

    A change that holds for every shape alike, as on a busy machine, goes into ``pace``, which no choice depends on;
    what is left of a difference moves the curve where it was seen.
    """

    verify: Curve  # the target's forward with the logits of every token
    draft: Curve  # the drafter's, each row with its whole block
    verify_row_s: float = 0.0  # of each row after the first, its tokens aside
    draft_row_s: float = 0.0
    logits_s: float = 0.0  # of one token's logits
    context_row_s: float = 0.0  # of each row, for each token of context beyond those of the measured steps
    context_token_s: float = 0.0  # of each token of the forward, likewise
    host_s: float = 0.0  # of a step, outside both forwards
    pace: float = 1.0  # seconds seen for one expected
    context: int = 0  # of the next step: tokens of its longest request beyond those of the measured steps

    def verify_seconds(self, num_rows: ArrayLike, width: ArrayLike) -> Array:
        """A target forward over ``num_rows`` rows of ``width`` tokens, logits of one token a row."""
        rows, wide = np.asarray(num_rows, dtype=np.float64), np.asarray(width, dtype=np.float64)
        seconds = self.verify(rows * wide) + self.verify_row_s * np.maximum(rows - 1, 0)
        seconds += self.context * rows * (self.context_row_s + self.context_token_s * wide)
        return np.asarray(np.maximum(seconds - self.logits_s * rows * (wide - 1), 0.0))

    def draft_seconds(self, num_rows: ArrayLike, block: int) -> Array:
        """The drafter's forward over ``num_rows`` blocks; nothing for no rows."""
        rows = np.asarray(num_rows, dtype=np.float64)
        seconds = self.draft(rows * block) + self.draft_row_s * np.maximum(rows - 1, 0)
        return np.where(rows > 0, seconds, 0.0)

    def learn(
        self, verified: tuple[int, int, int], verify_s: float, drafted: tuple[int, int], draft_s: float
    ) -> None:
        """Take a step's seconds: of (rows, width, logits beyond one a row) verified and of (rows, block) drafted."""
        rows, width, num_logits = verified
        expected_verify = float(self.verify_seconds(rows, width)) + self.logits_s * num_logits
        expected_draft = float(self.draft_seconds(*drafted))
        both = _log_ratio(verify_s + draft_s, (expected_verify + expected_draft) * self.pace)
        self.pace *= exp(_PACE_RATE * both)
        self.verify.learn(rows * width, _log_ratio(verify_s, expected_verify * self.pace))
        if drafted[0]:
            of_draft = _log_ratio(draft_s, expected_draft * self.pace)
            # Mostly for all shapes alike, those that nobody drafts any more included.
            self.draft.seconds *= exp(_PACE_RATE * of_draft)
            self.draft.learn(drafted[0] * drafted[1], of_draft)

    def learn_host(self, host_s: float) -> None:
        """Take a step's seconds outside both forwards."""
        self.host_s += _PACE_RATE * (host_s / self.pace - self.host_s)


def _log_ratio(seen_s: float, expected_s: float) -> float:
    if seen_s <= 0 or expected_s <= 0:
        return 0.0
    return min(max(log(seen_s / expected_s), -_MAX_LOG_RATIO), _MAX_LOG_RATIO)
