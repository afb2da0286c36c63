"""The report of benchmarks/results/h200/beside-vllm: rows of gpu_steps.py and gpu_embedded.py beside vLLM's.

Usage: gpu_report.py FOLDER. Reads FOLDER/rows.jsonl, FOLDER/codes.jsonl (weights in codes; vLLM's of both by
vllm_rows.py) and FOLDER/bits.jsonl (gpu_embedded.py --whole), writes FOLDER/report.md. Of a cell's rows the last
counts.
"""

import json
import sys
from itertools import product
from pathlib import Path

from flashdraft.bench.published import published_rows

METHODS = ["plain", "plain@128k", "b16@7.93", "b16@5.47", "b8@5.90", "mtp@7.14", "tree16@7.93", "tree32@7.93"]
METHODS += [
    "b16",
    "b8",
    "auto",
    "auto-chains",
    "auto-tree16",
    "tree16",
    "tree32",
    "plain-sampled",
    "b16-sampled",
    "prefill",
]
FAMILIES = {"ar": "plain", "mtp": "mtp", "dflash": "b"}
TITLES = {
    "27b": "Qwen3.5-27B's shape with a 6-layer drafter, random weights, acceptance by dice",
    "35b-a3b": "Qwen3.5-35B-A3B's shape, random weights",
    "135m": "SmolLM2-135M-Instruct and its drafter; tokens/s while all requests decode",
}
FORMATS = {"fp8": "FP8, blocks of 128 by 128", "int4": "4 bits, symmetric, groups of 128"}
RATES = ("output_tokens_per_s", "with_prompts_per_s")


def cell(rows, key, digits=0):
    """A figure of the last of ``rows`` that has it."""
    found = [row[key] for row in rows if row.get(key) is not None]
    return f"{found[-1]:,.{digits}f}" if found else "-"


def table(rows, pair):
    """One line a method and number of requests."""
    names = ["method", "requests", "step ms", "floor", "replay", "kernels", "tokens/s", "with prompts"]
    names += ["vLLM ms", "tokens/s", "over vLLM"]
    lines = [f"| {' | '.join(names)} |", f"| --- |{' ---: |' * (len(names) - 1)}"]
    for method in METHODS:
        for requests in (1, 2, 4, 8, 16, 32):
            here = [r for r in rows if (r["pair"], r["method"], r["requests"]) == (pair, method, requests)]
            ours, peers = ([r for r in here if r["system"] == name] for name in ("flashdraft", "vllm"))
            if not ours:
                continue
            rate, ratio = RATES[0], "-"
            if peers:
                rate = next(key for key in RATES if key in peers[-1])
                ratio = f"{ours[-1][rate] / peers[-1][rate]:.2f}"
            figures = [cell(ours, "step_ms", 1), cell(ours, "floor_ms", 1), cell(ours, "replay_ms", 1)]
            figures += [
                cell(ours, "kernels"),
                cell(ours, "output_tokens_per_s"),
                cell(ours, "with_prompts_per_s"),
            ]
            whole = " (whole answers)" if rate != RATES[0] else ""
            figures += [cell(peers, "step_ms", 1), cell(peers, rate) + whole, ratio]
            lines.append(f"| {method} | {requests} | " + " | ".join(figures) + " |")
    return lines


def formats(rows, floats):
    """Weights in codes: one line a format, method and number of requests, beside ours in bfloat16 and vLLM's."""
    names = ["weights", "method", "requests", "step ms", "floor", "tokens/s", "over bfloat16"]
    names += ["vLLM ms", "tokens/s", "over vLLM", "vLLM's products"]
    lines = [f"| {' | '.join(names)} |", f"| --- | --- |{' ---: |' * (len(names) - 3)} --- |"]
    rate = RATES[0]
    for weights, method, requests in product(FORMATS, METHODS, (1, 8, 16, 32)):
        here = [r for r in rows if (r["weights"], r["method"], r["requests"]) == (weights, method, requests)]
        ours, peers = ([r for r in here if r["system"] == name] for name in ("flashdraft", "vllm"))
        alike = [r for r in floats if (r["method"], r["requests"]) == (method, requests)]
        if not ours:
            continue
        figures = [cell(ours, "step_ms", 1), cell(ours, "floor_ms", 1), cell(ours, rate)]
        figures += [f"{ours[-1][rate] / alike[-1][rate]:.2f}" if alike else "-"]
        figures += [cell(peers, "step_ms", 1), cell(peers, rate)]
        figures += [f"{ours[-1][rate] / peers[-1][rate]:.2f}", peers[-1]["products"]] if peers else ["-", "-"]
        lines.append(f"| {weights} | {method} | {requests} | {' | '.join(figures)} |")
    told = [f"{name}: {meaning}" for name, meaning in FORMATS.items()]
    return [*lines, "", f"{'; '.join(told)}; head and embedding in bfloat16, in both systems."]


def card(rows):
    """The published card's cells, and what the steps measured here make of its acceptance lengths."""
    steps = {}
    for row in rows:
        name, _, length = row["method"].partition("@")
        if row["pair"] == "27b" and "step_ms" in row and length != "128k":
            steps.setdefault((name, row["requests"]), {})[float(length or 1)] = row["step_ms"]
    cells = {}
    for one in published_rows():
        if one.pair != "qwen3.5-27b" or one.tokens_per_s is None:
            continue
        name = FAMILIES[one.method] + (str(one.block_size) if one.method == "dflash" else "")
        if found := steps.get((name, one.concurrency)):
            nearest = min(found, key=lambda length: abs(length - one.acceptance_length))
            made = 1e3 * one.concurrency * one.acceptance_length / found[nearest]
            cells[one.task, one.method, one.block_size, one.concurrency] = one, made
    lines = ["| task | method | block | requests | accepted | card, B200 | here |"]
    lines += ["| --- | --- | ---: | ---: | ---: | ---: | ---: |"]
    for (task, method, block, requests), (one, made) in cells.items():
        accepted = f"{one.acceptance_length:.2f}"
        lines.append(
            f"| {task} | {method} | {block} | {requests} | {accepted} | {one.tokens_per_s:,.0f} | {made:,.0f} |"
        )
    return lines


def bits(rows):
    """How many answers of each method are plain decoding's alone."""
    lines = ["| pair | method | requests | same answers |", "| --- | --- | ---: | ---: |"]
    last = {(r["pair"], r["method"], r["requests"]): r for r in rows if "same" in r}
    for (pair, method, requests), row in last.items():
        lines.append(
            f"| {pair} | {method} | {requests} | {row['same']} of {row.get('of', row.get('answers'))} |"
        )
    told = "Answers of 8 and 32 requests, but greedy plain ones and blocks at 8, were compared with plain decoding of"
    told += " eight at a time; of these all greedy ones, and 24 of the sampled, were compared with one alone."
    return [*lines, "", told]


def main():
    folder = Path(sys.argv[1])
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    ours = [row for row in rows if row["system"] == "flashdraft"]
    of_bits = [json.loads(line) for line in (folder / "bits.jsonl").read_text().splitlines()]
    copies = sorted({row["copy_tb_s"] for row in ours if "copy_tb_s" in row})
    commits = sorted({row["provenance"]["git_sha"][:9] for row in ours})
    lines = ["# One H200, beside vLLM 0.24", ""]
    lines += [
        f"flashdraft at {', '.join(commits)}; copy rate of the runs {copies[0]:.2f} to {copies[-1]:.2f} TB/s.",
        "vLLM's rows of the 27B plain and of its block 8 were each measured on the machine of ours within ten minutes",
        "(its start beside a load test or a trainer, its steps alone), those of the 35B-A3B and of prompts on one of",
        "their own with ours in turn, those of block 16 on another card of the kind, where ours in turn took 16.8,",
        "22.4, 34.5 and 64.2 ms. Those of weights in codes and of the small pair ran on the machine of ours, but for",
        "ours in FP8 at 16 requests and of the small pair at 1 and 8. Of that pair tree16, blocks and trees at 32, and",
        "b8, tree32 and b16-sampled at 8 are of an older drafter and of the same prompts in all passes.",
        "A floor is the larger of bytes over the copy rate and FLOP over the matrix rate, without caches.",
        "`replay`: the step's recordings alone, back to back; the rest of a step is the host's.",
    ]
    for pair, title in TITLES.items():
        if any(row["pair"] == pair for row in ours):
            lines += ["", f"## {title}", "", *table(rows, pair)]
    in_codes = [json.loads(line) for line in (folder / "codes.jsonl").read_text().splitlines()]
    in_codes = [row for row in in_codes if row["pair"] == "27b"]
    lines += ["", f"## {TITLES['27b'].partition(' with')[0]}, weights in codes", ""]
    lines += formats(in_codes, [row for row in ours if row["pair"] == "27b"])
    lines += [
        "",
        "## The card's tables, tokens/s: as published, and steps measured here times its lengths",
        "",
    ]
    lines += card(ours)
    lines += [
        "",
        "## The same tokens as plain decoding of one request alone, bfloat16",
        "",
        "200 answers at 8 and 32 requests are compared with plain decoding of eight at a time.",
        "",
        *bits([*ours, *of_bits]),
    ]
    (folder / "report.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
