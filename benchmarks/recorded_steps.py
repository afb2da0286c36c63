"""What an engine step takes on a GPU, and what the controller expects of it.

    python benchmarks/recorded_steps.py --out benchmarks/results/h100/recorded_steps.json

The embedded pair, bfloat16, greedy; prompts of random tokens, so that every step has one known shape: as many requests,
one block, about one context. Expected are the costs as measured at a start, before any step corrects them: draft and
verification with what the host is thought to add. The host's own part is all but drafting, verifying and choosing.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from flashdraft.admission import BlockSize
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.engine.step_timing import measure_costs
from flashdraft.llm import LLM
from flashdraft.models.base import TargetModel
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.drafter import Drafter

PARTS = ("observe", "draft", "verify", "choose", "host", "step")


class Steps:
    """Seconds of the parts of an engine's steps, as the controller hears of them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.seconds: tuple[float, ...] = ()
        self._learn = engine.control.learn
        engine.control.learn = self._heard  # type: ignore[method-assign]

    def _heard(self, *told: Any) -> None:
        self.seconds = told[-1]
        self._learn(*told)

    def run(self, prompts: Sequence[list[int]], block: BlockSize, num_steps: int) -> dict[str, Any]:
        """Medians of steps in which all of ``prompts`` decode."""
        params = SamplingParams(temperature=0, max_tokens=1000, ignore_eos=True)
        names = [str(idx) for idx in range(len(prompts))]
        for name, prompt in zip(names, prompts, strict=True):
            self.engine.add_request(name, prompt, params, block)
        while any(request.is_prefilling for request in self.engine.requests.values()):
            self.engine.step()
        for _ in range(4):  # chooses kernels, is recorded
            self.engine.step()
        parts: list[dict[str, float]] = []
        for _ in range(num_steps):
            started = perf_counter()
            self.engine.step()
            step_s = perf_counter() - started
            told = (*self.seconds, step_s - sum(self.seconds), step_s)
            parts.append(dict(zip(PARTS, told, strict=True)))
        context = max(request.num_committed for request in self.engine.requests.values())
        for name in names:
            self.engine.abort(name)
        self.engine.step()
        return {"context": context, "ms": {part: 1e3 * median(one[part] for one in parts) for part in PARTS}}


def measure(
    target: TargetModel, drafter: Drafter, counts: Sequence[int], contexts: Sequence[int], num_steps: int
) -> dict[str, Any]:
    """All shapes, and what they are expected to take."""
    config = EngineConfig(prefix_caching=False, max_running=max(counts))
    engine = Engine(target, drafter, replace(config, num_pages=max(counts) * 2048 // config.page_size))
    started = perf_counter()
    costs = measure_costs(engine.runner, drafter.max_block_size, max(counts))
    calibrated_s = perf_counter() - started
    steps, rng, rows = Steps(engine), random.Random(0), []
    blocks: list[BlockSize] = [1, 4, 8, 16, "auto"]
    print(f"measured in {calibrated_s:.1f} s; milliseconds, median of the steps")
    print("requests context block" + "".join(f"{part:>9}" for part in PARTS) + "   expected draft, verify")
    for context in contexts:
        for count in counts:
            prompts = [[rng.randrange(1000, 40000) for _ in range(context)] for _ in range(count)]
            for block in blocks:
                row = {"requests": count, "block": block, **steps.run(prompts, block, num_steps)}
                told = ""
                if isinstance(block, int):
                    draft_s = float(costs.draft_seconds(count, block)) if block > 1 else 0.0
                    verify_s = float(costs.verify(count, count * block))
                    row["expected_ms"] = {"draft": 1e3 * draft_s, "verify": 1e3 * verify_s}
                    told = f"   {1e3 * draft_s:8.2f} {1e3 * verify_s:8.2f}"
                print(
                    f"{count:8} {row['context']:7} {block:>5}"
                    + "".join(f"{row['ms'][part]:9.2f}" for part in PARTS)
                    + told,
                    flush=True,
                )
                rows.append(row)
    return {"calibrated_s": calibrated_s, "rows": rows}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--requests", type=int, nargs="+", default=[32, 16, 8, 4, 2, 1])
    parser.add_argument("--contexts", type=int, nargs="+", default=[600, 300, 140])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    llm = LLM(device=args.device)
    assert llm.drafter is not None
    found = measure(llm.target, llm.drafter, args.requests, args.contexts, args.steps)
    if args.out:
        provenance = collect_provenance(args.device)
        args.out.write_text(json.dumps({**found, "provenance": provenance}, indent=1) + "\n")


if __name__ == "__main__":
    main()
