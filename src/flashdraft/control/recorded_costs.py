"""What steps cost where they are recorded (ops/recorded.py): a table of the shapes that there are.

A GPU's forward takes hardly longer for 16 tokens a row than for 8, or for 32 rows than for 16, until it does: no curve
over tokens tells. But recorded shapes come in powers of two, so that few are all there are, and each is measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flashdraft.control.step_costs import Array, Curve, StepCosts

Places = NDArray[np.intp]

_STEP_ROWS = 8  # a step costs the host as much as so many rows of it
# What a row costs the host at first, of a forward of one row: as on an H100 (benchmarks/recorded_steps.py).
_VERIFY_ROW, _DRAFT_ROW, _OBSERVE_ROW = 1 / 200, 1 / 60, 1 / 30
_UP, _DOWN = exp(0.05), exp(-0.15)


class ShapeTable:
    """Seconds of forwards by [keys, rows, width], each axis ascending; a shape costs what the next measured one does.

    Seconds rise with keys in a straight line, and so they do with rows beyond the most that were measured.
    """

    def __init__(
        self, num_keys: Sequence[int], num_rows: Sequence[int], widths: Sequence[int], seconds: ArrayLike
    ) -> None:
        self.num_keys, self.num_rows, self.widths = tuple(num_keys), tuple(num_rows), tuple(widths)
        self.seconds: Array = np.array(seconds, dtype=np.float64)
        assert self.seconds.shape == (len(num_keys), len(num_rows), len(widths))
        # Of every number of rows and every width, from 0 on: planning looks up a lot.
        self._every = self.seconds.repeat(_gaps(num_rows), axis=1).repeat(_gaps(widths), axis=2)

    def __call__(self, num_rows: ArrayLike, width: ArrayLike, num_keys: ArrayLike) -> Array:
        """Seconds of forwards over ``num_rows`` rows of ``width`` tokens, each row with ``num_keys`` of cache."""
        rows, wide = np.asarray(num_rows, dtype=np.intp), np.asarray(width, dtype=np.intp)
        most, keys = self.num_rows[-1], np.asarray(num_keys, dtype=np.float64)
        found = self._at(np.minimum(rows, most), wide, keys)
        if rows.max() > most and len(self.num_rows) > 1:
            fewer = self.num_rows[-2]
            rise = np.maximum(found - self._at(np.minimum(rows, fewer), wide, keys), 0.0)
            found = found + rise * (np.maximum(rows - most, 0) / (most - fewer))
        return found

    def _at(self, rows: Places, width: Places, keys: Array) -> Array:
        few, many = self._every[0, rows, width], self._every[-1, rows, width]
        run = self.num_keys[-1] - self.num_keys[0]
        share = np.maximum(keys - self.num_keys[0], 0.0) / max(run, 1)
        return np.asarray(few + share * np.maximum(many - few, 0.0))

    def curve(self) -> Curve:
        """Seconds by tokens, with the fewest keys: of one row, then of more rows of the widest."""
        seconds = [*self.seconds[0, 0], *self.seconds[0, 1:, -1]]
        widest = self.widths[-1]
        return Curve([*self.widths, *(count * widest for count in self.num_rows[1:])], seconds)


def _gaps(measured: Sequence[int]) -> list[int]:
    """How many numbers, from 0 on, each is the least that holds them."""
    return [measured[0] + 1, *np.diff(measured).tolist()]


@dataclass(kw_only=True)
class RecordedCosts(StepCosts):
    """Costs by table. A row's own seconds are what the host adds to a forward, learned from the steps themselves.

    The curves tell of forwards wider than any that was measured, as a prompt's.
    """

    is_recorded: ClassVar[bool] = True

    verify_table: ShapeTable
    draft_table: ShapeTable
    measured_context: int  # tokens behind a measured step
    observe_row_s: float = field(init=False)  # of a drafting row: what was committed is copied row by row
    _num_observing: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.verify_row_s = _VERIFY_ROW * float(self.verify_table.seconds[0, 0, -1])
        draft_s = float(self.draft_table.seconds[0, 0, -1])
        self.draft_row_s, self.observe_row_s = _DRAFT_ROW * draft_s, _OBSERVE_ROW * draft_s

    def verify_seconds(self, num_rows: ArrayLike, width: ArrayLike) -> Array:
        """See :class:`StepCosts`."""
        rows, wide = np.asarray(num_rows), np.asarray(width)
        if wide.max() > self.verify_table.widths[-1]:
            return super().verify_seconds(num_rows, width)
        return self.verify_table(rows, wide, self._num_keys(wide)) + self.verify_row_s * (rows + _STEP_ROWS)

    def draft_seconds(self, num_rows: ArrayLike, block: int) -> Array:
        """See :class:`StepCosts`."""
        rows = np.asarray(num_rows)
        seconds = self.draft_table(rows, block, self._num_keys(block))
        seconds = seconds + (self.draft_row_s + self.observe_row_s) * (rows + _STEP_ROWS)
        return np.where(rows > 0, seconds, 0.0)

    def learn(
        self, verified: tuple[int, int, int], verify_s: float, drafted: tuple[int, int], draft_s: float
    ) -> None:
        """See :class:`StepCosts`. What a recorded forward takes is known: the rest is the host's."""
        rows, num_tokens, _ = verified
        width = num_tokens // rows
        if width <= self.verify_table.widths[-1]:
            self.verify_row_s *= _learned(verify_s, float(self.verify_seconds(rows, width)))
        self._num_observing = drafted[0]
        if drafted[0]:
            observe_s = self._observe_seconds(drafted[0])
            self.draft_row_s *= _learned(draft_s, float(self.draft_seconds(*drafted)) - observe_s)

    def learn_observe(self, num_tokens: int, seconds: float) -> None:  # noqa: ARG002
        """See :class:`StepCosts`. By rows, those that the last :meth:`learn` heard of, and not by tokens."""
        self.observe_row_s *= _learned(seconds, self._observe_seconds(self._num_observing))

    def _observe_seconds(self, num_rows: int) -> float:
        return self.observe_row_s * (num_rows + _STEP_ROWS)

    def _num_keys(self, width: ArrayLike) -> Array:
        return _num_keys(self.measured_context + self.context, width)


@dataclass(kw_only=True)
class RoundCosts(StepCosts):
    """Costs of rounds that run on the device from end to end (cache/rounds.py): one table tells all of them.

    A round of drafts drafts for all its rows. The host's seconds are those that the device waited for it.
    """

    is_recorded: ClassVar[bool] = True

    table: ShapeTable
    measured_context: int  # tokens behind a measured round

    def verify_seconds(self, num_rows: ArrayLike, width: ArrayLike) -> Array:
        """Seconds of whole rounds, drafting included: see :class:`StepCosts`."""
        wide = np.minimum(np.asarray(width), self.table.widths[-1])
        return self.table(num_rows, wide, _num_keys(self.measured_context + self.context, wide))

    def draft_seconds(self, num_rows: ArrayLike, block: int) -> Array:  # noqa: ARG002 - the base's shape
        """None beside these."""
        return np.zeros(np.shape(num_rows))

    def learn(
        self, verified: tuple[int, int, int], verify_s: float, drafted: tuple[int, int], draft_s: float
    ) -> None:
        """What steps cost that are no rounds, as of sampled tokens, tells nothing of these."""

    def learn_observe(self, num_tokens: int, seconds: float) -> None:
        """See :meth:`learn`."""


def _num_keys(num_before: int, width: ArrayLike) -> Array:
    return np.asarray(2.0 ** np.ceil(np.log2(num_before + np.asarray(width))))


def _learned(seen_s: float, expected_s: float) -> float:
    """Towards what three of four steps take more than: many of them pay for something else, as for a recording."""
    return _UP if seen_s > expected_s else _DOWN
