"""The controller against fixed blocks: tokens for each second of one thread's own time, by task and concurrency.

    OMP_NUM_THREADS=1 python benchmarks/controller.py --out benchmarks/results/controller.json

Greedy, the embedded pair in bfloat16, all methods in turn on the same prompts, as in ``flashdraft bench``. Engine and
controller read the thread's time instead of the clock, so that it can be measured on a machine that others use too.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from time import thread_time

import torch

from flashdraft.bench import closed_loop
from flashdraft.bench.config import BenchConfig
from flashdraft.bench.methods import choose_methods
from flashdraft.bench.offline import OfflineBench
from flashdraft.bench.tables import method_label
from flashdraft.engine import engine, step_timing
from flashdraft.llm import LLM
from flashdraft.provenance import collect_provenance


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--concurrency", default="1,8,32")
    parser.add_argument(
        "--limit", type=int, default=2, help="prompts of each task; at least as many as are under way"
    )
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--mixed", action="store_true", help="the tasks' prompts in turns, as one task")
    parser.add_argument(
        "--draft", default="embedded", help="another drafter of the embedded target: mtp, a folder"
    )
    parser.add_argument("--block-sizes", type=int, nargs="+", default=[16, 8])
    parser.add_argument("--explain", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for module in (closed_loop, engine, step_timing):
        module.perf_counter = thread_time  # type: ignore[attr-defined]
    config = BenchConfig(
        concurrency=args.concurrency, limit=args.limit, max_tokens=args.max_tokens, mixed=args.mixed
    )
    llm = LLM(draft=args.draft)
    assert llm.drafter is not None
    methods = choose_methods(["dflash", "auto"], args.block_sizes, {"dflash": llm.drafter})
    bench = OfflineBench(llm, methods, config.params, config.concurrencies)
    measurements = []
    for chunk in bench.chunks(config.prompts(), config.limit):
        measurements += bench.measure(chunk)
    tokens: dict[tuple[int, str, str], int] = defaultdict(int)
    seconds: dict[tuple[int, str, str], float] = defaultdict(float)
    for one in measurements:
        for task in {one.task, "all"}:
            key = one.concurrency, task, method_label(one.method, one.block_size)
            tokens[key] += one.metrics.num_output_tokens
            seconds[key] += one.wall_s
    labels = [method_label(method.name, method.block_size) for method in methods]
    rows = []
    for concurrency, task in sorted({key[:2] for key in tokens}):
        rates = {
            label: tokens[concurrency, task, label] / seconds[concurrency, task, label] for label in labels
        }
        fixed = max(rate for label, rate in rates.items() if label != labels[-1])
        ratio = rates[labels[-1]] / fixed
        rows.append({"concurrency": concurrency, "task": task, "rates": rates, "auto_to_best": ratio})
        told = "".join(f"{label} {rate:7.1f}  " for label, rate in rates.items())
        print(f"{concurrency:3} {task:10} {told} auto / best fixed {ratio:.3f}", flush=True)
    if args.explain:
        print(bench.explain(measurements))
    if args.out:
        args.out.write_text(json.dumps({"rows": rows, "provenance": collect_provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
