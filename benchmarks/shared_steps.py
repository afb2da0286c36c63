"""What an answer costs beside another client's streams, in processor time: what else the machine does changes it less.

    OMP_NUM_THREADS=1 python benchmarks/shared_steps.py --out benchmarks/results/shared_steps.json

The embedded pair in this process. One client asks for 8 tokens again and again, first alone, then while another has 12
sampled streams with log-probabilities. An answer's time is that of all steps until it is there and half of the step
before: whoever asks waits for the step that runs.
"""

import argparse
import json
from pathlib import Path
from statistics import median
from time import thread_time

from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.llm import LLM
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams

SHORT = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
STREAM = SamplingParams(max_tokens=2000, temperature=0.2, top_p=0.9, logprobs=5, ignore_eos=True)
NUM_STREAMS = 12
BETWEEN_S = 0.1  # of the other client alone between two questions


def answer_s(engine: Engine, prompt: list[int]) -> float:
    """Processor seconds of one short answer."""
    engine.add_request("short", prompt, SHORT, client="one")
    started = thread_time()
    while "short" in engine.requests:
        engine.step()
    return thread_time() - started


def last_step_s(engine: Engine) -> float:
    """Processor seconds of the last of some steps without the short answer."""
    started = ended = thread_time()
    before = started
    while ended - started < BETWEEN_S:
        before = ended
        engine.step()
        ended = thread_time()
    return ended - before


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--asks", type=int, default=10)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    llm = LLM()
    config = EngineConfig(max_running=16)
    engine = Engine(llm.target, llm.drafter, config, llm.eos_token_ids, llm.tokenizer)
    prompt, other = llm.tokenizer.encode("The capital of France is"), llm.tokenizer.encode("a")
    for _ in range(4):  # the first take longer
        answer_s(engine, prompt)
    alone = median(answer_s(engine, prompt) for _ in range(args.asks))
    for idx in range(NUM_STREAMS):
        engine.add_request(f"stream {idx}", other, STREAM, client="many")
    answer_s(engine, prompt)
    beside = median(last_step_s(engine) / 2 + answer_s(engine, prompt) for _ in range(args.asks))
    figures = {
        "alone_ms": round(1000 * alone, 1),
        "beside_streams_ms": round(1000 * beside, 1),
        "ratio": round(beside / alone, 2),
    }
    print(json.dumps(figures))
    if args.out:
        args.out.write_text(json.dumps(figures | {"provenance": collect_provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
