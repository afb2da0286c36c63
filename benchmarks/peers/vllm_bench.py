"""Our online benchmark beside `vllm bench serve`: do both find the same throughput and acceptance in one server?

    python benchmarks/peers/compare.py up --systems "vLLM DFlash"
    python benchmarks/peers/vllm_bench.py --runs 5 --out benchmarks/results/vllm_bench.json

Both ask the same prompts in the same order, as many under way, of the same length, streamed; they take turns. One
run before that is not counted: after it the server's prefix cache knows the prompts, for both.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from compare import chosen, port_of
from systems import PEERS, TARGET

from flashdraft.bench.tasks import load_task
from flashdraft.provenance import collect_provenance

_OURS = [sys.executable, "-c", "from flashdraft.cli.main import main; main()", "bench"]
_THEIRS = "import argparse; from vllm.benchmarks.serve import add_cli_args, main;"
_THEIRS += "p = argparse.ArgumentParser(); add_cli_args(p); main(p.parse_args())"


def ours(url: str, args: argparse.Namespace) -> dict[str, Any]:
    options = ["--url", url, "--tasks", args.task, "--limit", str(args.num_prompts), "--ignore-eos", "--json"]
    options += ["--concurrency", str(args.concurrency), "--max-tokens", str(args.max_tokens)]
    done = subprocess.run([*_OURS, *options], capture_output=True, text=True, check=True)
    [row] = json.loads(done.stdout.splitlines()[-1])["rows"]
    return {
        "output_tokens_per_s": row["output_tokens_per_s"],
        "acceptance_length": row["acceptance_length"],
        "tpot_mean_ms": 1e3 * row["tpot_s"]["mean"],
        "ttft_mean_ms": 1e3 * row["ttft_s"]["mean"],
    }


def theirs(url: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    prompts = folder / "prompts.jsonl"
    lines = [json.dumps({"prompt": p.turns[0]}) + "\n" for p in load_task(args.task, args.num_prompts)]
    prompts.write_text("".join(lines))
    options = ["--backend", "openai-chat", "--base-url", url, "--endpoint", "/v1/chat/completions"]
    options += ["--model", str(TARGET), "--dataset-name", "custom", "--dataset-path", str(prompts)]
    options += ["--skip-chat-template", "--disable-shuffle", "--num-prompts", str(args.num_prompts)]
    options += ["--custom-output-len", str(args.max_tokens), "--max-concurrency", str(args.concurrency)]
    options += ["--ignore-eos", "--temperature", "0", "--disable-tqdm", "--save-result"]
    options += ["--result-dir", str(folder), "--result-filename", "result.json"]
    command = [str(PEERS / "vllm/bin/python"), "-c", _THEIRS, *options]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads((folder / "result.json").read_text())
    return {
        "output_tokens_per_s": found["output_throughput"],
        "acceptance_length": found.get("spec_decode_acceptance_length"),
        "tpot_mean_ms": found["mean_tpot_ms"],
        "ttft_mean_ms": found["mean_ttft_ms"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--system", default="vLLM DFlash", help="part of its label in compare.py")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--task", default="gsm8k")
    parser.add_argument("--num-prompts", type=int, default=16)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    url = f"http://127.0.0.1:{port_of(chosen(args.system)[0])}"
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "vllm_bench_serve": []}
    with TemporaryDirectory() as folder:
        ours(url, args)
        for _ in range(args.runs):
            found["vllm_bench_serve"].append(theirs(url, args, Path(folder)))
            found["ours"].append(ours(url, args))
            print(found["vllm_bench_serve"][-1], found["ours"][-1], flush=True)
    medians = {
        who: {name: median(run[name] for run in runs) for name in runs[0] if runs[0][name] is not None}
        for who, runs in found.items()
    }
    ratios = {
        name: value / medians["vllm_bench_serve"][name]
        for name, value in medians["ours"].items()
        if name in medians["vllm_bench_serve"]
    }
    settings = {name: str(value) for name, value in vars(args).items() if name != "out"}
    result = {"settings": settings, "runs": found, "medians": medians, "ours_over_theirs": ratios}
    args.out.write_text(json.dumps(result | {"provenance": collect_provenance()}, indent=1) + "\n")
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
