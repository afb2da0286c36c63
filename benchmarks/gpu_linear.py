"""Which tiling of ops/triton/linear.py is fastest, beside cuBLAS, at the shapes of Qwen3.5-27B and of SmolLM2-135M.

One JSON line a shape, count of tokens and kernel, the fastest tilings first: milliseconds, TB of weights a second, and
whether every row has the very bits that the kernel for few tokens gives it alone. ``unsplit`` is cuBLAS as
cuda/products.py calls it; its bits are compared at counts in between, too.
"""

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from flashdraft.cuda.products import unsplit_sums
from flashdraft.ops.triton.linear import Tiling, few_tokens_linear

SHAPES = {  # outputs, inputs
    "gate_up": (34816, 5120),
    "down": (5120, 17408),
    "delta_in": (16480, 5120),
    "delta_out": (5120, 6144),
    "qkv": (14336, 5120),
    "head": (248320, 5120),
    "small_qkv": (960, 576),
    "small_o": (576, 576),
    "small_gate_up": (3072, 576),
    "small_down": (576, 1536),
    "small_head": (49152, 576),
}
TOKENS = (1, 16, 32, 64, 128, 256, 512)
BETWEEN = (17, 33, 40, 65, 72, 100, 120, 200, 300, 400, 1000, 1024, 2048, 3000, 4096)
FEW = 64  # tokens; the kernel is not timed with more
TILINGS = [
    Tiling(*one)
    for one in (
        (64, 64, 3, 4), (64, 64, 6, 4), (64, 128, 4, 4), (64, 256, 4, 4), (128, 64, 3, 8), (128, 64, 4, 4),
        (128, 128, 3, 4), (128, 128, 4, 8),
    )
]  # fmt: skip


def compile_some(jobs):
    """In a process of its own: the cache on disk is what is wanted."""
    for tokens, tiling in jobs:
        x = torch.zeros(tokens, 1024, dtype=torch.bfloat16, device="cuda")
        weight = torch.zeros(512, 1024, dtype=torch.bfloat16, device="cuda")
        with suppress(Exception):  # what does not fit the card is told when it is timed
            few_tokens_linear(x, weight, tiling)


def seconds_of(work, repeats=4):
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return sorted(times)[len(times) // 2]


class Shape:
    """One shape's weights, tokens, and what each row is alone."""

    def __init__(self, name, outputs, inputs):
        self.name = name
        copies = max(1, min(int(6e8 // (outputs * inputs * 2)), 40))
        self.weights = [
            torch.randn(outputs, inputs, dtype=torch.bfloat16, device="cuda") * 0.02 for _ in range(copies)
        ]
        self.x = torch.randn(max(BETWEEN), inputs, dtype=torch.bfloat16, device="cuda")
        alone = partial(few_tokens_linear, weight=self.weights[0], tiling=TILINGS[0])
        self.alone = torch.cat([alone(row) for row in self.x[:FEW].split(1)] + [alone(self.x[FEW:])])

    def line(self, tokens, by, product):
        """Rates of all the weights' products, and whether the first's bits are right."""
        x = self.x[:tokens]
        seconds = seconds_of(lambda: [product(x, weight) for weight in self.weights]) / len(self.weights)
        return {
            "shape": self.name, "tokens": tokens, "by": by, "ms": round(seconds * 1e3, 5),
            "tb_s": round(self.weights[0].nbytes / seconds / 1e12, 3), "same_bits": self.has_bits(tokens, product),
        }  # fmt: skip

    def has_bits(self, tokens, product):
        return torch.equal(product(self.x[:tokens], self.weights[0]), self.alone[:tokens])

    def by_libraries(self):
        for by, way in (("cublas", nullcontext), ("unsplit", partial(unsplit_sums, self.x))):
            with way():
                yield from (self.line(tokens, by, F.linear) for tokens in TOKENS)
        with unsplit_sums(self.x):
            wrong = [tokens for tokens in BETWEEN if not self.has_bits(tokens, F.linear)]
        yield {"shape": self.name, "by": "unsplit", "between": BETWEEN, "other_bits": wrong}

    def by_tilings(self, tokens):
        """The fastest first."""
        found = []
        for tiling in TILINGS:
            try:
                found.append(self.line(tokens, asdict(tiling), partial(few_tokens_linear, tiling=tiling)))
            except Exception as error:
                print("failed", tiling, repr(error)[:200], flush=True)
        return sorted(found, key=lambda one: one["ms"])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=110)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    born = time.time()
    jobs = [(tokens, tiling) for tokens in (16, 32, 64) for tiling in TILINGS]
    workers = min(os.cpu_count() or 1, 16)
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(compile_some, [jobs[i::workers] for i in range(workers)]))
    print(f"compiled {len(jobs)} in {time.time() - born:.0f} s", flush=True)
    with (args.out / "linear.jsonl").open("w") as file:
        for name in args.shapes:
            if time.time() - born > args.seconds:
                break
            shape = Shape(name, *SHAPES[name])
            found = list(shape.by_libraries())
            for tokens in (tokens for tokens in TOKENS if tokens <= FEW):
                found += shape.by_tilings(tokens)
            for line in found:
                print(json.dumps(line), file=file, flush=True)
            print(f"{name}: {time.time() - born:.0f} s", flush=True)


if __name__ == "__main__":
    torch.multiprocessing.set_start_method("spawn")
    main()
