"""Benchmark rows as a Markdown report for people and one JSON document for programs."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from flashdraft.bench import tables
from flashdraft.bench.online import OnlineRow
from flashdraft.bench.results import BASELINE, BenchRow
from flashdraft.bench.rows_file import Results
from flashdraft.bench.tables import method_label

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
_CARD_RULE = (
    "The card of z-lab/Qwen3.5-27B-DFlash: SGLang on one B200, thinking, at most 4,096 tokens. Speed-ups may be"
    " compared where the pair is the same; tokens a second where the GPU is too. Its acceptance length is the mean of"
    " the answers' own (dflash/benchmark.py), so compare the answers' mean; tokens over rounds, of which speed is"
    " made, are fewer where long answers draft worse."
)
_DICE = "Dice decided what was accepted: speed and cost alone are meant here, the answers mean nothing."
_ACCURACY_RULE = (
    "GSM8K and MATH-500 by their final answer, HumanEval and MBPP by their tests; answers that the limit cut are not"
    " graded. Methods differ only by answers that part at a near-tie."
)


def json_document(rows: Sequence[BenchRow], results: Results) -> dict[str, Any]:
    """The document that ``flashdraft bench --json`` ends its output with."""
    last = results.runs[-1]
    return {"rows": [asdict(row) for row in rows], **last}


def markdown(rows: Sequence[BenchRow], results: Results) -> str:
    """The report: speed, acceptance, latency, where the time goes, losslessness, and where the numbers come from."""
    sections = [f"# Benchmark\n\n{summary(rows, results)}\n\n{_intro(results)}"]
    for size in block_sizes_of(rows):
        title = f"## Throughput (tokens/s) and speed-up, block size {size}"
        sections.append(f"{title}\n\n{tables.speed_table(rows, size)}")
    if results.settings.get("card"):
        sections.append(f"## Beside the published card\n\n{_CARD_RULE}\n\n{tables.card_table(rows)}")
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


def summary(rows: Sequence[BenchRow], results: Results) -> str:
    """What was found, in five lines at most: where, how fast, how much accepted, how equal, how right."""
    provenance, settings = results.runs[-1]["provenance"], results.settings
    tasks = list(dict.fromkeys(row.task for row in rows))
    where = f"{provenance.get('device_name', provenance.get('device', 'this machine'))}, {settings.get('dtype', '')}"
    lines = [f"- {', '.join(tasks)} with {settings.get('model', 'the target')} on {where}"]
    fastest = [_fastest(rows, concurrency) for concurrency in dict.fromkeys(row.concurrency for row in rows)]
    lines.append(
        f"- fastest: {'; '.join(told for told in fastest if told) or 'nothing beside plain decoding ran'}"
    )
    gained: dict[str, list[BenchRow]] = {}
    for row in tables.drafted(rows):
        gained.setdefault(method_label(row.method, row.block_size), []).append(row)
    if gained:
        lines.append(
            "- acceptance length: "
            + ", ".join(f"{name} {_mean_length(own):.2f}" for name, own in gained.items())
        )
    others = [row for row in rows if row.method != BASELINE]
    if others and not settings.get("simulate_acceptance"):
        num_answers, num_equal = sum(row.num_answers for row in others), sum(row.num_equal for row in others)
        num_ties = sum(row.num_near_ties for row in others)
        lines.append(
            f"- plain decoding's tokens in {num_equal} of {num_answers} answers; {num_ties} part at a near-tie,"
            f" {num_answers - num_equal - num_ties} otherwise"
        )
        graded, right = sum(row.num_graded for row in others), sum(row.num_correct for row in others)
        cut = sum(row.num_cut for row in others)
        told = f"{right} of {graded} right" if graded else "none can be graded"
        lines.append(f"- whole answers: {told}; {cut} were cut by the limit of tokens and are not graded")
    return "\n".join(lines)


def _fastest(rows: Sequence[BenchRow], concurrency: int) -> str:
    """The fastest way at this concurrency over all tasks, beside plain decoding; empty where nothing else ran."""
    spent: dict[str, tuple[int, float]] = {}  # tokens and seconds
    for row in rows:
        if row.concurrency == concurrency:
            name = BASELINE if row.method == BASELINE else method_label(row.method, row.block_size)
            tokens, seconds = spent.get(name, (0, 0.0))
            took_s = row.num_output_tokens / row.output_tokens_per_s
            spent[name] = tokens + row.num_output_tokens, seconds + took_s
    speeds = {name: tokens / seconds for name, (tokens, seconds) in spent.items()}
    if len(speeds) < 2 or BASELINE not in speeds:
        return ""
    best, plain = max(speeds, key=lambda name: speeds[name]), speeds[BASELINE]
    name = "plain decoding" if best == BASELINE else best
    return f"{concurrency} at once {name}, {speeds[best] / plain:.2f}x, {speeds[best]:.0f} tokens/s against {plain:.0f}"


def _mean_length(rows: Sequence[BenchRow]) -> float:
    """Over all rounds: tokens gained a round."""
    num_rounds = sum(row.num_rounds for row in rows)
    return sum(row.acceptance_length * row.num_rounds for row in rows) / max(num_rounds, 1)


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
