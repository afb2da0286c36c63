"""Benchmark rows as a Markdown report for people and one JSON document for programs."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from flashdraft.bench.results import BASELINE, BenchRow, Measurement

Column = tuple[str, int]  # method, block size
_MISSING = "–"


def json_document(
    rows: Sequence[BenchRow], provenance: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any]:
    """The document that ``flashdraft bench --json`` ends its output with."""
    return {"rows": [asdict(row) for row in rows], "settings": settings, "provenance": provenance}


def jsonl(measurements: Sequence[Measurement]) -> str:
    """One line an answer: what ``rows.jsonl`` holds."""
    return "".join(json.dumps(asdict(m), ensure_ascii=False) + "\n" for m in measurements)


def markdown(rows: Sequence[BenchRow], provenance: dict[str, Any], settings: dict[str, Any]) -> str:
    """The report: speed, acceptance, where the time goes, losslessness, and where the numbers come from."""
    sections = [
        "# Benchmark, one stream",
        _intro(settings),
        "## Tokens a second, end to end (speed-up over plain decoding)",
        _by_task(rows, _speed),
        "## Speed-up, median over prompts",
        _by_task(_drafted(rows), _median_speedup),
        "## Acceptance length (answers that do not loop alone)",
        _by_task(_drafted(rows), _acceptance),
        "## Share of rounds that accept the draft token at each position (percent)",
        _positions_table(_drafted(rows)),
        "## Where a round's time goes",
        "Promised: acceptance length x t_AR / (t_draft + t_verify), that is with a host that costs nothing.",
        _time_table(rows),
        "## Same tokens as plain decoding",
        _lossless_table(_drafted(rows)),
        "## Where the numbers come from",
        _provenance_list(provenance),
    ]
    return "\n\n".join(sections) + "\n"


def method_label(method: str, block_size: int) -> str:
    """What a table calls a method: "AR", "DFlash B16"."""
    return method if method == BASELINE else f"{method} B{block_size}"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the columns "task" and "method" are text, the others numbers."""
    rule = ["---" if name in ("task", "method") else "---:" for name in header]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))


def _drafted(rows: Sequence[BenchRow]) -> list[BenchRow]:
    return [row for row in rows if row.method != BASELINE]


def _by_task(rows: Sequence[BenchRow], cell: Callable[[Sequence[BenchRow]], str]) -> str:
    """Tasks down, methods across; ``cell`` shows the mean of its rows: one, or all tasks' in the last line."""
    found: dict[Column, dict[str, BenchRow]] = {}
    for row in rows:
        found.setdefault((row.method, row.block_size), {})[row.task] = row
    tasks = list(dict.fromkeys(row.task for row in rows))
    lines = [
        [task, *(cell([column[task]]) if task in column else _MISSING for column in found.values())]
        for task in tasks
    ]
    if len(tasks) > 1:
        lines.append(["mean of tasks", *(cell(list(column.values())) for column in found.values())])
    return table(["task", *(method_label(*column) for column in found)], lines)


def _speed(rows: Sequence[BenchRow]) -> str:
    speed = f"{fmean(row.output_tokens_per_s for row in rows):.1f}"
    if rows[0].method == BASELINE:
        return speed
    return f"{speed} ({fmean(row.speedup for row in rows):.2f}x)"


def _median_speedup(rows: Sequence[BenchRow]) -> str:
    return f"{fmean(row.speedup_median for row in rows):.2f}x"


def _acceptance(rows: Sequence[BenchRow]) -> str:
    steady = [x for row in rows if (x := row.acceptance_length_not_looping) is not None]
    apart = f"{fmean(steady):.2f}" if steady else _MISSING
    return f"{fmean(row.acceptance_length for row in rows):.2f} ({apart})"


def _positions_table(rows: Sequence[BenchRow]) -> str:
    longest = max((len(row.accepted_by_position) for row in rows), default=0)
    lines = []
    for row in rows:
        shares = [f"{100 * share:.0f}" for share in row.accepted_by_position]
        lines.append(
            [row.task, method_label(row.method, row.block_size), *shares, *[""] * (longest - len(shares))]
        )
    return table(["task", "method", *map(str, range(1, longest + 1))], lines)


def _time_table(rows: Sequence[BenchRow]) -> str:
    header = ["task", "method", "rounds", "draft ms", "verify ms", "host ms", "decode speed-up", "promised"]
    lines = [
        [
            row.task,
            method_label(row.method, row.block_size),
            str(row.num_rounds),
            _number(row.round_draft_s, ".2f", 1e3),
            _number(row.round_verify_s, ".2f", 1e3),
            _number(row.round_host_s, ".2f", 1e3),
            _number(row.decode_speedup, ".2f", unit="x"),
            _number(row.promised_speedup, ".2f", unit="x"),
            _number(row.promise_share, ".0f", 100, "%"),
        ]
        for row in rows
    ]
    return table([*header, "reached"], lines)


def _lossless_table(rows: Sequence[BenchRow]) -> str:
    lines = [
        [
            row.task,
            method_label(row.method, row.block_size),
            str(row.num_prompts),
            str(row.num_equal),
            str(row.num_near_ties),
            str(row.num_prompts - row.num_equal - row.num_near_ties),
            _number(row.largest_gap, ".2g"),
            str(row.num_looping),
        ]
        for row in rows
    ]
    header = ["task", "method", "answers", "equal", "near-ties", "wrong", "largest gap", "looping answers"]
    return table(header, lines)


def _intro(settings: dict[str, Any]) -> str:
    told = ", ".join(f"{name} {value}" for name, value in settings.items())
    return (
        f"Settings: {told}. One request at a time, methods interleaved prompt by prompt in rotating order;"
        " rates are ratios of sums over all answers. An answer loops when 10 % of its 8-grams or more are"
        " repeats."
    )


def _provenance_list(provenance: dict[str, Any]) -> str:
    lines = []
    for name, value in provenance.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        lines.append(f"- {name}: {text}")
    return "\n".join(lines)


def _number(value: float | None, form: str, scale: float = 1.0, unit: str = "") -> str:
    return _MISSING if value is None else format(value * scale, form) + unit
