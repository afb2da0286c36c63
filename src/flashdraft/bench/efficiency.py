"""What servers reach of a GPU's data sheet: fitted to published measurements, by least squares of logarithms.

Beside the numbers of :class:`Efficiency`, which are those of all cells, each workload has seconds that every output
token costs at any concurrency (prefill, admission, requests that end early): ``token_s``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from typing import Any

import numpy as np

from flashdraft.bench.cost_model import Job
from flashdraft.bench.roofline import IDEAL, Efficiency, RooflineCosts

# Of each number: where a fit begins, its least and its largest value.
_RANGES = {
    "bandwidth_share": (0.6, 0.2, 1.0),
    "peak_share": (0.5, 0.1, 1.0),
    "layer_s": (1e-5, 1e-7, 2e-4),
    "round_s": (2e-3, 1e-5, 2e-2),
    "state_moves": (1.0, 1e-2, 10.0),
    "draft_step_s": (1e-4, 1e-6, 2e-3),
    "draft_row_s": (1e-5, 1e-8, 1e-3),
    "request_s": (3e-7, 1e-9, 1e-4),
    "overlap": (2.0, 1.0, 12.0),
}
PUBLISHED = tuple(_RANGES)[:7]  # what published rows are fitted by
_TOKEN_S = (3e-5, 1e-6, 1e-3)  # first guess, lowest, highest
_MAX_STEPS, _SMALLEST_GAIN = 100, 1e-6

Vector = list[float]


def steady_tokens_per_s(
    costs: RooflineCosts,
    job: Job,
    concurrency: int,
    block_size: int,
    acceptance_length: float,
    token_s: float,
) -> float:
    """Output tokens a second with ``concurrency`` requests always under way, their prefills among them."""
    step_s = costs.verify_s(concurrency, block_size) + costs.draft_s(concurrency, block_size)
    prefill_s = costs.prefill_s(job.prompt_len) / job.output_len
    return 1 / (step_s / (concurrency * acceptance_length) + prefill_s + token_s)


@dataclass(frozen=True)
class Cell:
    """One published measurement of a pair; None: not told."""

    costs: RooflineCosts
    job: Job
    workload: str
    concurrency: int
    block_size: int
    acceptance_length: float
    tokens_per_s: float | None = None
    speedup: float | None = None  # over plain decoding

    def predict(self, reached: Efficiency, token_s: float) -> tuple[float, float]:
        """Tokens a second of the cell and of plain decoding."""
        costs = replace(self.costs, reached=reached)
        length = self.acceptance_length
        speed = steady_tokens_per_s(costs, self.job, self.concurrency, self.block_size, length, token_s)
        if self.block_size == 1:
            return speed, speed
        return speed, steady_tokens_per_s(costs, self.job, self.concurrency, 1, 1.0, token_s)

    def log_errors(self, reached: Efficiency, token_s: float) -> Vector:
        """Of what is told."""
        if self.speedup is None and self.tokens_per_s:  # most cells, and a fit asks a hundred thousand times
            costs, length = replace(self.costs, reached=reached), self.acceptance_length
            speed = steady_tokens_per_s(costs, self.job, self.concurrency, self.block_size, length, token_s)
            return [log(speed / self.tokens_per_s)]
        speed, plain = self.predict(reached, token_s)
        told = [log(speed / self.tokens_per_s)] if self.tokens_per_s else []
        return [*told, log(speed / plain / self.speedup)] if self.speedup else told


@dataclass(frozen=True)
class Fit:
    """What was fitted; ``token_s`` by workload."""

    reached: Efficiency
    token_s: Mapping[str, float]

    @property
    def mean_token_s(self) -> float:
        """For a workload of which nothing is known."""
        return sum(self.token_s.values()) / len(self.token_s)


def fit_efficiency(
    cells: Sequence[Cell],
    names: Sequence[str] = PUBLISHED,
    base: Efficiency = IDEAL,
    has_token_s: bool = True,
) -> Fit:
    """The numbers ``names`` that meet ``cells`` best, none of them beyond what is possible; the others are ``base``'s.

    ``has_token_s``: whether workloads have seconds of their own a token.
    """
    workloads = sorted({cell.workload for cell in cells})
    ranges = [_RANGES[name] for name in names] + [_TOKEN_S] * (len(workloads) if has_token_s else 0)

    def unpack(numbers: Vector) -> Fit:
        own = numbers[len(names) :] if has_token_s else [0.0] * len(workloads)
        values: dict[str, Any] = dict(zip(names, numbers, strict=False))
        reached = replace(base, **values)
        return Fit(reached, dict(zip(workloads, own, strict=True)))

    def errors(numbers: Vector) -> Vector:
        fit = unpack(numbers)
        return [error for cell in cells for error in cell.log_errors(fit.reached, fit.token_s[cell.workload])]

    first, lowest, highest = ([one[i] for one in ranges] for i in range(3))
    return unpack(least_squares(errors, first, lowest, highest))


def calibrate(
    costs: RooflineCosts, job: Job, plain: Mapping[int, float], scales: bool
) -> tuple[RooflineCosts, float]:
    """``costs`` and ``token_s`` that meet measured plain decoding: tokens a second by concurrency.

    ``scales``: whether forwards may be slower or faster than ``costs`` has them (where nothing was fitted to this GPU).
    """

    def errors(numbers: Vector) -> Vector:
        scaled = replace(costs, scale=numbers[1]) if scales else costs
        return [
            log(steady_tokens_per_s(scaled, job, concurrency, 1, 1.0, numbers[0]) / speed)
            for concurrency, speed in plain.items()
        ]

    first, lowest, highest = (
        [of_tokens, scale] for of_tokens, scale in zip(_TOKEN_S, (1.0, 0.3, 3.0), strict=True)
    )
    count = 2 if scales else 1
    lowest[0] = 1e-8  # a workload may cost less than any that was fitted
    found = least_squares(errors, first[:count], lowest[:count], highest[:count])
    return (replace(costs, scale=found[1]) if scales else costs), found[0]


def least_squares(
    errors: Callable[[Vector], Vector], first: Vector, lowest: Vector, highest: Vector
) -> Vector:
    """Positive numbers with the smallest sum of squared ``errors``, between bounds.

    Levenberg and Marquardt's steps on the logarithms (Marquardt, J. SIAM 11, 1963), cut at the bounds; what would leave
    them stands still.
    """
    low, high = np.log(lowest), np.log(highest)
    place, damping = np.log(first), 1e-2

    def at(logs: np.ndarray) -> np.ndarray:
        return np.array(errors([exp(one) for one in logs]))

    now = at(place)
    for _ in range(_MAX_STEPS):
        shift = 1e-5 * np.eye(len(place))
        slopes = np.stack([(at(place + one) - now) / 1e-5 for one in shift], axis=1)
        downhill = -slopes.T @ now
        free = ~((place <= low) & (downhill < 0) | (place >= high) & (downhill > 0))
        slopes = slopes[:, free]
        square = slopes.T @ slopes
        damped = square + damping * np.diag(np.diag(square)) + 1e-12 * np.eye(len(square))
        trial = place.copy()
        trial[free] += np.linalg.solve(damped, downhill[free])
        trial = np.clip(trial, low, high)
        there = at(trial)
        gain = now @ now - there @ there
        if gain > 0:
            place, now, damping = trial, there, damping / 3
            if gain < _SMALLEST_GAIN * (now @ now):
                break
        else:
            damping *= 4
            if damping > 1e8:
                break
    return [exp(one) for one in place]
