"""What vLLM measured, as rows beside ours: closed loops of its own engine, the median of the passes after the first.

Usage: vllm_rows.py FOLDER [FILE...]. Of FOLDER's vllm-PAIR-METHOD.json, which peers/vllm_steps.py writes ({"told": what
was asked, "cells": {"... xN": [passes]}}), or of those named alone: rows of bfloat16 are appended to FOLDER/rows.jsonl,
of weights in codes (vllm-PAIR-WEIGHTS-METHOD.json) to FOLDER/codes.jsonl. Tokens/s are of steps in which all N decode.
"""

import json
import re
import sys
from pathlib import Path
from statistics import median

NAMES = {"ar": "plain", "b16": "b16", "b8": "b8"}


def rows_of(path):
    """One row a cell."""
    pair, _, method = path.stem.removeprefix("vllm-").rpartition("-")
    found = json.loads(path.read_text())
    weights = found.get("weights", "bf16")
    told = {"system": "vllm", "pair": pair.removesuffix(f"-{weights}")}
    if weights != "bf16":
        told |= {"weights": weights, "products": max(found["kernels"], key=found["kernels"].get)}
    provenance = {"source": f"vLLM 0.24.0 on one NVIDIA H200 of the same machine as ours, {path.name}"}
    for name, passes in found["cells"].items():
        later = passes[1:] or passes
        row = told | {"provenance": provenance}
        if prefill := re.search(r"prefill (\d+) x (\d+)", name):
            requests, length = map(int, prefill.groups())
            seconds = median(one["wall_s"] for one in later)
            row |= {"method": "prefill", "requests": requests, "step_ms": round(1e3 * seconds, 1)}
            yield row | {
                "output_tokens_per_s": round(requests * length / seconds),
                "tokens": requests * length,
            }
            continue
        length = re.search(r" ([\d.]+) x", name)
        label = f"{NAMES[method]}@{float(length[1]):.2f}" if length else NAMES[method]
        row |= {"method": label, "requests": int(name.rpartition("x")[2])}
        row |= {"most_at_once": max(one["most_active"] for one in later)}
        row |= {"step_ms": round(median(one["step_ms"] for one in later), 2)}
        row |= {"with_prompts_per_s": round(median(one["tokens_s"] for one in later), 1)}
        yield row | {"output_tokens_per_s": round(median(one["steady_tokens_s"] for one in later), 1)}


def main():
    folder = Path(sys.argv[1])
    named = [folder / name for name in sys.argv[2:]]
    for path in named or sorted(folder.glob("vllm-*.json")):
        rows = list(rows_of(path))
        with (folder / ("codes.jsonl" if "weights" in rows[0] else "rows.jsonl")).open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
