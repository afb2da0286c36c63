"""Plain decoding, fixed blocks and the controller's choice, in turn, at several concurrencies and on every task.

    python benchmarks/controller.py --limit 32 --out benchmarks/results/controller.json

A batch is ``concurrency`` prompts of one task, sent at once; every method answers it before the next batch, in an
order that rotates. Tokens a second are end to end, prefill included; the controller measures the machine before.
With --simulate-acceptance dice accept, at a given acceptance length of whole blocks or at rates by position: what a
better drafter would be worth on this machine. The answers then mean nothing.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from time import perf_counter
from typing import Any

from flashdraft.bench.tasks import TASKS, load_task
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.llm import LLM
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.controller import BlockSize
from flashdraft.spec_decode.metrics import RequestMetrics
from flashdraft.spec_decode.simulated import SimulatedAcceptance


def answer(
    engine: Engine, prompts: list[list[int]], params: SamplingParams, block_size: BlockSize
) -> tuple[float, RequestMetrics]:
    """Seconds for all prompts at once, and what it took."""
    metrics = RequestMetrics(num_requests=0)
    started = perf_counter()
    for idx, prompt in enumerate(prompts):
        engine.add_request(str(idx), prompt, params, block_size)
    for output in engine.run():
        if output.finished:
            metrics.add(output.metrics)
    return perf_counter() - started, metrics


def simulated_acceptance(said: str | None, block_size: int) -> SimulatedAcceptance | None:
    """``3.5``: an acceptance length; ``0.8,0.7``: rates by position."""
    if said is None:
        return None
    if "," in said:
        return SimulatedAcceptance([float(rate) for rate in said.split(",")])
    return SimulatedAcceptance.of_length(float(said), block_size)


def measure(args: argparse.Namespace, llm: LLM) -> list[dict[str, Any]]:
    """One row for each concurrency, task and method."""
    config = EngineConfig(max_running=max(args.concurrency), prefix_caching=False)
    simulated = simulated_acceptance(args.simulate_acceptance, llm.max_block_size)
    engine = Engine(llm.target, llm.drafter, config, llm.eos_token_ids, llm.tokenizer, simulated=simulated)
    engine.control.calibrate()
    params = SamplingParams(
        temperature=args.temperature, max_tokens=args.max_tokens, seed=0, ignore_eos=simulated is not None
    )
    methods: list[BlockSize] = [1, *args.block_sizes, "auto"]
    total_s: defaultdict[tuple[int, str, BlockSize], float] = defaultdict(float)
    costs: dict[tuple[int, str, BlockSize], RequestMetrics] = {}
    rotation = 0
    for concurrency in args.concurrency:
        for task in args.tasks:
            questions = [prompt.turns[0] for prompt in load_task(task, args.limit)]
            ids = [llm.chat_token_ids([{"role": "user", "content": text}]) for text in questions]
            for first in range(0, len(ids), concurrency):
                batch = [ids[(first + k) % len(ids)] for k in range(concurrency)]
                rotation += 1
                for method in methods[rotation % len(methods) :] + methods[: rotation % len(methods)]:
                    seconds, metrics = answer(engine, batch, params, method)
                    key = concurrency, task, method
                    total_s[key] += seconds
                    costs.setdefault(key, RequestMetrics(num_requests=0)).add(metrics)
            print_task(concurrency, task, methods, total_s, costs)
    return [
        {
            "concurrency": concurrency,
            "task": task,
            "method": "AR" if method == 1 else f"B{method}" if method != "auto" else "auto",
            "output_tokens_per_s": metrics.num_output_tokens / total_s[concurrency, task, method],
            "acceptance_length": metrics.acceptance_length,
            "verified_histogram": metrics.verified_histogram,
            "num_requests": metrics.num_requests,
        }
        for (concurrency, task, method), metrics in costs.items()
    ]


def print_task(
    concurrency: int,
    task: str,
    methods: list[BlockSize],
    total_s: dict[tuple[int, str, BlockSize], float],
    costs: dict[tuple[int, str, BlockSize], RequestMetrics],
) -> None:
    speeds = {
        m: costs[concurrency, task, m].num_output_tokens / total_s[concurrency, task, m] for m in methods
    }
    best = max(speed for method, speed in speeds.items() if method != "auto")
    shown = "  ".join(f"{method} {speed:.1f}" for method, speed in speeds.items())
    print(
        f"c{concurrency} {task}: tokens/s by block: {shown}; auto is {speeds['auto'] / best:.3f} of the best fixed"
    )
    print(f"    verified by auto: {costs[concurrency, task, 'auto'].verified_histogram}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draft", default="embedded")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--block-sizes", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--limit", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--simulate-acceptance", metavar="LENGTH|RATES")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    llm = LLM(draft=args.draft, dtype=args.dtype)
    rows = measure(args, llm)
    if args.out:
        settings = {name: str(value) for name, value in vars(args).items()}
        document = {"rows": rows, "settings": settings, "provenance": collect_provenance()}
        args.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
