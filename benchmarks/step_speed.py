"""How long a forward of target and drafter takes on this CPU, in plain PyTorch and as one C++ call.

    OMP_NUM_THREADS=1 python benchmarks/step_speed.py --out benchmarks/results/step_speed.json

Embedded pair, 256 tokens of context, head included (the drafter's with argmax alone). Ways are measured in turn and
the shortest time counts, so that a busy machine disturbs all alike; with one thread it is the thread's own time. The
floor is the greater of weight bytes over the bandwidth and multiplications over the rate that this run measured.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter, thread_time

import torch

from flashdraft.batch import ForwardBatch
from flashdraft.checkpoint.load import load_drafter, load_target
from flashdraft.models.base import TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.native.accelerate import accelerate
from flashdraft.native.target import NativeTarget
from flashdraft.provenance import collect_provenance
from flashdraft.spec_decode.build import drafter_of
from flashdraft.spec_decode.dflash import DFlashDrafter

CONTEXT = 256
SHAPES = ((1, 1), (1, 8), (1, 16), (8, 1), (32, 1), (8, 16), (32, 16))  # requests x tokens of each
Step = Callable[[], object]


def target_step(target: TargetModel, rows: int, width: int) -> Step:
    """Verification of ``rows`` blocks of ``width`` tokens, their logits included."""
    cache = target.new_cache(rows, CONTEXT + width)
    for layer in cache.layers:
        layer.k.normal_()
        layer.v.normal_()
    positions = torch.arange(CONTEXT, CONTEXT + width).expand(rows, -1)
    batch = ForwardBatch(torch.full((rows, width), 7), positions, CONTEXT + width)
    layers = (1, 8, 14, 20, 27)
    return lambda: target.logits(target.forward(batch, cache, layers).hidden)


def draft_step(drafter: DFlashDrafter, rows: int, width: int) -> Step:
    """Drafts of ``rows`` blocks of ``width`` tokens."""
    cache = drafter.model.new_cache(rows, CONTEXT + width)
    for layer in cache.layers:
        layer.k.normal_()
        layer.v.normal_()
    positions = torch.arange(CONTEXT, CONTEXT + width).expand(rows, -1)
    blocks = drafter.blocks([7] * rows, width)
    return lambda: drafter.candidates(blocks, positions, CONTEXT + width, cache)


def shortest(steps: Sequence[Step], repeats: int) -> list[float]:
    """Seconds of each step, the least of ``repeats``, taken in turn."""
    clock = thread_time if torch.get_num_threads() == 1 else perf_counter
    best = [float("inf")] * len(steps)
    for _ in range(repeats):
        for idx, step in enumerate(steps):
            started = clock()
            step()
            best[idx] = min(best[idx], clock() - started)
    return best


def machine() -> dict[str, float]:
    """What this run's machine can do: read memory, multiply bfloat16 matrices."""
    memory, square = torch.ones(1 << 26), torch.ones(1024, 1024, dtype=torch.bfloat16)
    read_s, multiply_s = shortest([memory.sum, lambda: square @ square], 10)
    return {"read_gb_s": memory.nbytes / read_s / 1e9, "bf16_gflop_s": 2 * 1024**3 / multiply_s / 1e9}


def opened() -> dict[str, tuple[TargetModel, DFlashDrafter]]:
    """The pair in every way."""
    target = load_target()
    plain: DFlashModel = load_drafter(target=target)
    ways = {"PyTorch bfloat16": (target, DFlashDrafter(plain, target))}
    for name, quantization in (("bfloat16", None), ("int8", "int8"), ("int4", "int4")):
        target = accelerate(load_target(dtype="float32" if quantization else "bfloat16"), quantization)
        assert isinstance(target, NativeTarget), "this CPU has no fast path"
        drafter = drafter_of(load_drafter(target=target), target, quantization)
        assert isinstance(drafter, DFlashDrafter)
        ways[name] = (target, drafter)
    return ways


@torch.inference_mode()
def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    ways, can = opened(), machine()
    print(
        f"{torch.get_num_threads()} threads, {can['read_gb_s']:.0f} GB/s, {can['bf16_gflop_s']:.0f} GFLOP/s bfloat16"
    )
    print(f"{'step':>6} {'requests':>8} {'tokens':>6}" + "".join(f"{name:>24}" for name in ways) + "   (ms)")
    rows = []
    for kind in ("target", "draft"):
        for num_rows, width in SHAPES:
            if kind == "draft" and width == 1:
                continue
            steps = [
                target_step(target, num_rows, width)
                if kind == "target"
                else draft_step(drafter, num_rows, width)
                for target, drafter in ways.values()
            ]
            repeats = args.repeats if num_rows * width < 100 else max(args.repeats // 3, 1)
            seconds = dict(zip(ways, shortest(steps, repeats), strict=True))
            plain = seconds["PyTorch bfloat16"]
            told = "".join(f"{1e3 * s:14.2f} ({plain / s:5.2f}x)" for s in seconds.values())
            print(f"{kind:>6} {num_rows:8} {width:6}{told}", flush=True)
            rows.append({"step": kind, "requests": num_rows, "tokens": width, "seconds": seconds})
    if args.out:
        result = {"machine": can, "rows": rows, "provenance": collect_provenance()}
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
