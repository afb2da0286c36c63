"""What a step costs on this machine, in seconds: measured once, then kept current by the steps themselves.

Knows shapes and seconds, neither models nor clocks. A forward's tokens are all that are computed, padding included.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# Standard deviations of logarithms: of the first measurements, of a step's seconds, and of what changes between two.
_FIRST, _NOISE, _DRIFT, _PACE_DRIFT = 0.3, 0.05, 0.003, 0.05
_KINSHIP = 3.0  # doublings of tokens over which what is learned of a shape fades to a third
_HOST_RATE = 0.2
# Logarithm: a step that something else disturbed, or that was recorded, teaches no more than a factor of 2. Nothing
# makes a step faster than it is: one that was faster is believed as seen.
_MOST_SLOWER = 0.7
_FAR = 1e3  # doublings: a part that no other one tells of


@dataclass
class Curve:
    """Seconds of forwards that cost by their tokens: lines between measured points, the last one goes on."""

    num_tokens: Array  # rising
    seconds: Array
    row_s: float = 0.0  # of each row after the first, its tokens aside
    context_row_s: float = 0.0  # of each row, for each token of context beyond those of the measured steps
    context_token_s: float = 0.0  # of each token of the forward, likewise

    def __post_init__(self) -> None:
        self.num_tokens, self.seconds = (np.array(one, float) for one in (self.num_tokens, self.seconds))
        assert len(self.num_tokens) == len(self.seconds)
        assert (np.diff(self.num_tokens) > 0).all()

    def __call__(self, num_rows: ArrayLike, num_tokens: ArrayLike, context: int = 0) -> Array:
        """Seconds of forwards over ``num_tokens`` of ``num_rows`` requests together."""
        rows, tokens = np.asarray(num_rows, float), np.asarray(num_tokens, float)
        seconds = np.interp(tokens, self.num_tokens, self.seconds) + self.row_s * np.maximum(rows - 1, 0)
        if len(self.seconds) > 1:
            slope = (self.seconds[-1] - self.seconds[-2]) / (self.num_tokens[-1] - self.num_tokens[-2])
            seconds += np.maximum(tokens - self.num_tokens[-1], 0.0) * max(slope, 0.0)
        return np.asarray(seconds + context * (rows * self.context_row_s + tokens * self.context_token_s))

    def reaching(self, most: int) -> "Curve":
        """The same with points at every doubling to ``most`` tokens, for steps to teach what was not measured."""
        tokens = self.num_tokens.tolist()
        while tokens[-1] < most:
            tokens.append(2 * tokens[-1])
        return Curve(np.array(tokens), self(1, tokens))

    @property
    def num_parts(self) -> int:
        """What steps correct: each point, and what rows and context cost beside them."""
        return len(self.seconds) + 1

    def shares(self, num_rows: int, num_tokens: int, context: int = 0) -> Array:
        """[parts]: how much of the seconds each part tells; beyond the last point all is the last's."""
        right = min(int(np.searchsorted(self.num_tokens, num_tokens)), len(self.seconds) - 1)
        shares, left = np.zeros(self.num_parts), max(right - 1, 0)
        gap = max(self.num_tokens[right] - self.num_tokens[left], 1.0)
        shares[left] = min(max((self.num_tokens[right] - num_tokens) / gap, 0.0), 1.0)
        shares[right] += 1.0 - shares[left]
        of_points, of_all = float(self(1, num_tokens)), float(self(num_rows, num_tokens, context))
        shares[-1] = 1.0 - of_points / of_all if of_all > 0 else 0.0
        shares[:-1] *= 1.0 - shares[-1]
        return shares

    def doublings(self) -> Array:
        """[parts, 1]: where they lie."""
        return np.append(np.log2(self.num_tokens), _FAR)[:, None]

    def scale(self, factors: Array) -> None:
        """Correct each part. More tokens never take less: what is known to be slow raises those behind it."""
        seconds, is_slower = self.seconds * factors[:-1], np.log(factors[:-1]).sum() > 0
        self.seconds = np.maximum.accumulate(seconds) if is_slower else not_falling(seconds)
        self.row_s, self.context_row_s, self.context_token_s = (
            float(factors[-1]) * one for one in (self.row_s, self.context_row_s, self.context_token_s)
        )


class ShapeTable:
    """Seconds of forwards that are recorded (ops/recorded.py), by [rows, width]: a shape costs what the next one does.

    A GPU's forward takes hardly longer for 16 tokens a row than for 8, or for 32 rows than for 16, until it does: no
    curve over tokens tells. But recorded shapes come in powers of two, so that few are all there are, and each is
    measured. ``context_s``: more for each token of context, in each shape.
    """

    def __init__(
        self, num_rows: Sequence[int], widths: Sequence[int], seconds: ArrayLike, context_s: ArrayLike = 0.0
    ) -> None:
        self.num_rows, self.widths = np.array(num_rows), np.array(widths)
        self.seconds: Array = np.array(seconds, float)
        assert self.seconds.shape == (len(num_rows), len(widths))
        self.context_s: Array = np.broadcast_to(np.array(context_s, float), self.seconds.shape)

    def __call__(self, num_rows: ArrayLike, num_tokens: ArrayLike, context: int = 0) -> Array:
        """Seconds of forwards over ``num_tokens`` of ``num_rows`` together; larger ones cost in proportion."""
        rows, tokens = np.asarray(num_rows), np.asarray(num_tokens)
        at, more = self._place(rows, tokens)
        return np.asarray((self.seconds[at] + context * self.context_s[at]) * more)

    def _place(self, rows: NDArray[np.int_], tokens: NDArray[np.int_]) -> tuple[tuple[Array, Array], Array]:
        width = np.ceil(tokens / np.maximum(rows, 1))
        most, widest = self.num_rows[-1], self.widths[-1]
        at = (
            np.searchsorted(self.num_rows, np.minimum(rows, most)),
            np.searchsorted(self.widths, np.minimum(width, widest)),
        )
        return at, np.maximum(rows / most, 1.0) * np.maximum(width / widest, 1.0)

    @property
    def num_parts(self) -> int:
        """What steps correct: each shape."""
        return self.seconds.size

    def shares(self, num_rows: int, num_tokens: int, _context: int = 0) -> Array:
        """[rows * widths]: 1 for the shape that it is."""
        shares = np.zeros_like(self.seconds)
        shares[self._place(np.asarray(num_rows), np.asarray(num_tokens))[0]] = 1.0
        return shares.ravel()

    def doublings(self) -> Array:
        """[rows * widths, 2]: where they lie."""
        return np.log2([(rows, width) for rows in self.num_rows for width in self.widths])

    def scale(self, factors: Array) -> None:
        """Correct each shape."""
        self.seconds = self.seconds * factors.reshape(self.seconds.shape)


@dataclass
class StepCosts:
    """The cost model of target and drafter.

    A change that holds for every shape alike, as on a busy machine, goes into ``pace``, which no choice depends on.
    Which of the parts a step's surprise is due to, is a Kalman filter's to say, over the logarithms of all of
    them: the pace changes fast and the rest slowly, but the rest was measured once, in a moment like any other.
    """

    verify: Curve | ShapeTable  # the target's forward with the logits of every token
    draft: Curve | ShapeTable  # the drafter's, each row with its whole block
    logits_s: float = 0.0  # of one token's logits, of those of ``verify``
    host_s: float = 0.0  # of a step, outside both forwards
    pace: float = 1.0  # seconds seen for one expected
    context: int = 0  # of the next step: tokens of its longest request beyond those of the measured steps
    is_ragged: bool = False  # rows are computed without padding; ``context`` is then the mean of all requests
    # Steps of either kind that come soon whatever these costs say, so that they are seen.
    plain_trials: int = 0
    draft_trials: int = 0
    _covariance: Array = field(
        default_factory=lambda: np.zeros((0, 0))
    )  # [parts, parts]: pace, verify, draft

    @property
    def is_recorded(self) -> bool:
        """Whether steps come in few shapes, and are planned so."""
        return isinstance(self.verify, ShapeTable)

    def forward_seconds(self, num_rows: ArrayLike, num_tokens: ArrayLike) -> Array:
        """A target forward over ``num_tokens`` of ``num_rows`` requests together."""
        return self.verify(num_rows, num_tokens, self.context)

    def draft_seconds(self, num_rows: ArrayLike, block: ArrayLike) -> Array:
        """The drafter's forward over ``num_rows`` blocks; nothing for no rows."""
        rows = np.asarray(num_rows)
        return np.where(rows > 0, self.draft(rows, rows * block, self.context), 0.0)

    def learn(
        self, verified: tuple[int, int], verify_s: float, drafted: tuple[int, int], draft_s: float
    ) -> None:
        """Take a step's seconds: of (rows, tokens) verified and of (rows, tokens) drafted."""
        edges = 1, 1 + self.verify.num_parts, 1 + self.verify.num_parts + self.draft.num_parts
        if not len(self._covariance):
            self._covariance = self._first_covariance()
        self._covariance[np.diag_indices(edges[2])] += [_PACE_DRIFT**2, *[_DRIFT**2] * (edges[2] - 1)]
        self._correct(self.verify, slice(*edges[:2]), verified, verify_s)
        if drafted[0]:
            self._correct(self.draft, slice(*edges[1:]), drafted, draft_s)
            self.draft_trials = max(self.draft_trials - 1, 0)
        else:
            self.plain_trials = max(self.plain_trials - 1, 0)

    def learn_host(self, host_s: float) -> None:
        """Take a step's seconds outside both forwards."""
        self.host_s += _HOST_RATE * (host_s / self.pace - self.host_s)

    def _first_covariance(self) -> Array:
        """Nothing is known for sure of the pace nor of any part; shapes of like size were measured alike."""
        parts = [self.verify.doublings(), self.draft.doublings()]
        covariance = np.diag([_FIRST**2] * (1 + sum(map(len, parts))))
        first = 1
        for places in parts:
            own = slice(first, first := first + len(places))
            apart = np.abs(places[:, None] - places).sum(axis=2) / _KINSHIP
            covariance[own, own] = _FIRST**2 * np.exp(-apart)
        return covariance

    def _correct(self, part: Curve | ShapeTable, own: slice, shape: tuple[int, int], seen_s: float) -> None:
        """The filter's step, for a forward of (rows, tokens)."""
        expected_s = float(part(*shape, self.context)) * self.pace
        if seen_s <= 0 or expected_s <= 0:
            return
        surprise = min(log(seen_s / expected_s), _MOST_SLOWER)
        slopes = np.zeros(len(self._covariance))  # of the logarithm of the seconds by those of the parts
        slopes[0], slopes[own] = 1.0, part.shares(*shape, self.context)
        gains = self._covariance @ slopes
        variance = float(slopes @ gains) + _NOISE**2
        self._covariance -= np.outer(gains, gains) / variance
        factors = np.exp(gains * (surprise / variance))
        self.pace *= float(factors[0])
        of_verify = 1 + self.verify.num_parts
        self.verify.scale(factors[1:of_verify])
        self.draft.scale(factors[of_verify:])


def not_falling(seconds: ArrayLike) -> Array:
    """Each no more than those behind it: more tokens never take less; where it looks so, something else ran."""
    return np.asarray(np.minimum.accumulate(np.asarray(seconds, float)[::-1])[::-1])
