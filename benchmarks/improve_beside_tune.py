"""`flashdraft improve` beside `flashdraft tune`: one log, equal minutes at the same time, served on what was held back.

    flashdraft serve --log-requests requests.jsonl
    python benchmarks/improve_beside_tune.py --from requests.jsonl --work WORK --out FILE --flags --max-minutes 9

Both run as processes side by side, so that they share whatever else the machine does; the processor time of each is in
the file. The requests that both held back are the same, and are served in blocks of the drafter's size.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from flashdraft.checkpoint.load import EMBEDDED, eos_token_ids, load_drafter, load_tokenizer
from flashdraft.data.request_log import read_requests
from flashdraft.intervals import ratio_interval
from flashdraft.llm import LLM
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams
from flashdraft.train.tune import divide
from flashdraft.train.tune_config import TuneConfig

WAYS = ("tune", "improve")


def run_both(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What each way says of itself, with its processor seconds."""
    started = {}
    for way in WAYS:
        command = [sys.executable, "-m", "flashdraft", way, *args.flags]
        command += ["--from", str(args.requests), "--out", str(args.work / way), "--dtype", "bfloat16"]
        log = (args.work / f"{way}.log").open("w")
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        started[process.pid] = way
    found = {}
    while started:
        pid, status, usage = os.wait4(-1, 0)
        way = started.pop(pid)
        if os.waitstatus_to_exitcode(status) not in (0, 1):  # 1: not better
            raise SystemExit((args.work / f"{way}.log").read_text())
        found[way] = json.loads((args.work / way / "tune.json").read_text())
        found[way]["processor_s"] = round(usage.ru_utime + usage.ru_stime, 1)
    return found


def served(draft: str, prompts: list[list[int]], max_tokens: int) -> list[tuple[int, int]]:
    """Tokens gained and rounds of each held-back request."""
    llm = LLM(draft=draft, block_size=load_drafter(draft).config.block_size)
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params)
    return [(one.metrics.num_output_tokens - 1, one.metrics.num_rounds) for one in outputs]


def length(answers: list[tuple[int, int]]) -> float:
    return sum(tokens for tokens, _ in answers) / sum(rounds for _, rounds in answers)


def main() -> None:
    """Run both, serve what was held back, and write it down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", dest="requests", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for both")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--flags", nargs=argparse.REMAINDER, default=[], help="options of both, to the line's end"
    )
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    found = run_both(args)
    log = read_requests(args.requests, load_tokenizer(), eos_token_ids())
    held_back = divide(log.answered, TuneConfig(**found["tune"]["config"]))[1]
    prompts = [document.prompt_token_ids for document in held_back]
    drafters = {"before": EMBEDDED} | {way: found[way]["drafter"] for way in WAYS if found[way]["drafter"]}
    answers = {name: served(draft, prompts, args.max_tokens) for name, draft in drafters.items()}
    ratios = {
        f"{name} / {base}": ratio_interval(range(len(prompts)), answers[name], answers[base])
        for name, base in (("tune", "before"), ("improve", "before"), ("improve", "tune"))
        if name in answers and base in answers
    }
    lengths = {name: round(length(rounds), 4) for name, rounds in answers.items()}
    print(json.dumps({"served": lengths, "ratios": ratios}, indent=1))
    document = {"served": lengths, "ratios": ratios, "num_held_back": len(prompts), **found}
    document["provenance"] = collect_provenance()
    args.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
