"""How well `flashdraft plan` foretells GPUs, each row by a fit that has not seen its task: a report.

    python benchmarks/planner.py --out benchmarks/results/plan/left_out.md

Beside each row of the model card stands what the other tasks' rows of its own method, block and concurrency say, taken
as they are: seconds a round, averaged. No formula of these four facts can be expected to do better. The last two kinds
are bounds, with all rows seen: nothing that gives all tasks one time a round has a smaller worst error; and so much is
left where each task has the time an output token, beside its steps, that meets its own rows best.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from math import exp, log
from pathlib import Path
from statistics import median

from flashdraft.bench.cost_model import Job
from flashdraft.bench.efficiency import calibrate
from flashdraft.bench.gpu_planning import fit_of, forecast, left_out_checks, published_pair
from flashdraft.bench.own_steps import left_out_errors, own_fit, own_steps
from flashdraft.bench.planning import CheckRow
from flashdraft.bench.published import CARD_PAIR, PUBLISHED_GPU, PublishedRow, published_rows
from flashdraft.bench.report import provenance_list
from flashdraft.bench.roofline import Efficiency
from flashdraft.bench.tables import table
from flashdraft.gpus import GPUS
from flashdraft.provenance import collect_provenance

VLLM = Path("benchmarks/results/h200/beside-vllm/rows.jsonl")
KNOWN: dict[str, tuple[int, ...]] = {
    "nothing known of the task": (),
    "its plain decoding known": (1, 8, 16, 32),
    **{f"that at {count} alone": (count,) for count in (1, 8, 16, 32)},
}
BLOCKS = {"plain": 1, "b16@7.93": 16, "b8@5.90": 8}


def from_other_tasks(row: PublishedRow, rows: Sequence[PublishedRow]) -> float:
    """Tokens a second of ``row`` by the mean seconds a round of the same cell of other tasks."""
    others = [
        one
        for one in rows
        if one.task != row.task
        and (one.method, one.block_size, one.concurrency) == (row.method, row.block_size, row.concurrency)
    ]
    logs = [log((one.tokens_per_s or 0) / one.acceptance_length) for one in others]
    return row.acceptance_length * exp(sum(logs) / len(logs))


def best_of_one_time(row: PublishedRow, rows: Sequence[PublishedRow]) -> float:
    """Tokens a second of ``row`` by the time a round that is as far from the slowest task's as from the fastest's."""
    cell = row.method, row.block_size, row.concurrency
    times = [
        one.acceptance_length / (one.tokens_per_s or 0)
        for one in rows
        if (one.method, one.block_size, one.concurrency) == cell
    ]
    return 2 * row.acceptance_length / (min(times) + max(times))


def by_own_token_times(rows: Sequence[PublishedRow], checks: Sequence[CheckRow]) -> list[float]:
    """Tokens a second of ``rows`` that draft by ``checks``' steps, each task with the seconds a token that suit it."""
    reading_s = published_pair(CARD_PAIR).target.weight_bytes / GPUS[PUBLISHED_GPU].bandwidth
    fits = {row.workload: fit_of(CARD_PAIR, PUBLISHED_GPU, row.workload) for row in rows}
    steps_s = [
        1 / check.predicted_tokens_per_s - fits[row.workload].mean_token_reads * reading_s
        for row, check in zip(rows, checks, strict=True)
    ]

    def worst(token_s: float, workload: str) -> float:
        return max(
            abs(log((step_s + token_s) * (row.tokens_per_s or 0)))
            for row, step_s in zip(rows, steps_s, strict=True)
            if row.workload == workload
        )

    best = {name: min((us / 1e6 for us in range(300)), key=lambda s, of=name: worst(s, of)) for name in fits}
    return [1 / (step_s + best[row.workload]) for row, step_s in zip(rows, steps_s, strict=True)]


def summary(name: str, errors: Iterable[float]) -> list[str]:
    off = sorted(map(abs, errors))
    return [name, str(len(off)), f"{median(off):.1%}", f"{off[-1]:.1%}", str(sum(one > 0.2 for one in off))]


def of_card() -> list[str]:
    rows = [row for row in published_rows() if row.source == "model card"]
    drafting = [row for row in rows if row.method != "ar"]
    checks = [left_out_checks(CARD_PAIR, known) for known in KNOWN.values()]
    by_token_times = by_own_token_times(drafting, checks[0])
    lines, errors = [], []
    for row, of_token_time, *predicted in zip(drafting, by_token_times, *checks, strict=True):
        found = row.tokens_per_s or 0
        said = [
            *(one.predicted_tokens_per_s for one in predicted),
            from_other_tasks(row, rows),
            best_of_one_time(row, rows),
            of_token_time,
        ]
        off = [one / found - 1 for one in said]
        errors.append((row.method, off))
        key = [row.task, row.method, str(row.block_size), str(row.concurrency)]
        lines.append(
            [*key, f"{found:.0f}", *(f"{one:.0f} ({e:+.0%})" for one, e in zip(said, off, strict=True))]
        )
    kinds = [
        *KNOWN,
        "the other tasks' own cells",
        "one time for all tasks, all seen",
        "its own time a token, all seen",
    ]
    summaries = [
        [method, *summary(kind, (off[i] for one, off in errors if one == method))]
        for i, kind in enumerate(kinds)
        for method in ("dflash", "mtp")
    ]
    tasks = sorted({row.workload for row in rows})
    names = [field.name for field in fields(Efficiency)]
    fits = [fit_of(CARD_PAIR, PUBLISHED_GPU, task) for task in tasks]
    return [
        "## The model card: 24 rows of each method, each task left out in turn",
        table(["method", "predicted by", "rows", "median", "worst", "over 20 %"], summaries),
        "",
        table(["task", "method", "block", "requests", "tokens/s", *kinds], lines),
        "",
        "What is fitted, by the task that was left out:",
        "",
        table(["number", *tasks], [[n, *(f"{getattr(fit.reached, n):.3g}" for fit in fits)] for n in names]),
    ]


def of_own() -> list[str]:
    errors = [1 / one - 1 for one in left_out_errors()]
    lines = [
        [s.pair, s.method if s.block_size > 1 else "plain", str(s.block_size), str(s.concurrency), f"{s.step_ms}",
         f"{s.step_ms / (1 + e):.2f}", f"{e:+.0%}"]
        for s, e in zip(own_steps(), errors, strict=True)
    ]  # fmt: skip
    pairs = sorted({step.pair for step in own_steps()})
    by_pair = [
        summary(pair, (e for s, e in zip(own_steps(), errors, strict=True) if s.pair == pair))
        for pair in pairs
    ]
    fitted = ", ".join(f"{f.name} {getattr(own_fit().reached, f.name):.3g}" for f in fields(Efficiency))
    return [
        "## This engine's steps on one H200, each left out in turn",
        table(["pair", "rows", "median", "worst", "over 20 %"], by_pair),
        "",
        table(["pair", "method", "block", "requests", "step ms", "predicted", "error of the speed"], lines),
        "",
        f"Fitted: {fitted}.",
    ]


def of_vllm() -> list[str]:
    """Another server on another GPU: nothing of either was fitted, but plain decoding is known."""
    rows = [json.loads(line) for line in VLLM.read_text().splitlines()]
    every = [r for r in rows if (r["system"], r["pair"]) == ("vllm", "27b") and r["method"] in BLOCKS]
    # What was measured again stands there twice, the last behind.
    own = list({(r["method"], r["requests"]): r for r in every}.values())
    plain = {r["requests"]: 1e3 * r["requests"] / r["step_ms"] for r in own if r["method"] == "plain"}
    costs = forecast(published_pair(CARD_PAIR), GPUS["H200"], Job(600, 0), "dflash").costs
    costs, _ = calibrate(costs, Job(1, 10**9), plain, token_reads=0.0)
    lines, errors = [], []
    for row in own:
        size = BLOCKS[row["method"]]
        ms = 1e3 * (costs.verify_s(row["requests"], size) + costs.draft_s(row["requests"], size))
        errors.append(row["step_ms"] / ms - 1)
        lines.append(
            [row["method"], str(row["requests"]), f"{row['step_ms']}", f"{ms:.2f}", f"{errors[-1]:+.0%}"]
        )
    return [
        "## vLLM's steps on one H200, by SGLang's published rows on a B200 and vLLM's own plain decoding",
        table(["", "rows", "median", "worst", "over 20 %"], [summary("all", errors)]),
        "",
        table(["method", "requests", "step ms", "predicted", "error of the speed"], lines),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    parts = [["# What the planner is off by"], of_card(), of_own(), of_vllm()]
    parts.append(["## Where the numbers come from", provenance_list(collect_provenance())])
    args.out.write_text("\n\n".join("\n".join([part[0], "", *part[1:]]).rstrip() for part in parts) + "\n")
    print(args.out.read_text())


if __name__ == "__main__":
    main()
