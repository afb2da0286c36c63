"""Benchmark clients that were written elsewhere, run unchanged against a server process: dflash and guidellm.

    python benchmarks/public_clients.py --bin FOLDER --out benchmarks/results/public_clients.json

FOLDER holds the commands of an environment of their own (``pip install guidellm datasets requests``, and
``pip install --no-deps dflash==0.1.0``). Both ask GSM8K questions, with the server's own bound on the answers' length.
Also told: how long the server takes to start, first as on a machine where it never ran, whose C++ is still to be
compiled, then once more.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from served_process import start_server

from flashdraft.bench.tasks import load_task
from flashdraft.checkpoint.load import load_tokenizer
from flashdraft.provenance import collect_provenance

LOADS = ((1, 6), (8, 16), (32, 32))  # requests under way, requests in all
NUM_TOKENS = 48
NAME = "smollm2"
SUFFIX = "\nPlease reason step by step, and put your final answer within \\boxed{}."
DATA_CARD = "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: test\n    path: test.jsonl\n---\n"
OFFLINE = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def save_inputs(folder: Path) -> None:
    """The questions as each client wants them, and the tokenizer for guidellm's counts."""
    questions = [prompt.turns[0].removesuffix(SUFFIX) for prompt in load_task("gsm8k", 128)]
    data = folder / "openai" / "gsm8k"
    data.mkdir(parents=True)
    (data / "README.md").write_text(DATA_CARD)
    (data / "test.jsonl").write_text("".join(json.dumps({"question": one}) + "\n" for one in questions))
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": one}) + "\n" for one in questions))
    load_tokenizer().save_pretrained(folder / "tokenizer")


def run(command: list[str], folder: Path) -> str:
    """What it prints; its error when it fails."""
    done = subprocess.run(command, cwd=folder, env=OFFLINE, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def ask_dflash(commands: Path, folder: Path, url: str, streams: int, count: int) -> dict[str, Any]:
    """``dflash benchmark openai``: its own figures."""
    command = [str(commands / "dflash"), "benchmark", "openai", "--model", NAME, "--dataset", "gsm8k"]
    command += ["--num-prompts", str(count), "--concurrency", str(streams), "--base-url", url]
    told = run([*command, "--max-new-tokens", str(NUM_TOKENS)], folder)
    names = {"Throughput": "tokens_per_second", "Accept length": "acceptance_length", "Latency": "seconds"}
    found = {names[k]: float(v) for k, v in re.findall(r"^(\w[\w ]+): +([\d.]+)", told, re.M) if k in names}
    return {"client": "dflash", "concurrency": streams, "requests": count, **found}


def ask_guidellm(commands: Path, folder: Path, url: str, streams: int, count: int) -> dict[str, Any]:
    """``guidellm run``: its own figures."""
    out = folder / f"guidellm-{streams}.json"
    command = [str(commands / "guidellm"), "run", "--backend", f"kind=openai_http,target={url},model={NAME}"]
    command += ["--profile", f"kind=concurrent,streams={streams}", "--disable-progress"]
    command += ["--constraint", f"kind=max_requests,count={count}", "--output", f"kind=json,path={out}"]
    command += ["--tokenizer", f"kind=huggingface_auto,model={folder / 'tokenizer'}"]
    run([*command, "--data", f"kind=json_file,path={folder / 'prompts.jsonl'}"], folder)
    metrics = json.loads(out.read_text())["benchmarks"][0]["metrics"]

    def mean(name: str) -> float:
        return round(metrics[name]["successful"]["mean"], 2)

    return {
        "client": "guidellm",
        "concurrency": streams,
        "requests": metrics["request_totals"]["successful"],
        "failed": metrics["request_totals"]["errored"],
        "tokens_per_second": mean("output_tokens_per_second"),
        "ttft_ms": mean("time_to_first_token_ms"),
        "tpot_ms": mean("time_per_output_token_ms"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bin", type=Path, required=True, help="where the commands dflash and guidellm are")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    commands, rows = args.bin.resolve(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_inputs(folder)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # the server's: empty at first
        flags = ["--served-model-name", NAME, "--max-answer-tokens", str(NUM_TOKENS)]
        with start_server(flags) as server:
            for ask in (ask_dflash, ask_guidellm):
                for streams, count in LOADS:
                    rows.append(ask(commands, folder, server.url, streams, count))
                    print(json.dumps(rows[-1]), flush=True)
        with start_server(flags) as again:
            starts = [round(server.started_s, 1), round(again.started_s, 1)]
    figures = {"rows": rows, "answer_tokens": NUM_TOKENS, "started_s": starts}
    print(json.dumps(starts))
    if args.out:
        args.out.write_text(json.dumps(figures | {"provenance": collect_provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
