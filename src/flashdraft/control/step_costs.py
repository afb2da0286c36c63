"""What a step costs on this machine, in seconds: measured once, then kept current by the steps themselves.

Knows shapes and seconds, neither models nor clocks. A forward's tokens are all that are computed, padding included.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, log

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Shape = tuple[int, int]  # of a forward: rows, tokens of all of them

# Standard deviations of logarithms: of the first measurements, of a step's seconds, and of what changes between two.
FIRST, NOISE, DRIFT, PACE_DRIFT = 0.3, 0.05, 0.01, 0.05
MOST_SURPRISE = (
    0.7  # a step that something else disturbed, or that was recorded, teaches no more than a factor of 2
)


@dataclass
class Curve:
    """Seconds of forwards that cost by their tokens: lines between measured points, the last one goes on."""

    num_tokens: Array  # rising
    seconds: Array
    variance: Array = field(init=False)  # of the logarithm of each point's seconds

    def __post_init__(self) -> None:
        self.num_tokens, self.seconds = (np.array(one, float) for one in (self.num_tokens, self.seconds))
        assert (np.diff(self.num_tokens) > 0).all()
        self.variance = np.full(len(self.seconds), FIRST**2)

    def __call__(self, _num_rows: ArrayLike, num_tokens: ArrayLike) -> Array:
        """Seconds of forwards over ``num_tokens``, of however many requests."""
        tokens = np.asarray(num_tokens, float)
        seconds = np.interp(tokens, self.num_tokens, self.seconds)
        if len(self.seconds) > 1:
            slope = (self.seconds[-1] - self.seconds[-2]) / (self.num_tokens[-1] - self.num_tokens[-2])
            seconds += np.maximum(tokens - self.num_tokens[-1], 0.0) * max(slope, 0.0)
        return np.asarray(seconds)

    def shares(self, _num_rows: int, num_tokens: int) -> Array:
        """[points]: how much of the seconds each point tells; beyond the last point all is the last's."""
        return np.array([np.interp(num_tokens, self.num_tokens, one) for one in np.eye(len(self.seconds))])

    def scale(self, factors: Array) -> None:
        """Correct each point."""
        self.seconds = not_falling(self.seconds * factors)


class ShapeTable:
    """Seconds of forwards that are recorded (ops/recorded.py), by [rows, width]: a shape costs what the next one does.

    A GPU's forward takes hardly longer for 16 tokens a row than for 8, or for 32 rows than for 16, until it does: no
    curve over tokens tells. But recorded shapes come in powers of two, so that few are all there are, and each is
    measured.
    """

    def __init__(self, num_rows: Sequence[int], widths: Sequence[int], seconds: ArrayLike) -> None:
        self.num_rows, self.widths = np.array(num_rows), np.array(widths)
        self.seconds: Array = np.array(seconds, float)
        assert self.seconds.shape == (len(num_rows), len(widths))
        self.variance = np.full(self.seconds.shape, FIRST**2)

    def __call__(self, num_rows: ArrayLike, num_tokens: ArrayLike) -> Array:
        """Seconds of forwards over ``num_tokens`` of ``num_rows`` together; larger ones cost in proportion."""
        at, more = self._place(np.asarray(num_rows), np.asarray(num_tokens))
        return np.asarray(self.seconds[at] * more)

    def _place(self, rows: NDArray[np.int_], tokens: NDArray[np.int_]) -> tuple[tuple[Array, Array], Array]:
        width, most, widest = np.ceil(tokens / np.maximum(rows, 1)), self.num_rows[-1], self.widths[-1]
        row_at = np.searchsorted(self.num_rows, np.minimum(rows, most))
        width_at = np.searchsorted(self.widths, np.minimum(width, widest))
        return (row_at, width_at), np.maximum(rows / most, 1.0) * np.maximum(width / widest, 1.0)

    def shares(self, num_rows: int, num_tokens: int) -> Array:
        """[rows, widths]: 1 for the shape that it is."""
        shares = np.zeros_like(self.seconds)
        shares[self._place(np.asarray(num_rows), np.asarray(num_tokens))[0]] = 1.0
        return shares

    def scale(self, factors: Array) -> None:
        """Correct each shape."""
        self.seconds = self.seconds * factors


@dataclass
class StepCosts:
    """The cost model of target and drafter.

    A change that holds for every shape alike, as on a busy machine, goes into ``pace``, which no choice depends on.
    Which of the two a step's surprise is due to, tells how sure each is (a Kalman filter over logarithms): the pace
    changes fast and a shape slowly, but the shape was measured once, in a moment like any other.
    """

    verify: Curve | ShapeTable  # the target's forward with the logits of every token
    draft: Curve | ShapeTable  # the drafter's, each row with its whole block
    pace: float = 1.0  # seconds seen for one expected
    is_ragged: bool = False  # rows are computed without padding
    _pace_variance: float = FIRST**2

    @property
    def is_recorded(self) -> bool:
        """Whether steps come in few shapes, and are planned so."""
        return isinstance(self.verify, ShapeTable)

    def forward_seconds(self, num_rows: ArrayLike, num_tokens: ArrayLike) -> Array:
        """A target forward over ``num_tokens`` of ``num_rows`` requests together."""
        return self.verify(num_rows, num_tokens)

    def draft_seconds(self, num_rows: ArrayLike, block: ArrayLike) -> Array:
        """The drafter's forward over ``num_rows`` blocks; nothing for no rows."""
        rows = np.asarray(num_rows)
        return np.where(rows > 0, self.draft(rows, rows * block), 0.0)

    def learn(self, verified: Shape, verify_s: float, drafted: Shape, draft_s: float) -> None:
        """Take a step's seconds."""
        self._pace_variance += PACE_DRIFT**2
        self._correct(self.verify, verified, verify_s)
        self._correct(self.draft, drafted, draft_s)

    def _correct(self, part: Curve | ShapeTable, shape: Shape, seen_s: float) -> None:
        """The filter's step, for one forward."""
        expected_s = float(part(*shape)) * self.pace
        if seen_s <= 0 or expected_s <= 0:
            return
        surprise = min(max(log(seen_s / expected_s), -MOST_SURPRISE), MOST_SURPRISE)
        part.variance = part.variance + DRIFT**2
        shares = part.shares(*shape)
        gains = part.variance * shares
        variance = self._pace_variance + float((gains * shares).sum()) + NOISE**2
        part.scale(np.exp(gains * (surprise / variance)))
        self.pace *= exp(self._pace_variance * surprise / variance)
        part.variance = part.variance - gains**2 / variance
        self._pace_variance -= self._pace_variance**2 / variance


def not_falling(seconds: ArrayLike) -> Array:
    """Each no more than those behind it: more tokens never take less; where it looks so, something else ran."""
    return np.asarray(np.minimum.accumulate(np.asarray(seconds, float)[::-1])[::-1])
