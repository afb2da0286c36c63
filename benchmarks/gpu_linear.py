"""Which tiling of ops/triton/linear.py is fastest, beside cuBLAS, at the shapes of Qwen3.5-27B and of SmolLM2-135M.

One JSON line a shape, way to share out the inputs and count of tokens: the fastest tilings whose rows all have the
bits that they have alone, and those that do not; before them cuBLAS's lines, with the ways whose bits it has.
"""

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

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
FEW = [
    (64, 64, 6, 4), (64, 64, 3, 4), (64, 128, 4, 4), (64, 256, 4, 4), (128, 64, 3, 8), (128, 64, 4, 4),
    (128, 128, 3, 4), (128, 128, 4, 8),
]  # fmt: skip
MANY = [
    (64, 64, 5, 4, 128), (64, 128, 4, 4, 128), (128, 64, 3, 4, 128), (128, 64, 3, 8, 128), (128, 64, 6, 8, 128),
    (128, 128, 3, 8, 128), (128, 64, 4, 8, 256), (128, 64, 3, 8, 256), (256, 64, 4, 8, 128), (128, 64, 3, 4, 64),
    (128, 64, 3, 8, 64), (128, 128, 4, 8, 64),
]  # fmt: skip
TILINGS = [Tiling(*one, by_descriptor=way) for one in FEW for way in (True, False)] + [
    Tiling(*one, by_descriptor=True) for one in MANY
]
KINDS = ({}, {"parts": 2}, {"programs": 3})  # of sharing, each compiled anew


def fits(tiling, tokens):
    return tokens <= 64 if tiling in TILINGS[: 2 * len(FEW)] else tokens > 64


def sharings(outputs):
    """Ways to share out the inputs; where programs walk over all tiles, few and many tokens need the same tiles."""
    found = [{"parts": parts} for parts in (1, 2, 3, 4) if outputs // 64 * parts <= 640 or parts == 1]
    if 64 < outputs // 128 < 400:
        found += [{"programs": programs, "outputs": 128} for programs in (132, 264)]
    return found


def compile_some(jobs):
    """In a process of its own: the cache on disk is what is wanted."""
    for tokens, tiling in jobs:
        x = torch.zeros(tokens, 1024, dtype=torch.bfloat16, device="cuda")
        weight = torch.zeros(512, 1024, dtype=torch.bfloat16, device="cuda")
        with suppress(Exception):  # what does not fit the card is told when it is timed
            few_tokens_linear(x, weight, tiling)
    return len(jobs)


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


def libraries():
    """cuBLAS as torch calls it, and cuBLASLt with and without sums that are split."""
    reduced = torch.backends.cuda.matmul
    for name, library, splits in (
        ("cublas", "cublas", True),
        ("lt", "cublaslt", True),
        ("lt_whole", "cublaslt", False),
    ):
        torch.backends.cuda.preferred_blas_library(library)
        reduced.allow_bf16_reduced_precision_reduction = True if splits else (False, False)
        yield name
    reduced.allow_bf16_reduced_precision_reduction = True
    torch.backends.cuda.preferred_blas_library("cublas")


class Shape:
    """One shape's weights, tokens, and what each row is alone."""

    def __init__(self, name, outputs, inputs):
        self.name, self.outputs, self.inputs = name, outputs, inputs
        copies = max(1, min(int(6e8 // (outputs * inputs * 2)), 40))
        self.weights = [
            torch.randn(outputs, inputs, dtype=torch.bfloat16, device="cuda") * 0.02 for _ in range(copies)
        ]
        self.x = torch.randn(max(TOKENS), inputs, dtype=torch.bfloat16, device="cuda")
        self.alone, self.cublas = {}, {}
        for sharing in sharings(outputs):
            kept = {key: value for key, value in sharing.items() if key != "outputs"}
            tiling = Tiling(128, 64, 4, 4, **kept)
            rows = [few_tokens_linear(row, self.weights[0], tiling) for row in self.x.split(1)]
            self.alone[json.dumps(sharing)] = torch.cat(rows)

    def line(self, tokens, seconds, **more):
        """Rates of all the weights' products."""
        size, work = self.weights[0].nbytes, 2 * tokens * self.outputs * self.inputs
        each = seconds / len(self.weights)
        base = self.cublas.get(tokens, each)
        return {
            "shape": self.name, "tokens": tokens, "ms": round(each * 1e3, 5), "tb_s": round(size / each / 1e12, 3),
            "tflop_s": round(work / each / 1e12, 1), "of_cublas": round(each / base, 3), **more,
        }  # fmt: skip

    def by_libraries(self):
        for name in libraries():
            for tokens in TOKENS:
                x = self.x[:tokens]
                try:
                    seconds = seconds_of(lambda x=x: [F.linear(x, w) for w in self.weights])
                    found = F.linear(x, self.weights[0])
                except Exception as error:
                    yield {"shape": self.name, "tokens": tokens, "by": name, "error": repr(error)[:200]}
                    continue
                if name == "cublas":
                    self.cublas[tokens] = seconds / len(self.weights)
                same = [how for how, alone in self.alone.items() if torch.equal(found, alone[:tokens])]
                yield self.line(tokens, seconds, by=name, bits_of=same)

    def by_tilings(self, sharing, tokens):
        """The fastest first."""
        x, alone = self.x[:tokens], self.alone[json.dumps(sharing)][:tokens]
        found = []
        for tiling in TILINGS:
            if not fits(tiling, tokens) or sharing.get("outputs", tiling.outputs) != tiling.outputs:
                continue
            tiling = replace(tiling, **sharing)
            work = partial(lambda t: [few_tokens_linear(x, w, t) for w in self.weights], tiling)
            try:
                seconds = seconds_of(work, 3)
                same = bool(torch.equal(work()[0], alone))
            except Exception as error:
                found.append(
                    {"tiling": asdict(tiling), "error": repr(error)[:200], "ms": 1e9, "same_bits": False}
                )
                continue
            found.append({**self.line(tokens, seconds), "same_bits": same, "tiling": asdict(tiling)})
        return sorted(found, key=lambda one: one["ms"])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=110)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    born = time.time()
    jobs = [
        (tokens, replace(tiling, **kind))
        for tiling in TILINGS for kind in KINDS for tokens in (16, 32, 64, 128, 256) if fits(tiling, tokens)
        and (tokens <= 64 or tokens == max(tiling.most_tokens, 128))
    ]  # fmt: skip
    workers = min(os.cpu_count() or 1, 16)
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(compile_some, [jobs[i::workers] for i in range(workers)]))
    print(f"compiled {len(jobs)} in {time.time() - born:.0f} s", flush=True)
    with (args.out / "linear.jsonl").open("w") as file:

        def tell(line):
            print(json.dumps(line), file=file, flush=True)

        for name in args.shapes:
            if time.time() - born > args.seconds:
                break
            shape = Shape(name, *SHAPES[name])
            for line in shape.by_libraries():
                tell(line)
            for sharing in sharings(SHAPES[name][0]):
                for tokens in TOKENS:
                    if time.time() - born > args.seconds:
                        break
                    found = shape.by_tilings(sharing, tokens)
                    tell({"shape": name, "tokens": tokens, "sharing": sharing, "fastest": found})
                    best = [one for one in found if one["same_bits"]][:1]
                    told = [{**one, "tiling": list(one["tiling"].values())} for one in best]
                    print(
                        sharing,
                        json.dumps(told),
                        sum(not one["same_bits"] for one in found),
                        "differ",
                        flush=True,
                    )
            print(f"{name}: {time.time() - born:.0f} s", flush=True)


if __name__ == "__main__":
    torch.multiprocessing.set_start_method("spawn")
    main()
