"""Predictions as tables: on this machine, beside measured rows, and on a GPU beside published figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median

from flashdraft.bench.cost_model import AcceptanceProfile, Costs, Job, predict_seconds, predict_tokens_per_s
from flashdraft.bench.offline import split
from flashdraft.bench.published import (
    PUBLISHED,
    PUBLISHED_BLOCK_SIZE,
    PUBLISHED_GPU,
    PublishedRow,
    pair_configs,
)
from flashdraft.bench.results import BASELINE, Measurement, aggregate
from flashdraft.bench.roofline import (
    GPUS,
    IDEAL,
    Cell,
    Efficiency,
    NetworkShape,
    RooflineCosts,
    drafter_shape,
    fit_efficiency,
    target_shape,
)
from flashdraft.bench.tables import number, table

_DFLASH = "DFlash"


@dataclass(frozen=True)
class PlanRow:
    """What to expect at one concurrency and block size."""

    concurrency: int
    block_size: int
    acceptance_length: float
    output_tokens_per_s: float
    speedup: float


@dataclass(frozen=True)
class CheckRow:
    """A prediction beside a measurement or a published figure; errors are predicted / found - 1."""

    task: str
    method: str
    block_size: int
    concurrency: int
    acceptance_length: float
    predicted_tokens_per_s: float
    found_tokens_per_s: float | None
    predicted_speedup: float
    found_speedup: float | None
    source: str

    @property
    def error(self) -> float | None:
        """Of tokens a second."""
        return self.predicted_tokens_per_s / self.found_tokens_per_s - 1 if self.found_tokens_per_s else None

    @property
    def speedup_error(self) -> float | None:
        """Of the speed-up."""
        return self.predicted_speedup / self.found_speedup - 1 if self.found_speedup else None


def plan_rows(
    costs: Costs,
    profile: AcceptanceProfile,
    job: Job,
    concurrencies: Sequence[int],
    block_sizes: Sequence[int],
    num_jobs: int = 4,
) -> list[PlanRow]:
    """One row for each concurrency and block size; ``num_jobs`` requests for each that is under way."""
    rows = []
    for concurrency in concurrencies:
        jobs = [job] * (num_jobs * concurrency)
        plain = predict_tokens_per_s(costs, jobs, concurrency, 1, 1.0)
        for size in block_sizes:
            speed = predict_tokens_per_s(costs, jobs, concurrency, size, profile.length(size))
            rows.append(PlanRow(concurrency, size, profile.length(size), speed, speed / plain))
    return rows


def check_rows(costs: Costs, measurements: Sequence[Measurement]) -> list[CheckRow]:
    """Predict what was measured: the same requests in the same chunks, with each row's own acceptance length.

    Methods whose drafts ``costs`` does not know (n-gram, MTP, the controller's) are left out.
    """
    found: list[CheckRow] = []
    plain: dict[tuple[str, int], float] = {}
    for row in aggregate(measurements):
        if row.method not in (BASELINE, _DFLASH) or not isinstance(row.block_size, int):
            continue
        key = row.task, row.method, row.block_size, row.concurrency
        own = [m for m in measurements if (m.task, m.method, m.block_size, m.concurrency) == key]
        seconds = 0.0
        for chunk in _chunks(own, row.concurrency):
            jobs = [Job(m.num_prompt_tokens, m.metrics.num_output_tokens) for m in chunk]
            seconds += predict_seconds(costs, jobs, row.concurrency, row.block_size, row.acceptance_length)
        speed = row.num_output_tokens / seconds
        if row.method == BASELINE:
            plain[row.task, row.concurrency] = speed
        speedup = speed / plain[row.task, row.concurrency]
        found.append(
            CheckRow(
                *key, row.acceptance_length, speed, row.output_tokens_per_s, speedup, row.speedup, "rows"
            )
        )
    return found


def _chunks(own: Sequence[Measurement], concurrency: int) -> list[Sequence[Measurement]]:
    rounds: dict[tuple[int, int], list[Measurement]] = {}
    for m in own:
        rounds.setdefault((m.repeat, m.turn), []).append(m)
    return [chunk for one in rounds.values() for chunk in split(one, concurrency)]


def median_error(errors: Sequence[float | None]) -> float | None:
    """Median of absolute errors; None where there are none."""
    known = [abs(error) for error in errors if error is not None]
    return median(known) if known else None


def gpu_costs(pair: str, gpu: str, job: Job) -> RooflineCosts:
    """The roofline of a published pair on ``gpu``, with what is reached of it in the rows that are fitted to."""
    return _bare_costs(pair, gpu, job, _fitted(job))


@cache
def _fitted(job: Job) -> Efficiency:
    return fit_efficiency(
        [
            Cell(
                _bare_costs(row.pair, PUBLISHED_GPU, job),
                row.concurrency,
                PUBLISHED_BLOCK_SIZE,
                row.acceptance_length,
                row.speedup,
                row.plain_tokens_per_s,
            )
            for row in PUBLISHED
            if row.is_fitted
        ]
    )


def _bare_costs(pair: str, gpu: str, job: Job, reached: Efficiency = IDEAL) -> RooflineCosts:
    context = job.prompt_len + job.output_len / 2
    return RooflineCosts(GPUS[gpu], *_shapes(pair), context, reached)


@cache
def _shapes(pair: str) -> tuple[NetworkShape, NetworkShape]:
    target, draft = pair_configs(pair)
    return target_shape(target), drafter_shape(draft, target)


def published_checks(job: Job) -> list[CheckRow]:
    """Every published row beside the roofline's prediction."""
    return [_published_check(row, job) for row in PUBLISHED]


def _published_check(row: PublishedRow, job: Job) -> CheckRow:
    costs = gpu_costs(row.pair, PUBLISHED_GPU, job)
    profile = AcceptanceProfile({PUBLISHED_BLOCK_SIZE: row.acceptance_length})
    [plan] = plan_rows(costs, profile, job, [row.concurrency], [PUBLISHED_BLOCK_SIZE])
    plain = row.plain_tokens_per_s
    return CheckRow(
        task=row.task,
        method=row.pair,
        block_size=PUBLISHED_BLOCK_SIZE,
        concurrency=row.concurrency,
        acceptance_length=row.acceptance_length,
        predicted_tokens_per_s=plan.output_tokens_per_s,
        found_tokens_per_s=plain * row.speedup if plain and row.speedup else None,
        predicted_speedup=plan.speedup,
        found_speedup=row.speedup,
        source=f"{row.source}, {'fitted' if row.is_fitted else 'not fitted'}",
    )


def plan_table(rows: Sequence[PlanRow]) -> str:
    """Predictions in Markdown."""
    header = ["concurrency", "block size", "acceptance length", "tokens/s", "speed-up"]
    lines = [
        [
            str(row.concurrency),
            str(row.block_size),
            f"{row.acceptance_length:.2f}",
            f"{row.output_tokens_per_s:.1f}",
            f"{row.speedup:.2f}x",
        ]
        for row in rows
    ]
    return table(header, lines)


def check_table(rows: Sequence[CheckRow]) -> str:
    """Predictions beside what was found, in Markdown."""
    columns = ["acceptance length", "tokens/s", "found", "error", "speed-up", "found", "error", "source"]
    lines = [
        [
            row.task,
            row.method,
            str(row.block_size),
            str(row.concurrency),
            f"{row.acceptance_length:.2f}",
            f"{row.predicted_tokens_per_s:.1f}",
            number(row.found_tokens_per_s, ".1f"),
            number(row.error, "+.0f", 100, "%"),
            f"{row.predicted_speedup:.2f}x",
            number(row.found_speedup, ".2f", unit="x"),
            number(row.speedup_error, "+.0f", 100, "%"),
            row.source,
        ]
        for row in rows
    ]
    return table(["task", "method", "block size", "concurrency", *columns], lines)
