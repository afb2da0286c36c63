"""What servers reach of a GPU's data sheet: fitted to published measurements, by least squares of logarithms.

Beside the numbers of :class:`Efficiency`, which are those of all cells, each workload has a time that every output
token costs at any concurrency (admission, prompts that others wait for, requests that end early): the shorter the
answers, the more of it. It grows with the target, so it is counted in ``token_reads``: how often the target's weights
could be read meanwhile (:attr:`RooflineCosts.reading_s`).
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
    "round_row_s": (1e-5, 1e-8, 1e-3),
    "scan_s": (3e-6, 1e-8, 1e-4),
    "draft_step_s": (1e-4, 1e-6, 2e-3),
    "draft_row_s": (1e-5, 1e-8, 1e-3),
    "request_s": (3e-7, 1e-9, 1e-4),
}
# What published rows are fitted by. How far reading and computing overlap is hardly told from the rest: fitted, it is
# 2.2 for them and for this engine's own steps.
PUBLISHED = ("bandwidth_share", "peak_share", "layer_s", "round_s", "scan_s", "draft_row_s")
SERVERS = replace(IDEAL, overlap=2.0)
_TOKEN_READS = (5e-3, 1e-4, 0.2)  # first guess, lowest, highest
_SCALE = (1.0, 0.3, 3.0)
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

    def predict(self, reached: Efficiency, token_reads: float) -> tuple[float, float]:
        """Tokens a second of the cell and of plain decoding."""
        speed = self._speed(reached, token_reads, self.block_size, self.acceptance_length)
        return speed, speed if self.block_size == 1 else self._speed(reached, token_reads, 1, 1.0)

    def _speed(self, reached: Efficiency, token_reads: float, block_size: int, length: float) -> float:
        costs = replace(self.costs, reached=reached)
        token_s = token_reads * costs.reading_s
        return steady_tokens_per_s(costs, self.job, self.concurrency, block_size, length, token_s)

    def log_errors(self, reached: Efficiency, token_reads: float) -> Vector:
        """Of what is told."""
        if self.speedup is None and self.tokens_per_s:  # most cells, and a fit asks a hundred thousand times
            speed = self._speed(reached, token_reads, self.block_size, self.acceptance_length)
            return [log(speed / self.tokens_per_s)]
        speed, plain = self.predict(reached, token_reads)
        told = [log(speed / self.tokens_per_s)] if self.tokens_per_s else []
        return [*told, log(speed / plain / self.speedup)] if self.speedup else told


@dataclass(frozen=True)
class Fit:
    """What was fitted; ``token_reads`` by workload."""

    reached: Efficiency
    token_reads: Mapping[str, float]

    @property
    def mean_token_reads(self) -> float:
        """For a workload of which nothing is known."""
        return sum(self.token_reads.values()) / len(self.token_reads)


def fit_efficiency(
    cells: Sequence[Cell],
    names: Sequence[str] = PUBLISHED,
    base: Efficiency = SERVERS,
    has_token_reads: bool = True,
) -> Fit:
    """The numbers ``names`` that meet ``cells`` best, none of them beyond what is possible; the others are ``base``'s.

    ``has_token_reads``: whether an output token costs time beside its steps, for each workload another.
    """
    workloads = sorted({cell.workload for cell in cells})
    ranges = [_RANGES[name] for name in names] + [_TOKEN_READS] * (len(workloads) if has_token_reads else 0)

    def unpack(numbers: Vector) -> Fit:
        own = numbers[len(names) :] if has_token_reads else [0.0] * len(workloads)
        values: dict[str, Any] = dict(zip(names, numbers, strict=False))
        reached = replace(base, **values)
        return Fit(reached, dict(zip(workloads, own, strict=True)))

    def errors(numbers: Vector) -> Vector:
        fit = unpack(numbers)
        return [
            error for cell in cells for error in cell.log_errors(fit.reached, fit.token_reads[cell.workload])
        ]

    first, lowest, highest = ([one[i] for one in ranges] for i in range(3))
    return unpack(least_squares(errors, first, lowest, highest))


def calibrate(
    costs: RooflineCosts, job: Job, plain: Mapping[int, float], token_reads: float | None
) -> tuple[RooflineCosts, float]:
    """``costs`` and ``token_reads`` that meet measured plain decoding: tokens a second by concurrency.

    ``token_reads`` None: it is what is looked for, and ``costs`` hold (of a pair that was fitted on its GPU). Given, it
    holds, and forwards are slower or faster than ``costs`` has them.
    """

    def errors(numbers: Vector) -> Vector:
        scaled, reads = (
            (costs, numbers[0]) if token_reads is None else (replace(costs, scale=numbers[0]), token_reads)
        )
        return [
            log(steady_tokens_per_s(scaled, job, concurrency, 1, 1.0, reads * costs.reading_s) / speed)
            for concurrency, speed in plain.items()
        ]

    first, lowest, highest = _TOKEN_READS if token_reads is None else _SCALE
    (found,) = least_squares(errors, [first], [lowest], [highest])
    return (costs, found) if token_reads is None else (replace(costs, scale=found), token_reads)


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
