"""Where an engine step's time goes on this CPU.

    python benchmarks/step_parts.py --out benchmarks/results/step_parts.json
    python benchmarks/step_parts.py --draft embedded other-drafter --blocks 8 16

The embedded pair with real prompts, bfloat16, greedy; one engine, whose requests use blocks of 1, 8 and 16, of several
requests at once. Parts are the C++ calls: the rest of a step is the host's.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import torch

from flashdraft.admission import BlockSize
from flashdraft.bench.config import BenchConfig
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.llm import LLM
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams

PARTS = ("target layers and head", "draft context", "draft layers and head", "host")


class Clock:
    """Shortest and mean seconds of each part of a step; its parts are the C++ calls."""

    def __init__(self, engine: Engine) -> None:
        self.now: Counter[str] = Counter()
        self.is_drafting = False
        assert engine.runner.drafter is not None
        drafter = engine.runner.drafter
        drafter.propose = self._drafting(drafter.propose)  # type: ignore[method-assign]
        parts = {
            "decoder_forward": "layers",
            "decoder_greedy": "layers and head",
            "decoder_context": "context",
            "linear": "head",
            "linear_argmax": "head",
            "decoder_draft": "layers and head",
        }
        for fast in (engine.target, drafter.drafter.native):  # type: ignore[attr-defined]
            library = fast.native._library
            timed = {name: self._timed(getattr(library, name), part) for name, part in parts.items()}
            fast.native._library = SimpleNamespace(**timed)

    def _drafting(self, propose: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            self.is_drafting = True
            drafts = propose(*args)
            self.is_drafting = False
            return drafts

        return wrapped

    def _timed(self, function: Callable[..., None], part: str) -> Callable[..., None]:
        def timed(*args: Any) -> None:
            started = perf_counter()
            function(*args)
            whose = "draft" if self.is_drafting or part == "context" else "target"
            self.now[f"{whose} {part}"] += perf_counter() - started

        return timed


def measure(
    engine: Engine, clock: Clock, prompts: list[list[int]], block_size: BlockSize, num_steps: int
) -> dict[str, Any]:
    """Milliseconds of each part, the median of ``num_steps`` steps of all ``prompts`` at once."""
    params = SamplingParams(temperature=0, max_tokens=600, ignore_eos=True)
    names = [str(i) for i in range(len(prompts))]
    for name, prompt in zip(names, prompts, strict=True):
        engine.add_request(name, prompt, params, block_size)
    while any(request.is_prefilling for request in engine.requests.values()):
        engine.step()
    for _ in range(3):
        engine.step()
    steps, num_tokens = [], 0
    for _ in range(num_steps):
        clock.now.clear()
        started = perf_counter()
        num_tokens += sum(len(output.token_ids) for output in engine.step())
        step_s = perf_counter() - started
        steps.append({**clock.now, "host": step_s - clock.now.total(), "step": step_s})
    for name in names:
        engine.abort(name)
    engine.step()
    ms = {part: 1e3 * median(step.get(part, 0.0) for step in steps) for part in ("step", *PARTS)}
    return {"tokens_per_step": num_tokens / num_steps, "ms": ms}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--blocks", nargs="+", default=["1", "8", "16"])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--draft", nargs="+", default=["embedded"], help="drafters, measured in turn")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    llms = [LLM(draft=draft) for draft in args.draft]
    engines = [Engine(llm.target, llm.drafter, EngineConfig(prefix_caching=False)) for llm in llms]
    clocks = [Clock(engine) for engine in engines]
    asked = BenchConfig(mixed=True, limit=8).prompts()["mixed"]
    prompts = [llms[0].chat_token_ids([{"role": "user", "content": one.turns[0]}]) for one in asked]
    rows = []
    print(f"{torch.get_num_threads()} threads; milliseconds, median of the steps")
    print(
        f"{'requests':>8} {'block':>5} {'step':>7} {'tokens':>6}" + "".join(f"{part:>24}" for part in PARTS)
    )
    for num, block in product(args.requests, args.blocks):
        size = block if block == "auto" else int(block)
        for draft, engine, clock in zip(args.draft, engines, clocks, strict=True):
            row = measure(engine, clock, prompts[:num], size, max(args.steps // (1 + num // 8), 4))
            rows.append({"requests": num, "block": block, "draft": draft, **row})
            told = "".join(f"{row['ms'][part]:24.2f}" for part in PARTS)
            name = f"  {draft}" if len(llms) > 1 else ""
            print(
                f"{num:8} {block:>5} {row['ms']['step']:7.1f} {row['tokens_per_step']:6.1f}{told}{name}",
                flush=True,
            )
    if args.out:
        args.out.write_text(json.dumps({"rows": rows, "provenance": collect_provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
