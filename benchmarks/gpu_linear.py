"""Which tiling of ops/triton/linear.py reads weights fastest, beside F.linear, at the shapes of Qwen3.5-27B.

Usage: gpu_linear.py OUT.json [seconds]. One JSON line a shape and count of tokens: the best tilings and cuBLAS.
"""

import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F

from flashdraft.ops.triton.linear import Tiling, few_tokens_linear

SHAPES = {  # outputs, inputs: of Qwen3.5-27B, then of SmolLM2-135M
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


def tilings():
    """What may fit a Hopper's shared memory."""
    found = []
    for outputs, inputs, stages, warps, most, by_descriptor in product(
        (64, 128), (64, 128, 256), (3, 4), (4, 8), (64, 128, 256), (True, False)
    ):
        if (warps == 8 and outputs < 128) or (inputs == 256 and outputs == 128):
            continue
        if (most == 256 and outputs == 64) or (not by_descriptor and (most != 128 or stages == 3)):
            continue
        found.append(Tiling(outputs, inputs, stages, warps, 1, by_descriptor, most))
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


def main():
    out, limit = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 200.0
    born = time.time()
    every = tilings()
    jobs = [(tokens, t) for t in every for tokens in (16, 32, 64, 128, 256) if tokens <= t.most_tokens]
    workers = min(os.cpu_count() or 1, 16)
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(compile_some, [jobs[i::workers] for i in range(workers)]))
    print(f"compiled {len(jobs)} in {time.time() - born:.0f} s", flush=True)
    rows = []
    for name, (outputs, inputs) in SHAPES.items():
        copies = max(1, min(int(6e8 // (outputs * inputs * 2)), 40))
        weights = [
            torch.randn(outputs, inputs, dtype=torch.bfloat16, device="cuda") * 0.02 for _ in range(copies)
        ]
        for tokens in TOKENS:
            if time.time() - born > limit:
                break
            rows.append(measured(name, tokens, weights, every))
            print(json.dumps(rows[-1]), flush=True)
            with open(out, "w") as file:
                json.dump(rows, file)


def measured(name, tokens, weights, every):
    """cuBLAS and the fastest tilings for one shape, in TB of weights a second."""
    x = torch.randn(tokens, weights[0].shape[1], dtype=torch.bfloat16, device="cuda")
    size = weights[0].nbytes * len(weights)

    def run(tiling):
        return [few_tokens_linear(x, w, tiling) for w in weights]

    cublas = seconds_of(lambda: [F.linear(x, w) for w in weights])
    found = []
    for tiling in every:
        if tiling.most_tokens != 64 and tokens <= tiling.most_tokens // 2:
            continue
        try:
            seconds = seconds_of(partial(run, tiling), 3)
        except Exception as error:
            if "out of resource" not in str(error):
                print("failed", tiling, repr(error)[:200], flush=True)
            continue
        found.append((size / seconds / 1e12, list(vars(tiling).values())))
    found.sort(key=lambda one: -one[0])
    best = [(round(rate, 3), tiling) for rate, tiling in found[:5]]
    return {"shape": name, "tokens": tokens, "cublas_tb_s": round(size / cublas / 1e12, 3), "best": best}


if __name__ == "__main__":
    torch.multiprocessing.set_start_method("spawn")
    main()
