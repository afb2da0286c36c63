"""What a path of the C++ layers makes of `auto`: plain decoding and `auto` in turn, with another engine beside them.

    FLASHDRAFT_CPU_PATH=avx2 python benchmarks/cpu_paths.py --prompts 100 --max-tokens 64
    FLASHDRAFT_CPU_PATH=avx2 python benchmarks/cpu_paths.py --out benchmarks/results/cpu_paths/avx2.json
    FLASHDRAFT_CPU_PATH=avx2 python benchmarks/cpu_paths.py --tasks --max-tokens 128 --out runs/avx2_tasks.json
    FLASHDRAFT_CPU_PATH=avx2 python benchmarks/cpu_paths.py --prompts 9 --threads 2 --beside "./llama_decode F 2 64"

The embedded pair answers the package's sample prompts greedily, one at a time; ``--tasks``: those of the five tasks, in
turn. One thread is timed by its own time, for the engine's measurements of its steps too, which leaves a busy
machine's other work out; several by the clock, on a quiet machine. ``--out``: each answer is written there, and a run
that was stopped goes on behind the last one.
``--beside``: a command that prints its tokens a second last (peers/llama_decode.cpp), run behind every fifth prompt;
with ``--out`` its rates are kept beside the answers'.
"""

import argparse
import json
import shlex
import subprocess
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time
from typing import Any

import torch

from flashdraft.bench.tasks import TASKS, load_task
from flashdraft.data.prompt_files import SAMPLE, read_rows
from flashdraft.engine import engine as engine_file
from flashdraft.engine import step_timing
from flashdraft.engine.engine import Engine
from flashdraft.llm import LLM
from flashdraft.native.library import build_name
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams
from flashdraft.whole_files import write_whole

BESIDE_EVERY = 5  # prompts


def answer(engine: Engine, token_ids: list[int], params: SamplingParams) -> tuple[list[int], float]:
    """Tokens and seconds."""
    clock = step_timing.perf_counter
    started = clock()
    engine.add_request("one", token_ids, params)
    tokens = [token for output in engine.run() for token in output.token_ids]
    return tokens, clock() - started


def questions(tasks: bool, count: int) -> list[str]:
    """``count`` sample prompts, or of the five tasks' in turn, and one before them that warms up."""
    if not tasks:
        rows = [row.values for row in islice(read_rows(SAMPLE), count + 1)]
        return [values["prompt"] for values in rows if isinstance(values, dict)]
    each = [load_task(name, -(-(count + 1) // len(TASKS))) for name in TASKS]
    return [prompt.turns[0] for prompts in zip(*each, strict=True) for prompt in prompts][: count + 1]


def beside(command: str) -> float:
    """Tokens a second that another engine says."""
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def kept(out: Path | None, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The answers of an earlier run of the same build and settings."""
    if out is None or not out.exists():
        return []
    said = json.loads(out.read_text())
    if said["asked"] != asked:
        raise SystemExit(f"{out} is of {said['asked']}, this run of {asked}: name another file")
    answers: list[dict[str, Any]] = said["answers"]
    return answers


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--tasks", action="store_true", help="prompts of the five tasks")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file of the answers' times, to go on from")
    parser.add_argument("--beside", help="command of another engine")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = thread_time if args.threads == 1 else perf_counter
    step_timing.perf_counter = engine_file.perf_counter = clock  # type: ignore[attr-defined]
    llm = LLM("embedded")
    plain = Engine(llm.target, None, llm.engine_config, llm.eos_token_ids, llm.tokenizer)
    engines = (plain, llm.engine)
    asked = {"build": build_name(), "threads": args.threads, "max_tokens": args.max_tokens}
    asked |= {"prompts": "tasks"} if args.tasks else {}
    answers, provenance = kept(args.out, asked), collect_provenance()
    params = SamplingParams(temperature=0.0, max_tokens=args.max_tokens)
    for idx, question in enumerate(questions(args.tasks, args.prompts)):
        if 0 < idx <= len(answers):
            continue
        token_ids = llm.chat_token_ids([{"role": "user", "content": question}])
        (tokens, plain_s), (of_auto, auto_s) = (answer(engine, token_ids, params) for engine in engines)
        if idx == 0:
            continue  # first calls pay for memory, and `auto` measures its steps
        one: dict[str, Any] = {
            "tokens": len(tokens),
            "same": tokens == of_auto,
            "plain_s": plain_s,
            "auto_s": auto_s,
        }
        if args.beside and idx % BESIDE_EVERY == 0:
            one["beside"] = beside(args.beside)
        answers.append(one)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            said = {"asked": asked, "provenance": provenance, "answers": answers}
            write_whole(args.out, json.dumps(said, indent=1))
    tell(asked, answers)


def tell(asked: dict[str, Any], answers: list[dict[str, Any]]) -> None:
    """Print what came of it."""
    num_tokens, num_same = (sum(one[name] for one in answers) for name in ("tokens", "same"))
    plain, auto = (num_tokens / sum(one[name] for one in answers) for name in ("plain_s", "auto_s"))
    print(
        f"{asked['build']}, {asked['threads']} threads: plain {plain:.1f} tokens/s, auto {auto:.1f},", end=" "
    )
    print(f"{auto / plain:.2f}x; the same tokens in {num_same} of {len(answers)} answers")
    if others := [one["beside"] for one in answers if "beside" in one]:
        other = median(others)
        print(
            f"beside: {other:.1f} tokens/s in the middle of {len(others)}; plain is {plain / other:.2f} of it"
        )


if __name__ == "__main__":
    main()
