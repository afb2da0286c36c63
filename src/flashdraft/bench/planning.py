"""Predictions as tables, on this machine and beside its measured rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from flashdraft.bench.cost_model import AcceptanceProfile, Costs, Job, predict_seconds, predict_tokens_per_s
from flashdraft.bench.offline import split
from flashdraft.bench.results import BASELINE, Measurement, aggregate
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
    plain_tokens_per_s: float
    likely: tuple[float, float] | None = (
        None  # tokens a second: nine of ten checked predictions were this near
    )


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
            rows.append(PlanRow(concurrency, size, profile.length(size), speed, speed / plain, plain))
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


def plan_table(rows: Sequence[PlanRow]) -> str:
    """Predictions in Markdown."""
    header = ["concurrency", "block size", "acceptance length", "tokens/s", "plain tokens/s", "speed-up"]
    has_range = any(row.likely for row in rows)
    lines = []
    for row in rows:
        line = [
            str(row.concurrency),
            str(row.block_size),
            f"{row.acceptance_length:.2f}",
            f"{row.output_tokens_per_s:.1f}",
            f"{row.plain_tokens_per_s:.1f}",
            f"{row.speedup:.2f}x",
        ]
        if has_range:
            line.insert(4, f"{row.likely[0]:.0f} to {row.likely[1]:.0f}" if row.likely else "–")
        lines.append(line)
    if has_range:
        header.insert(4, "9 of 10 within")
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
