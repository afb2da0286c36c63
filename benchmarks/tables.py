"""Write the measured tables of README.md and docs/ from the files in benchmarks/results, between their markers.

    .venv/bin/python benchmarks/tables.py            # write them
    .venv/bin/python benchmarks/tables.py --check    # name the pages whose tables are stale; exit code 1

A place for a table is ``<!-- table: NAME -->`` and ``<!-- /table -->``, each on a line of its own. Whoever measures
anew runs this command; a test of ``make test`` finds pages where that was forgotten.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, median
from typing import Any

from flashdraft.bench.results import BASELINE, BenchRow, aggregate
from flashdraft.bench.rows_file import read_rows, rows_in
from flashdraft.bench.tables import MISSING, columns_of

REPO = Path(__file__).resolve().parent.parent
RESULTS = REPO / "benchmarks/results"
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)
LOADS = (1, 8, 16, 32)
NAMES = {
    BASELINE: "plain decoding, tokens/s",
    "n-gram": "prompt lookup",
    "MTP": "MTP head",
    "DFlash": "DFlash",
}


@cache
def rows(folder: str) -> list[BenchRow]:
    return aggregate(read_rows(rows_in(RESULTS / folder)).measurements)


@cache
def line(folder: str, method: str, block_size: int | str, load: int) -> tuple[float, float, int] | None:
    """Mean over tasks of tokens a second and of the speed-up, and the number of tasks; None: not measured."""
    found = [
        row
        for row in rows(folder)
        if (row.method, row.block_size, row.concurrency) == (method, block_size, load)
    ]
    if not found:
        return None
    return fmean(row.output_tokens_per_s for row in found), fmean(row.speedup for row in found), len(found)


def cell(folder: str, method: str, block_size: int | str, load: int) -> str:
    """Tokens a second of plain decoding, the speed-up of any other; a star where tasks are missing."""
    found = line(folder, method, block_size, load)
    if found is None:
        return MISSING
    star = "" if found[2] == 5 else " \\*"
    return f"{found[0]:,.0f}{star}" if method == BASELINE else f"{found[1]:.2f}x{star}"


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]], num_text: int = 1) -> str:
    rule = ["---"] * num_text + ["---:"] * (len(header) - num_text)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))


def name_of(method: str, block_size: int | str) -> str:
    if method in ("DFlash", "MTP", "n-gram"):
        return f"{NAMES[method]}, block {block_size}"
    return NAMES.get(method, method if method.startswith("tree") else f"`{method}`")


def speedups() -> str:
    """README's: three machines, plain decoding, `auto` and fixed blocks."""
    lines = []
    for machine, folder in (
        ("2 cores of an AMD EPYC", "auto"),
        ("2 cores of an Intel Xeon with AMX", "amx/new-1"),
        ("one NVIDIA H100", "h100/auto"),
    ):
        for method, size in ((BASELINE, 1), ("auto", "auto"), ("DFlash", 8), ("DFlash", 16)):
            cells = [cell(folder, method, size, load) for load in LOADS]
            lines.append([machine if method == BASELINE else "", name_of(method, size), *cells])
    return markdown(["machine", "method", "1 request", "8", "16", "32"], lines, num_text=2)


def losses() -> str:
    """README's: where something else is faster."""
    humaneval = next(row for row in rows("h100/long") if (row.task, row.method) == ("humaneval", "auto"))
    waits = on_card("serving", method="neighbours")
    in_floats = on_card("rows", system="flashdraft", method="plain", pair="35b-a3b", requests=1)
    in_fp8 = {"pair": "27b", "weights": "fp8", "method": "plain", "requests": 32}
    lines = [
        [
            "H100, 8 requests, answers up to 4,096 tokens, most of which loop",
            f"`auto` {cell('h100/long', 'auto', 'auto', 8)}",
            f"prompt lookup {cell('h100/long', 'n-gram', 16, 8)}",
        ],
        ["the same, HumanEval alone", f"`auto` {humaneval.speedup:.2f}x", "plain decoding 1.00x"],
        [
            "one EPYC core, AVX-512 off, 1 request, plain decoding",
            f"{beside_llama()[0]:.0f} tokens/s",
            f"llama.cpp {beside_llama()[1]:.0f}",
        ],
        [
            "H200, 27B, p99 gap between tokens while 32k tokens of prompts come",
            f"{waits['busy_p99_ms']} ms",
            f"without prompts {waits['quiet_p99_ms']} ms",
        ],
        [
            "H200, 35B-A3B's shape, a plain step of 1 request",
            f"FP8 {on_card('codes', pair='35b-a3b', requests=1)['step_ms']} ms",
            f"bfloat16 {in_floats['step_ms']} ms",
        ],
        [
            "H200, 27B in FP8, a plain step of 32 requests",
            f"{on_card('codes', system='flashdraft', **in_fp8)['step_ms']} ms",
            f"vLLM {on_card('codes', system='vllm', **in_fp8)['step_ms']:.1f} ms",
        ],
    ]
    return markdown(["where", "flashdraft", "faster"], lines, num_text=3)


def beside_llama() -> tuple[float, float]:
    """Tokens a second of plain decoding on one core with AVX2, and llama.cpp's median there, bfloat16 both."""
    answers = json.loads((RESULTS / "cpu_paths/avx2_llama.json").read_text())["answers"]
    own = sum(one["tokens"] for one in answers) / sum(one["plain_s"] for one in answers)
    return own, median(one["beside"] for one in answers if "beside" in one)


def on_card(file: str, **wanted: object) -> dict[str, Any]:
    """The last row of an H200's ``file`` that has all of ``wanted``; an empty one if none has."""
    lines = (RESULTS / "h200/beside-vllm" / f"{file}.jsonl").read_text().splitlines()
    found = [row for row in map(json.loads, lines) if wanted.items() <= row.items()]
    return dict(found[-1]) if found else {}


SHAPES = {  # a line of the table of one GPU -> its rows
    "plain decoding": ("rows", {"method": "plain"}),
    "block 16, 7.93 tokens a round": ("rows", {"method": "b16@7.93"}),
    "block 16, 5.47 tokens a round": ("rows", {"method": "b16@5.47"}),
    "block 8, 5.90 tokens a round": ("rows", {"method": "b8@5.90"}),
    "MTP, 15 drafts, 7.14 tokens a round": ("rows", {"method": "mtp@7.14"}),
    "prompts of 1,024 tokens, prefill": ("rows", {"method": "prefill"}),
    "plain decoding, weights in FP8": ("codes", {"method": "plain", "weights": "fp8"}),
    "plain decoding, weights in 4 bits": ("codes", {"method": "plain", "weights": "int4"}),
    "Qwen3.5-35B-A3B's shape, plain": ("rows", {"method": "plain", "pair": "35b-a3b"}),
}


def on_one_gpu() -> str:
    """Tokens a second of the 27B's shape, and what they are over vLLM's rows of the same cell and format."""

    def rates(file: str, system: str, wanted: dict[str, str]) -> list[float | None]:
        told = {"pair": "27b"} | wanted | {"system": system}
        return [on_card(file, **told, requests=load).get("output_tokens_per_s") for load in LOADS]

    lines = []
    for name, (file, wanted) in SHAPES.items():
        ours, peers = (rates(file, system, wanted) for system in ("flashdraft", "vllm"))
        ratios = [f"{a / b:.2f}" if a and b else MISSING for a, b in zip(ours, peers, strict=True)]
        told = " / ".join(ratios) if set(ratios) != {MISSING} else MISSING
        lines.append([name, *(f"{one:,.0f}" if one else MISSING for one in ours), told])
    names = ["method", "1 request", "8", "16", "32", "over vLLM 0.24 at 1 / 8 / 16 / 32"]
    return markdown(names, lines)


@cache
def peer_rows(folder: str = "peers") -> dict[str, dict[str, str]]:
    """System -> the cells of its row by the names of their columns, numbers without what stands in brackets."""
    text = (RESULTS / folder / "report.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header, _, *systems = [[part.strip() for part in line.split("|")[1:-1]] for line in lines]
    return {row[0]: dict(zip(header, map(_first, row), strict=True)) for row in systems}


def _first(text: str) -> str:
    return text.split(" ")[0]


def _spelt(system: str) -> str:
    return system.replace(" AR ", " plain decoding ")


def peers() -> str:
    columns = [*(f"{load} at a time" for load in LOADS), "acceptance length", "TTFT ms"]
    lines = [[_spelt(name), *(row[column] for column in columns)] for name, row in peer_rows().items()]
    return markdown(["tokens/s", *columns], lines)


def peers_later() -> str:
    """Runs of later commits: of 1 request, of 8 and 16, of 32."""
    found = {"1": "repeats/1", "8": "repeats", "16": "repeats", "32": "repeats/load"}
    cells = {f"{load} at a time": peer_rows(f"peers/{folder}") for load, folder in found.items()}
    names = dict.fromkeys(name for rows in cells.values() for name in rows)
    lines = [
        [_spelt(name), *(rows[name][column] if name in rows else "–" for column, rows in cells.items())]
        for name in names
    ]
    return markdown(["tokens/s", *cells], lines)


def by_load(*folders: str) -> Callable[[], str]:
    """A table of all methods in ``folders``; a load is taken from the folder that has most tasks at it."""

    def write() -> str:
        home = {load: folder for load in LOADS if (folder := _home(folders, load))}
        methods = list(dict.fromkeys(column for folder in folders for column in columns_of(rows(folder))))
        methods.sort(key=lambda column: column[0] != BASELINE)
        lines = [
            [name_of(*method), *(cell(folder, *method, load) for load, folder in home.items())]
            for method in methods
        ]
        return markdown(["method", *(f"{load} request{'s' * (load > 1)}" for load in home)], lines)

    return write


def _home(folders: Sequence[str], load: int) -> str | None:
    counts = {folder: found[2] for folder in folders if (found := line(folder, BASELINE, 1, load))}
    return max(counts, key=lambda folder: counts[folder]) if counts else None


def acceptance() -> str:
    """Acceptance length by task with blocks of 16: shipped drafter and the one before, and before DFlash 2."""
    found = {}
    for file in ("h200/drafter/served-after", "h200/drafter/served-before", "h100/acceptance"):
        for text in (RESULTS / f"{file}.md").read_text().splitlines():
            cells = [part.strip() for part in text.split("|")[1:-1]]
            if cells[0] != "task" and not cells[0].startswith("---"):
                found[file.split("/")[-1], cells[0], cells[1]] = cells
    lines = []
    for task in ("gsm8k", "math500", "humaneval", "mbpp", "mt-bench", "mean"):
        after, before, plain = (
            found[name, task, "16"] for name in ("served-after", "served-before", "acceptance")
        )
        lengths = [one[column] for one in (before, plain) for column in (3, 6)]
        lines.append([task, after[3], after[6], after[4], after[7], *lengths])
    header = ["task", "DFlash", "prompt lookup", "before", "before DFlash 2"]
    return markdown([header[0], *(name for one in header[1:] for name in (one, "not looping"))], lines)


def lossless() -> str:
    found = json.loads((RESULTS / "lossless.json").read_text())["rows"]
    walked = [row["walk"] for row in found if row["walk"]["rounds"]]
    lines = [
        ["answers equal to plain decoding", f"{sum(r['plain']['equal'] for r in found)} of {len(found)}"],
        [
            "answers equal to `transformers.generate`",
            f"{sum(r['transformers']['equal'] for r in found)} of {len(found)}",
        ],
        [
            "rounds in which training's simulation accepts what serving accepts",
            f"{sum(w['same'] for w in walked):,} of {sum(w['rounds'] for w in walked):,}",
        ],
    ]
    lengths = " or ".join(map(str, sorted({row["max_tokens"] for row in found}, reverse=True)))
    return markdown([f"float32, greedy, {lengths} tokens, 20 prompts of each of five tasks", "count"], lines)


def quantized_drafters() -> str:
    """Acceptance length by task of the shipped drafter in fewer bits, and what that is of bfloat16's."""
    found = json.loads((RESULTS / "quantized_drafters.json").read_text())["rows"]
    tasks = list(found[0]["acceptance_length"])
    lines = [
        [
            row["form"],
            *(f"{row['acceptance_length'][task]:.2f}" for task in tasks),
            f"{row['mean']:.2f}",
            f"{row['of_bfloat16']:.3f}",
            "{:.3f} to {:.3f}".format(*row["interval"]),
        ]
        for row in found
    ]
    return markdown(["drafter in", *tasks, "mean", "of bfloat16", "95 %"], lines)


TABLES: dict[str, Callable[[], str]] = {
    "speedups": speedups,
    "losses": losses,
    "peers": peers,
    "peers-later": peers_later,
    "one-gpu": on_one_gpu,
    "acceptance": acceptance,
    "quantized-drafters": quantized_drafters,
    "lossless": lossless,
    "epyc": by_load("auto"),
    "epyc-all-methods": by_load("card"),
    "xeon-1": by_load("amx/new-1"),
    "xeon-2": by_load("amx/new-2"),
    "h100": by_load("h100/auto"),
    "h100-all-methods": by_load("h100/one", "h100/load", "h100/16-and-32"),
    "h100-long": by_load("h100/long"),
}


def pages() -> list[Path]:
    """The files that may hold tables."""
    return [REPO / "README.md", REPO / "benchmarks/README.md", *sorted((REPO / "docs").rglob("*.md"))]


def filled(text: str) -> str:
    """``text`` with every marked table as the result files have it. Raises KeyError for a table that is unknown."""
    return MARKED.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}\n{match[3]}", text)


def stale_pages() -> list[Path]:
    """The pages whose tables are not what the result files say."""
    return [page for page in pages() if page.exists() and filled(page.read_text()) != page.read_text()]


def main() -> None:
    stale = stale_pages()
    if "--check" in sys.argv[1:]:
        for page in stale:
            print(
                f"{page.relative_to(REPO)}: a table is not what benchmarks/results says; run benchmarks/tables.py"
            )
        raise SystemExit(1 if stale else 0)
    for page in stale:
        page.write_text(filled(page.read_text()))
        print(f"{page.relative_to(REPO)}: written anew")


if __name__ == "__main__":
    main()
