"""Forecasts for a pair on GPUs, from the roofline fitted to published rows, and how far such forecasts were off.

How far: every workload of the pair left out in turn and predicted from the rest; for a pair of which nothing is
published, every published pair left out in turn.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil, floor, log
from statistics import median
from typing import Literal, cast

from flashdraft.bench.cost_model import AcceptanceProfile, Job
from flashdraft.bench.efficiency import Cell, Fit, calibrate, fit_efficiency, steady_tokens_per_s
from flashdraft.bench.own_steps import OWN_GPU, left_out_errors, own_fit
from flashdraft.bench.planning import CheckRow, PlanRow
from flashdraft.bench.published import (
    CARD_PAIR,
    PUBLISHED_GPU,
    PublishedRow,
    pair_configs,
    published_rows,
    usual_drafter,
)
from flashdraft.bench.roofline import (
    ALL_REDUCE_S,
    Method,
    NetworkShape,
    RooflineCosts,
    dflash_shape,
    drafter_shape,
    mtp_shape,
    target_shape,
)
from flashdraft.checkpoint.load import outline_draft, outline_target
from flashdraft.gpus import GPUS, Gpu

Engine = Literal["servers", "flashdraft"]
_MISSED = 0.2  # of a measured speed
# Requests: with plain decoding known at so many alone, the card's worst row is 16 % off; at 8 alone 25, at 1 alone 36
# (benchmarks/results/plan/left_out.md).
TELLING = 16

_LEFT_AT_EACH_END = 0.05  # of the errors


@dataclass(frozen=True)
class PairShapes:
    """What a forecast knows of a pair. ``name``: of a published one, else empty."""

    name: str
    target: NetworkShape
    drafters: Mapping[Method, NetworkShape]


@cache
def published_pair(name: str) -> PairShapes:
    """Shapes of a published pair. Raises UsageError for an unknown one."""
    target, draft = pair_configs(name)
    drafters: dict[Method, NetworkShape] = {"dflash": dflash_shape(draft, target)}
    if target.model_type == "qwen3_5_text":  # the one that is published with an MTP head
        drafters["mtp"] = mtp_shape(target)
    return PairShapes(name, target_shape(target), drafters)


def _bare_costs(pair: PairShapes, gpu: Gpu, job: Job, method: Method, tp: int = 1) -> RooflineCosts:
    context = job.prompt_len + job.output_len / 2
    return RooflineCosts(gpu, pair.target, pair.drafters[method], context, method=method, tp=tp)


def _cell(row: PublishedRow) -> Cell:
    pair = published_pair(row.pair)
    costs = _bare_costs(pair, GPUS[PUBLISHED_GPU], row.job, "mtp" if row.method == "mtp" else "dflash")
    sizes = row.concurrency, row.block_size, row.acceptance_length
    return Cell(costs, row.job, row.workload, *sizes, row.tokens_per_s, row.speedup)


@cache
def fit_of(pair: str, gpu: str, left_out: str = "") -> Fit:
    """What is reached on ``gpu``: by the card's rows for their own pair and GPU, else by all rows but table 11's.

    ``left_out``: a workload or a pair that the fit may not see.
    """
    rows = [row for row in published_rows() if row.source != "table 11"]
    rows = [row for row in rows if left_out not in (row.workload, row.pair)]
    own = [row for row in rows if row.pair == pair and row.source == "model card"]
    return fit_efficiency([_cell(row) for row in (own if own and gpu == PUBLISHED_GPU else rows)])


@dataclass(frozen=True)
class GpuForecast:
    """What is needed to predict a pair's speed for one kind of request."""

    costs: RooflineCosts
    job: Job
    token_s: float
    errors: tuple[float, ...]  # found / predicted of predictions that were checked; empty: none could be

    def rows(
        self, profile: AcceptanceProfile, concurrencies: Sequence[int], block_sizes: Sequence[int]
    ) -> list[PlanRow]:
        """One row for each concurrency and block size."""
        found = []
        for concurrency in concurrencies:
            plain = steady_tokens_per_s(self.costs, self.job, concurrency, 1, 1.0, self.token_s)
            for size in block_sizes:
                length = profile.length(size)
                speed = steady_tokens_per_s(self.costs, self.job, concurrency, size, length, self.token_s)
                low, high = error_range(self.errors) if self.errors else (0.0, 0.0)
                likely = (speed * low, speed * high) if self.errors else None
                found.append(PlanRow(concurrency, size, length, speed, speed / plain, plain, likely))
        return found


def error_range(errors: Sequence[float]) -> tuple[float, float]:
    """The errors between which nine of ten lie."""
    ordered = sorted(errors)
    cut = _LEFT_AT_EACH_END * (len(ordered) - 1)
    return ordered[floor(cut)], ordered[ceil(len(ordered) - 1 - cut)]


def forecast(
    pair: PairShapes,
    gpu: Gpu,
    job: Job,
    method: Method,
    tp: int = 1,
    plain: Mapping[int, float] | None = None,
    engine: Engine = "servers",
) -> GpuForecast:
    """What to expect of ``pair``; ``plain``: tokens a second of plain decoding that were measured, by concurrency.

    Of ``engine`` "servers" as they have been published, of "flashdraft" by its own steps on one H200.
    """
    if engine == "flashdraft":
        costs = replace(_bare_costs(pair, gpu, job, method, tp), reached=own_fit().reached)
        is_measured = (pair.name, gpu, tp) == (CARD_PAIR, GPUS[OWN_GPU], 1) and not plain
        if plain:
            costs, _ = calibrate(costs, job, plain, token_reads=0.0)
        return GpuForecast(costs, job, 0.0, left_out_errors() if is_measured else ())
    is_published = gpu == GPUS[PUBLISHED_GPU] and tp == 1
    fit = fit_of(pair.name, PUBLISHED_GPU if is_published else "")
    costs = replace(_bare_costs(pair, gpu, job, method, tp), reached=fit.reached)
    token_reads = fit.mean_token_reads
    if plain:
        is_fitted = is_published and pair.name == CARD_PAIR
        costs, token_reads = calibrate(costs, job, plain, None if is_fitted else token_reads)
    errors: tuple[float, ...] = ()
    if is_published:
        checks = left_out_checks(pair.name, tuple(sorted(plain or ())))
        errors = tuple(
            row.found_tokens_per_s / row.predicted_tokens_per_s
            for row in checks
            if row.found_tokens_per_s and row.method == (method if pair.name else row.method)
        )
    return GpuForecast(costs, job, token_reads * costs.reading_s, errors)


@cache
def left_out_checks(pair: str, known: tuple[int, ...]) -> tuple[CheckRow, ...]:
    """Published rows that draft, each predicted by a fit that has not seen its workload (``pair``'s), or its pair.

    ``known``: at how many requests the workload's plain decoding is known, as ``plain`` of :func:`forecast` has it;
    where none is published, at the nearest number of requests that one is.
    """
    own = [row for row in published_rows() if row.pair == pair and row.source == "model card"]
    if own:
        return tuple(_checks(own, lambda row: fit_of(pair, PUBLISHED_GPU, row.workload), known))
    others = [row for row in published_rows() if row.source != "table 11"]
    return tuple(_checks(others, lambda row: fit_of("", PUBLISHED_GPU, row.pair), known, knows_pair=False))


def card_checks(rows: Sequence[PublishedRow]) -> list[CheckRow]:
    """Other rows of the card's pair by the whole fit; what they tell of plain decoding is known."""
    every = tuple({row.concurrency for row in rows})
    return _checks(rows, lambda row: fit_of(row.pair, PUBLISHED_GPU), every)


def _checks(
    rows: Sequence[PublishedRow],
    fit_for: Callable[[PublishedRow], Fit],
    known: Sequence[int],
    knows_pair: bool = True,
) -> list[CheckRow]:
    found = []
    for row in rows:
        if row.method == "ar":
            continue
        fit, cell = fit_for(row), _cell(row)
        costs = replace(cell.costs, reached=fit.reached)
        plain = {
            one.concurrency: one.tokens_per_s
            for one in rows
            if (one.pair, one.workload, one.method) == (row.pair, row.workload, "ar") and one.tokens_per_s
        }
        token_reads = fit.mean_token_reads
        if known and plain:
            told = _nearest(plain, known)
            costs, token_reads = calibrate(costs, row.job, told, None if knows_pair else token_reads)
        speed, plain_speed = replace(cell, costs=costs).predict(fit.reached, token_reads)
        speedup = speed / plain_speed
        alone = plain.get(row.concurrency)
        speedup_found = row.speedup or (row.tokens_per_s / alone if row.tokens_per_s and alone else None)
        tokens_found = row.tokens_per_s or (row.speedup * alone if row.speedup and alone else None)
        key = row.task, row.method, row.block_size, row.concurrency, row.acceptance_length
        found.append(CheckRow(*key, speed, tokens_found, speedup, speedup_found, row.source))
    return found


def _nearest(plain: Mapping[int, float], known: Sequence[int]) -> dict[int, float]:
    """Of ``plain`` what stands at, or by ratio nearest to, each of ``known``."""
    places = {min(plain, key=lambda there: abs(log(there / wanted))) for wanted in known}
    return {place: plain[place] for place in places}


def pair_of(model: str, draft: str | None) -> PairShapes:
    """Shapes of a folder's or hub name's pair, from its configs alone; ``draft`` as elsewhere, None: one as published.

    Raises CheckpointError for configs that are not there or do not go together.
    """
    target = outline_target(model)
    if draft is None:
        return PairShapes(
            "",
            target_shape(target.config),
            {"dflash": dflash_shape(usual_drafter(target.config), target.config)},
        )
    network = outline_draft(draft, model, target)
    shape = drafter_shape(network, target.config)
    return PairShapes("", target_shape(target.config), {cast("Method", network.method): shape})


def accuracy_text(forecast: GpuForecast, pair: PairShapes, known: Sequence[int]) -> str:
    """How far such forecasts were off, in a sentence or two; ``known``: as for :func:`left_out_checks`."""
    lines = []
    if forecast.costs.reached == own_fit().reached:
        off = sorted(abs(1 / error - 1) for error in left_out_errors())
        of_others = "" if forecast.errors else " They are of other pairs or GPUs: no range can be given."
        return (
            f"{len(off)} steps of this engine on one H200, measured while all requests decode, each left out of the fit"
            f" in turn: median error {median(off):.0%}, worst {off[-1]:.0%}. Prompts are reckoned.{of_others}"
        )
    if forecast.errors:
        off = sorted(abs(1 / error - 1) for error in forecast.errors)
        left_out = "task of this pair" if pair.name == CARD_PAIR else "pair"
        at = ", ".join(map(str, sorted(known)))
        told = f"its plain decoding known at {at} at a time" if known else "nothing known of it"
        lines.append(
            f"{len(off)} published rows, each {left_out} left out of the fit in turn, {told}: median error"
            f" {median(off):.0%}, worst {off[-1]:.0%}."
        )
    else:
        lines.append(
            "No published row is of such GPUs: what share of their data sheet is reached is taken from one B200, and no"
            " range can be given."
        )
    if not known and (pair.name == CARD_PAIR or not forecast.errors):  # of other pairs it tells too little
        enough = f" (one number, at {TELLING} at a time or more, will do)" if forecast.errors else ""
        lines.append(f"Give plain decoding's measured tokens a second by --plain for less error{enough}.")
    elif forecast.errors and pair.name == CARD_PAIR and max(known) < TELLING:
        lines.append(f"Plain decoding at {TELLING} at a time or more tells more of a task than at fewer.")
    if forecast.costs.tp > 1:
        lines.append(f"An all-reduce is assumed to take {ALL_REDUCE_S * 1e6:.0f} us; no row tells of it.")
    return "\n".join(lines)


def missed_text(forecast: GpuForecast, plain: Mapping[int, float]) -> str:
    """Which of ``plain`` (as :func:`forecast` was given it) the forecast misses most, if by more than _MISSED."""
    costs, job = forecast.costs, forecast.job
    told = {n: steady_tokens_per_s(costs, job, n, 1, 1.0, forecast.token_s) for n in plain}
    off = {n: max(told[n] / speed, speed / told[n]) - 1 for n, speed in plain.items()}
    worst = max(off, key=lambda n: off[n], default=None)
    if worst is None or off[worst] <= _MISSED:
        return ""
    return (
        f"NOT MET: plain decoding of {worst} at a time is {plain[worst]:,.4g} tokens/s by --plain, and"
        f" {told[worst]:,.4g} here, the nearest that it can be made to; look whether --plain, --gpu and"
        " the pair belong together."
    )
