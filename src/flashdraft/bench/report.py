"""Benchmark rows as a Markdown report for people and one JSON document for programs."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from flashdraft.bench import tables
from flashdraft.bench.online import OnlineRow
from flashdraft.bench.results import BenchRow
from flashdraft.bench.rows_file import Results

_RULES = (
    "Requests are asked closed-loop: the next when one is finished. Methods answer chunks of prompts in turns, in"
    " rotating order; prefix caching is off. Rates are ratios of sums over all answers, prefill included. An answer"
    " loops when 10 % of its 8-grams or more are repeats."
)
_TIME_RULE = (
    "A round of one request costs its share of the step: step time over requests in it. Host is all that is neither"
    " prefill, draft nor verification. Promised: acceptance length x t_AR / (t_draft + t_verify), a host that costs"
    " nothing."
)
_DICE = "Dice decided what was accepted: speed and cost alone are meant here, the answers mean nothing."
_ACCURACY_RULE = (
    "GSM8K and MATH-500 by their final answer, HumanEval and MBPP by their tests. Methods differ only by answers"
    " that part at a near-tie."
)


def json_document(rows: Sequence[BenchRow], results: Results) -> dict[str, Any]:
    """The document that ``flashdraft bench --json`` ends its output with."""
    last = results.runs[-1]
    return {"rows": [asdict(row) for row in rows], **last}


def markdown(rows: Sequence[BenchRow], results: Results) -> str:
    """The report: speed, acceptance, latency, where the time goes, losslessness, and where the numbers come from."""
    sections = [f"# Benchmark\n\n{_intro(results)}"]
    for size in block_sizes_of(rows):
        title = f"## Throughput (tokens/s) and speed-up, block size {size}"
        sections.append(f"{title}\n\n{tables.speed_table(rows, size)}")
    is_real = not results.settings.get("simulate_acceptance")
    for title, rule, text in (
        ("Acceptance length (answers that do not loop alone)", "", tables.acceptance_table(rows)),
        ("Speed-up over plain decoding", "", tables.interval_table(rows)),
        ("What the controller chose", "", tables.chosen_table(rows)),
        ("Latency (ms)", "", tables.latency_table(rows)),
        ("Rounds that accept the draft token at each position (percent)", "", tables.positions_table(rows)),
        ("Where a round's time goes", _TIME_RULE, tables.time_table(rows)),
        ("Same tokens as plain decoding", "", tables.lossless_table(rows) if is_real else _DICE),
        ("Right answers", _ACCURACY_RULE, tables.accuracy_table(rows) if is_real else _DICE),
    ):
        sections.append("\n\n".join(part for part in (f"## {title}", rule, text) if part))
    for run in results.runs:
        sections.append(f"## Where the numbers come from\n\n{provenance_list(run['provenance'])}")
    return "\n\n".join(sections) + "\n"


def online_markdown(rows: Sequence[OnlineRow], settings: dict[str, Any], provenance: dict[str, Any]) -> str:
    """The report of a server: rates, latencies, acceptance."""
    told = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    sections = [f"# Benchmark of a server\n\nSettings: {told}."]
    sections.append(f"## Rates and latencies (ms, p50 / p99)\n\n{tables.online_table(rows)}")
    sections.append(f"## Where the numbers come from\n\n{provenance_list(provenance)}")
    return "\n\n".join(sections)


def block_sizes_of(rows: Sequence[BenchRow]) -> list[int]:
    """Of the methods that draft, in order of first appearance; [1] where none does."""
    sizes = [row.block_size for row in tables.drafted(rows) if isinstance(row.block_size, int)]
    return list(dict.fromkeys(sizes)) or [1]


def provenance_list(provenance: dict[str, Any]) -> str:
    """One line a fact."""
    lines = []
    for name, value in provenance.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        lines.append(f"- {name}: {text}")
    return "\n".join(lines)


def _intro(results: Results) -> str:
    told = ", ".join(f"{name} {_told(value)}" for name, value in results.settings.items())
    return f"Settings: {told}.\n\n{_RULES}"


def _told(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
