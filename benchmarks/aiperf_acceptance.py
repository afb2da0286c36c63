"""AIPerf's five acceptance tasks against a server, beside our own bench: do both print one acceptance length?

    python -m venv /tmp/aiperf && /tmp/aiperf/bin/pip install aiperf
    python benchmarks/aiperf_acceptance.py --bin /tmp/aiperf/bin --out benchmarks/results/aiperf_acceptance.json

AIPerf's tasks ``spec_al_*`` name repositories of datasets. Here they find folders of the same names in the folder that
it runs in, with the first prompts of our tasks: the same texts, longest answer and greedy decoding for both. MT-Bench
is asked for its first turns. The server has a fixed block size, for ``auto`` draws on measured times.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from served_process import start_server

from flashdraft.bench.tasks import load_task
from flashdraft.checkpoint.load import load_tokenizer
from flashdraft.provenance import collect_provenance

NAME = "embedded"
# Our task -> AIPerf's, its dataset's name, configuration, split and column.
TASKS = {
    "gsm8k": ("gsm8k", "openai/gsm8k", "main", "test", "question"),
    "math500": ("math500", "HuggingFaceH4/MATH-500", "default", "test", "problem"),
    "humaneval": ("humaneval", "openai/openai_humaneval", "default", "test", "prompt"),
    "mbpp": ("mbpp", "google-research-datasets/mbpp", "full", "test", "text"),
    "mt-bench": ("mtbench", "HuggingFaceH4/mt_bench_prompts", "default", "train", "prompt"),
}
# With HF_HUB_OFFLINE AIPerf would look for the tokenizer's folder in the hub's cache alone.
OFFLINE = os.environ | {"HF_DATASETS_OFFLINE": "1"}


def save_inputs(folder: Path, limit: int) -> None:
    """The prompts where AIPerf looks for them, and the tokenizer."""
    for task, (_, dataset, subset, split, column) in TASKS.items():
        place = folder / dataset
        place.mkdir(parents=True)
        card = f"---\nconfigs:\n- config_name: {subset}\n  data_files:\n  - split: {split}\n    path: rows.jsonl\n---\n"
        (place / "README.md").write_text(card)
        turns = [prompt.turns[:1] for prompt in load_task(task, limit)]
        rows = [{column: list(one) if task == "mt-bench" else one[0]} for one in turns]
        (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    load_tokenizer().save_pretrained(folder / "tokenizer")


def ask_aiperf(
    commands: Path, folder: Path, url: str, task: str, limit: int, num_tokens: int
) -> dict[str, Any]:
    """What AIPerf says of one task."""
    out = folder / f"out-{task}"
    command = [str(commands / "aiperf"), "profile", "--model", NAME, "--url", url, "--endpoint-type", "chat"]
    command += ["--public-dataset", f"spec_al_{TASKS[task][0]}", "--streaming", "--concurrency", "1"]
    command += ["--request-count", str(limit), "--num-dataset-entries", str(limit), "--ui", "none"]
    command += ["--extra-inputs", "temperature:0", "--extra-inputs", f"max_tokens:{num_tokens}"]
    command += ["--tokenizer", str(folder / "tokenizer"), "--artifact-dir", str(out)]
    done = subprocess.run(command, cwd=folder, env=OFFLINE, capture_output=True, text=True, check=False)
    files = list(out.rglob("profile_export_aiperf.json"))
    if done.returncode or not files:
        raise SystemExit(f"aiperf failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    told: dict[str, Any] = json.loads(files[0].read_text())
    return told


def ask_ours(url: str, limit: int, num_tokens: int) -> dict[str, dict[str, Any]]:
    """The rows of ``flashdraft bench --url``, by task."""
    command = [sys.executable, "-m", "flashdraft", "bench", "--url", url, "--limit", str(limit), "--json"]
    command += ["--concurrency", "1", "--max-tokens", str(num_tokens), "--tasks", ",".join(TASKS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"flashdraft bench failed:\n{done.stderr[-3000:]}")
    return {row["task"]: row for row in json.loads(done.stdout)["rows"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bin", type=Path, required=True, help="where the command aiperf is")
    parser.add_argument("--limit", type=int, default=5, help="prompts of each task")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_inputs(folder, args.limit)
        with start_server(["--served-model-name", NAME, "--block-size", str(args.block_size)]) as server:
            ours = ask_ours(server.url, args.limit, args.max_tokens)
            for task in TASKS:
                told = ask_aiperf(args.bin.resolve(), folder, server.url, task, args.limit, args.max_tokens)
                theirs = told["spec_decode_token_weighted_acceptance_length"]["avg"]
                row = {"task": task, "aiperf": theirs, "ours": ours[task]["acceptance_length"]}
                row |= {"aiperf_version": told.get("aiperf_version"), "ratio": theirs / row["ours"]}
                rows.append(row)
                print(json.dumps(row), flush=True)
    settings = {"limit": args.limit, "max_tokens": args.max_tokens, "block_size": args.block_size}
    if args.out:
        told = {"rows": rows, "settings": settings, "provenance": collect_provenance()}
        args.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
