"""What a step costs on this machine, in seconds: measured once, then kept current by the steps themselves.

Knows shapes and seconds, neither models nor clocks. A forward's tokens are all that are computed, padding included.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from math import log, log2

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Shape = tuple[int, int]  # of a forward: rows, tokens of all of them

# Standard deviations of logarithms: of the first measurements, of a step's seconds, and of what changes between two.
_FIRST, _NOISE, _DRIFT, _PACE_DRIFT = 0.3, 0.05, 0.003, 0.05
_KINSHIP = 3.0  # doublings of rows and tokens over which what is learned of a shape fades to a third
_FAR = 1e3  # doublings: of what no other part tells of
_MOST_SLOWER = 0.7  # logarithm: a step that something else disturbed teaches no more than a factor of 2
_TAUGHT_BY = 4  # recorded steps of a shape, whose median teaches: what disturbs one of them does not


@dataclass
class Curve:
    """Seconds of forwards that cost by their tokens: lines between measured points, the last one goes on."""

    num_tokens: Array  # rising
    seconds: Array
    row_s: float = 0.0  # of each row after the first, its tokens aside

    def __post_init__(self) -> None:
        self.num_tokens, self.seconds = (np.array(one, float) for one in (self.num_tokens, self.seconds))
        assert (np.diff(self.num_tokens) > 0).all()

    def __call__(self, num_rows: ArrayLike, num_tokens: ArrayLike) -> Array:
        """Seconds of forwards over ``num_tokens`` of ``num_rows`` requests together."""
        tokens = np.asarray(num_tokens, float)
        seconds = np.interp(tokens, self.num_tokens, self.seconds)
        if len(self.seconds) > 1:
            slope = (self.seconds[-1] - self.seconds[-2]) / (self.num_tokens[-1] - self.num_tokens[-2])
            seconds += np.maximum(tokens - self.num_tokens[-1], 0.0) * max(slope, 0.0)
        return np.asarray(seconds + self.row_s * np.maximum(np.asarray(num_rows) - 1, 0))

    @property
    def places(self) -> list[tuple[float, ...]]:
        """Where the parts lie that steps correct, in doublings: each point, and what rows cost, which has no kin."""
        return [*((tokens, 0.0) for tokens in np.log2(self.num_tokens).tolist()), (_FAR, 0.0)]

    def shares(self, num_rows: int, num_tokens: int) -> Array:
        """[points + 1]: how much of the seconds each point tells, and ``row_s``; behind the last point it does."""
        shares = [float(np.interp(num_tokens, self.num_tokens, one)) for one in np.eye(len(self.seconds))]
        of_points = float(self(1, num_tokens)) / float(self(num_rows, num_tokens))
        return np.array([*(of_points * share for share in shares), 1.0 - of_points])

    def scale(self, factors: Array) -> None:
        """Correct each part. More tokens never take less: what is known to be slow raises those behind it."""
        rise = np.maximum.accumulate if np.log(factors[:-1]).sum() > 0 else not_falling
        self.seconds = rise(self.seconds * factors[:-1])
        self.row_s *= float(factors[-1])


class ShapeTable:
    """Seconds of forwards that are recorded (ops/recorded.py), by [rows, width]: a shape costs what the next one does.

    A GPU's forward takes hardly longer for 16 tokens a row than for 8, until it does: no curve over tokens tells. But
    recorded shapes come in powers of two, so that few are all there are, and each is measured.
    """

    def __init__(self, num_rows: Sequence[int], widths: Sequence[int], seconds: ArrayLike) -> None:
        self.num_rows, self.widths = np.array(num_rows), np.array(widths)
        self.seconds: Array = np.array(seconds, float)
        assert self.seconds.shape == (len(num_rows), len(widths))

    def __call__(self, num_rows: ArrayLike, num_tokens: ArrayLike) -> Array:
        """Seconds of forwards over ``num_tokens`` of ``num_rows`` together; larger ones cost in proportion."""
        at, more = self._place(np.asarray(num_rows), np.asarray(num_tokens))
        return np.asarray(self.seconds[at] * more)

    def _place(self, rows: NDArray[np.int_], tokens: NDArray[np.int_]) -> tuple[tuple[Array, Array], Array]:
        width, most, widest = np.ceil(tokens / np.maximum(rows, 1)), self.num_rows[-1], self.widths[-1]
        row_at = np.searchsorted(self.num_rows, np.minimum(rows, most))
        width_at = np.searchsorted(self.widths, np.minimum(width, widest))
        return (row_at, width_at), np.maximum(rows / most, 1.0) * np.maximum(width / widest, 1.0)

    @property
    def places(self) -> list[tuple[float, ...]]:
        """Where the shapes lie, in doublings of rows and of width."""
        return [(log2(rows), log2(width)) for rows, width in product(self.num_rows, self.widths)]

    def shares(self, num_rows: int, num_tokens: int) -> Array:
        """[rows * widths]: 1 for the shape that it is."""
        shares = np.zeros_like(self.seconds)
        shares[self._place(np.asarray(num_rows), np.asarray(num_tokens))[0]] = 1.0
        return shares.ravel()

    def scale(self, factors: Array) -> None:
        """Correct each shape."""
        self.seconds = self.seconds * factors.reshape(self.seconds.shape)


@dataclass
class StepCosts:
    """The cost model of target and drafter.

    A change that holds for every shape alike, as on a busy machine, goes into ``pace``, which no choice depends on.
    Which of its parts a step's surprise is due to, a Kalman filter says, over the logarithms of all of them: the pace
    changes fast and the rest slowly, but the rest was measured once, in a moment like any other.
    """

    verify: Curve | ShapeTable  # all of a step but its drafts: the target's forward, and what the host does
    draft: Curve | ShapeTable  # the drafter's, each row with its whole block
    pace: float = 1.0  # seconds seen for one expected
    is_ragged: bool = False  # rows are computed without padding
    plain_trials: int = 0  # steps that come soon whatever these costs say, so that they are seen
    draft_trials: int = 0
    _untaught: dict[tuple[Shape, Shape], list[tuple[float, float]]] = field(default_factory=dict)
    _covariance: Array = field(default_factory=lambda: np.zeros(0))  # [parts, parts]: pace, verify, draft

    @property
    def is_recorded(self) -> bool:
        """Whether steps come in few shapes, and are planned so."""
        return isinstance(self.verify, ShapeTable)

    def draft_seconds(self, num_rows: ArrayLike, block: ArrayLike) -> Array:
        """The drafter's forward over ``num_rows`` blocks; nothing for no rows."""
        rows = np.asarray(num_rows)
        return np.where(rows > 0, self.draft(rows, rows * block), 0.0)

    def learn(self, verified: Shape, verify_s: float, drafted: Shape, draft_s: float) -> None:
        """Take a step's seconds; 0 of a part that tells nothing. Recorded steps of a shape teach some at a time."""
        if self.is_recorded:
            seen = self._untaught.setdefault((verified, drafted), [])
            seen.append((verify_s, draft_s))
            if len(seen) < _TAUGHT_BY:
                return
            verify_s, draft_s = np.median(seen, axis=0).tolist()
            seen.clear()
        if not len(self._covariance):  # nothing is known for sure; shapes of like size were measured alike
            parts = enumerate((self.verify.places, self.draft.places), 1)
            places = np.array([(0.0, 0.0, 0.0), *((idx * _FAR, *one) for idx, part in parts for one in part)])
            self._covariance = _FIRST**2 * np.exp(-np.abs(places[:, None] - places).sum(axis=2) / _KINSHIP)
        self._covariance += np.diag([_PACE_DRIFT**2, *[_DRIFT**2] * (len(self._covariance) - 1)])
        self._correct(self.verify, 1, verified, verify_s)
        if drafted[0]:
            self._correct(self.draft, 1 + len(self.verify.places), drafted, draft_s)
            self.draft_trials = max(self.draft_trials - 1, 0)
        else:
            self.plain_trials = max(self.plain_trials - 1, 0)

    def _correct(self, part: Curve | ShapeTable, first: int, shape: Shape, seen_s: float) -> None:
        """The filter's step, for one forward."""
        expected_s = float(part(*shape)) * self.pace
        if seen_s <= 0 or expected_s <= 0:
            return
        surprise, own = min(log(seen_s / expected_s), _MOST_SLOWER), part.shares(*shape)
        slopes = np.zeros(len(self._covariance))  # of the logarithm of the seconds by those of the parts
        slopes[0], slopes[first : first + len(own)] = 1.0, own
        gains = self._covariance @ slopes
        variance = float(slopes @ gains) + _NOISE**2
        self._covariance -= np.outer(gains, gains) / variance
        factors = np.exp(gains * (surprise / variance))
        self.pace *= float(factors[0])
        of_verify, of_draft = np.split(factors[1:], [len(self.verify.places)])
        self.verify.scale(of_verify)
        self.draft.scale(of_draft)


def not_falling(seconds: ArrayLike) -> Array:
    """Each no more than those behind it: more tokens never take less; where it looks so, something else ran."""
    return np.asarray(np.minimum.accumulate(np.asarray(seconds, float)[::-1])[::-1])
