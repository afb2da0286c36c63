"""What a path of the C++ layers makes of `auto`: plain decoding and `auto` in turn, with another engine beside them.

    FLASHDRAFT_CPU_PATH=avx2 python benchmarks/cpu_paths.py --prompts 100 --max-tokens 64
    FLASHDRAFT_CPU_PATH=avx2 python benchmarks/cpu_paths.py --prompts 9 --threads 2 --beside "./llama_decode F 2 64"

The embedded pair answers the package's sample prompts greedily, one at a time. One thread is timed by its own time, for
the engine's measurements of its steps too, which leaves a busy machine's other work out; several by the clock, on a
quiet machine. ``--beside``: a command that prints its tokens a second last (peers/llama_decode.cpp), run behind every
fifth prompt.
"""

import argparse
import shlex
import subprocess
from itertools import islice
from statistics import median
from time import perf_counter, thread_time

import torch

from flashdraft.data.prompt_files import SAMPLE, read_rows
from flashdraft.engine import engine as engine_file
from flashdraft.engine import step_timing
from flashdraft.engine.engine import Engine
from flashdraft.llm import LLM
from flashdraft.native.library import build_name
from flashdraft.sampling_params import SamplingParams

BESIDE_EVERY = 5  # prompts


def answer(engine: Engine, token_ids: list[int], params: SamplingParams) -> tuple[list[int], float]:
    """Tokens and seconds."""
    clock = step_timing.perf_counter
    started = clock()
    engine.add_request("one", token_ids, params)
    tokens = [token for output in engine.run() for token in output.token_ids]
    return tokens, clock() - started


def beside(command: str) -> float:
    """Tokens a second that another engine says."""
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--beside", help="command of another engine")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = thread_time if args.threads == 1 else perf_counter
    step_timing.perf_counter = engine_file.perf_counter = clock  # type: ignore[attr-defined]
    llm = LLM("embedded")
    plain = Engine(llm.target, None, llm.engine_config, llm.eos_token_ids, llm.tokenizer)
    engines, seconds, num_tokens, num_same = (plain, llm.engine), [0.0, 0.0], 0, 0
    others = []
    params = SamplingParams(temperature=0.0, max_tokens=args.max_tokens)
    for idx, row in enumerate(islice(read_rows(SAMPLE), args.prompts + 1)):
        assert isinstance(row.values, dict)
        token_ids = llm.chat_token_ids([{"role": "user", "content": row.values["prompt"]}])
        answers = [answer(engine, token_ids, params) for engine in engines]
        if idx == 0:
            continue  # first calls pay for memory, and `auto` measures its steps
        if args.beside and idx % BESIDE_EVERY == 0:
            others.append(beside(args.beside))
        seconds = [total + one[1] for total, one in zip(seconds, answers, strict=True)]
        num_same += answers[0][0] == answers[1][0]
        num_tokens += len(answers[0][0])
    rates = [num_tokens / one for one in seconds]
    print(
        f"{build_name()}, {args.threads} threads: plain {rates[0]:.1f} tokens/s, auto {rates[1]:.1f},",
        end=" ",
    )
    print(f"{rates[1] / rates[0]:.2f}x; the same tokens in {num_same} of {args.prompts} answers")
    if others:
        other = median(others)
        print(
            f"beside: {other:.1f} tokens/s in the middle of {len(others)}; plain is {rates[0] / other:.2f} of it"
        )


if __name__ == "__main__":
    main()
