"""Which tiling of ops/triton/linear.py is fastest, beside cuBLAS, at shapes of Qwen3.5-27B, 35B-A3B and SmolLM2-135M.

One JSON line a shape, count of tokens and kernel, the fastest tilings first: milliseconds, TB of weights a second, and
whether every row has the very bits that the kernel for few tokens gives it alone. ``unsplit`` is cuBLAS as
cuda/products.py calls it; its bits are compared at counts in between, too. ``--weights fp8 int4 awq``: weights that
stay in codes beside the same as floats, whose products must have the same bits (added in chains where sums are long:
ops/triton/long_sums.py); TB are of the codes. The best of them
are printed, with how many times as fast as floats they are.
"""

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F

from flashdraft.cuda.products import tiling_of, unsplit_sums
from flashdraft.ops.quantized import QuantizedWeight, arranged, packed
from flashdraft.ops.triton.dequantized import dequantize
from flashdraft.ops.triton.experts import Tiles, experts
from flashdraft.ops.triton.linear import few_tokens_linear
from flashdraft.ops.triton.long_sums import has_long_sums, long_sums_linear
from flashdraft.ops.triton.tiling import Tiling

SHAPES = {  # outputs, inputs
    "gate_up": (34816, 5120),
    "down": (5120, 17408),
    "delta_in": (16480, 5120),
    "delta_out": (5120, 6144),
    "qkv": (14336, 5120),
    "head": (248320, 5120),
    "moe_delta_in": (12288, 2048),  # of Qwen3.5-35B-A3B, what follows too
    "moe_qkv": (9216, 2048),
    "moe_out": (2048, 4096),
    "small_qkv": (960, 576),
    "small_o": (576, 576),
    "small_gate_up": (3072, 576),
    "small_down": (576, 1536),
    "small_head": (49152, 576),
}
TOKENS = (1, 16, 32, 64, 128, 256, 512)
BETWEEN = (17, 33, 40, 65, 72, 100, 120, 200, 300, 400, 1000, 1024, 2048, 3000, 4096)
FEW = 64  # tokens; with more, weights as floats are cuBLAS's
IN_CODES_TOKENS = (1, 16, 32)
TILINGS = [
    Tiling(*one)
    for one in (
        (64, 64, 3, 4), (64, 64, 6, 4), (64, 128, 4, 4), (64, 256, 4, 4), (128, 64, 3, 8), (128, 64, 4, 4),
        (128, 128, 3, 4), (128, 128, 4, 8),
        # as many programs at once as there are of many outputs
        (64, 64, 4, 4), (64, 128, 3, 4), (128, 64, 3, 4), (128, 64, 4, 8), (256, 64, 3, 8), (64, 32, 6, 4),
        (128, 32, 6, 4),
        # more programs where outputs are few: each warp's own instruction
        (32, 256, 4, 2), (32, 256, 6, 2), (32, 512, 3, 2), (32, 128, 6, 2), (16, 256, 4, 1), (16, 256, 6, 1),
        (32, 256, 6, 2, 8), (32, 512, 3, 2, 8), (16, 256, 6, 1, 8), (64, 512, 2, 4),
    )
]  # fmt: skip


IN_CODES = [  # outputs: 16 a warp at least; inputs: whole chunks of 128
    Tiling(*one)
    for one in (
        # Hopper's own instruction
        (64, 256, 3, 4), (64, 256, 4, 4), (64, 128, 4, 4), (64, 512, 3, 4),
        # each warp's own
        (16, 128, 4, 1), (16, 256, 4, 1), (32, 128, 4, 1), (32, 256, 4, 2), (64, 128, 4, 2), (64, 256, 3, 2),
        # and tiles of 8 tokens
        (16, 128, 4, 1, 8), (16, 128, 6, 1, 8), (16, 256, 3, 1, 8), (16, 256, 4, 1, 8), (16, 256, 6, 1, 8),
        (16, 512, 4, 1, 8), (32, 128, 4, 1, 8), (32, 256, 4, 1, 8), (32, 256, 4, 2, 8), (64, 256, 4, 4, 8),
    )
]  # fmt: skip
IN_CHAINS = [  # of shapes with long sums; inputs: whole chunks of four chains
    Tiling(*one)
    for one in (
        (16, 512, 3, 4, 8), (16, 512, 4, 4, 8), (16, 1024, 3, 4, 8), (32, 512, 3, 4, 8), (16, 512, 4, 2, 8),
        (16, 512, 3, 4), (32, 512, 3, 4), (16, 512, 2, 4), (32, 512, 2, 4),
    )
]  # fmt: skip
EXPERTS = {  # of Qwen3.5-35B-A3B: how many, chosen, of hidden size, of intermediate size
    "experts": (256, 8, 2048, 512)
}
EXPERT_TILES = [  # pairs of a block, columns up and down, inputs, warps, loads in flight
    Tiles(*one)
    for one in (
        (8, 16, 16, 128, 1, 4), (8, 16, 16, 128, 1, 6), (8, 32, 32, 128, 1, 4), (8, 16, 32, 128, 1, 4),
        (8, 32, 32, 128, 2, 4), (8, 64, 64, 128, 4, 4), (16, 16, 16, 128, 1, 4), (16, 32, 32, 128, 1, 4),
        (16, 32, 32, 128, 2, 4), (16, 64, 64, 128, 4, 4), (16, 32, 64, 128, 4, 4),
    )
]  # fmt: skip
EXPERT_TOKENS = (1, 8, 16, 64)
KINDS = ("bf16", "fp8", "int4", "awq", "fp8_32")


def tilings_of(kind, tokens, is_long=False):
    """Tiles of 8 tokens are for no more; then codes have others for Hopper's own instruction alone."""
    if kind == "bf16":
        return [one for one in TILINGS if one.tokens >= 16 or tokens <= one.tokens]
    if is_long:
        return [one for one in IN_CHAINS if (tokens <= 8) == (one.tokens == 8)]
    return [one for one in IN_CODES if (tokens <= 8) == (one.tokens == 8) or (tokens <= 8 and one.warps == 4)]


def in_codes(floats, kind, device=None):
    """Random codes of a weight's shape in groups of 128; "awq" has zero points.

    Scales of "fp8_32" count as float32, of "awq" as float16, of the others as bfloat16. ``device``: another than the
    weight's.
    """
    (outputs, inputs), device = floats.shape, device or floats.device
    scales = (torch.rand(inputs // 128, outputs, device=device) * 1e-3 + 1e-4).bfloat16().float()
    if kind.startswith("fp8"):
        codes = torch.randn(outputs, inputs, device=device).mul_(60).to(torch.float8_e4m3fn)
        counted = torch.float32 if kind == "fp8_32" else torch.bfloat16
        return QuantizedWeight(arranged(codes), scales, None, torch.bfloat16, counted)
    codes = packed(torch.randint(16, (outputs, inputs), device=device))
    if kind == "int4":
        return QuantizedWeight(codes, scales, None, torch.bfloat16, torch.bfloat16)
    zeros = torch.randint(16, scales.shape, device=device).float()
    return QuantizedWeight(codes, scales.half().float(), zeros, torch.bfloat16, torch.float16)


def held(weight):
    """As a loaded linear map has it."""
    return weight.in_tiles().in_pairs()


def drawn_alone(outline, kind, device, for_linear=False):
    """:func:`in_codes` of a weight on the meta device, in memory of its own as a loaded one is.

    Drawing takes several times its size: in parts of that it would keep all of it from whoever comes next.
    """
    weight = in_codes(outline, kind)
    weight = held(weight) if for_linear else weight
    if device == "meta":
        return weight
    parts = [name for name in ("codes", "scales", "zeros") if getattr(weight, name) is not None]
    own = {name: torch.empty_like(getattr(weight, name), device=device) for name in parts}
    drawn = in_codes(outline, kind, device)
    drawn = held(drawn) if for_linear else drawn
    for name, part in own.items():
        part.copy_(getattr(drawn, name))
    del drawn
    torch.cuda.empty_cache()
    return replace(weight, **own)


def compile_some(jobs):
    """In a process of its own: the cache on disk is what is wanted."""
    for kind, tokens, tiling in jobs:
        if not isinstance(tiling, Tiling):
            with suppress(Exception):
                Mixture("experts", kind, 8).product(0, tokens, tiling)
            continue
        x = torch.zeros(tokens, 1024, dtype=torch.bfloat16, device="cuda")
        weight = torch.zeros(512, 1024, dtype=torch.bfloat16, device="cuda")
        linear = long_sums_linear if tiling in IN_CHAINS else few_tokens_linear
        with suppress(Exception):  # what does not fit the card is told when it is timed
            linear(x, weight if kind == "bf16" else held(in_codes(weight, kind)), tiling)


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

    def __init__(self, name, kind, outputs, inputs):
        self.name, self.kind = name, kind
        copies = max(1, min(int(6e8 // (outputs * inputs * 2)), 40))
        self.weights = self.floats = [
            torch.randn(outputs, inputs, dtype=torch.bfloat16, device="cuda") * 0.02 for _ in range(copies)
        ]
        if kind != "bf16":
            self.weights = [held(in_codes(one, kind)) for one in self.floats]
            self.floats = [one.dequantized() for one in self.weights]
        self.x = torch.randn(max(BETWEEN), inputs, dtype=torch.bfloat16, device="cuda")
        self.is_long = kind != "bf16" and has_long_sums(self.weights[0])
        self.linear = long_sums_linear if self.is_long else few_tokens_linear
        alone = partial(self.linear, weight=self.floats[0], tiling=TILINGS[0])
        rows = self.x[:FEW].split(1) if kind == "bf16" else (self.x[:FEW],)
        self.alone = torch.cat([alone(row) for row in rows] + [alone(self.x[FEW:])])

    def line(self, tokens, by, work, weights):
        """Rates of all the weights' products, and whether the first's bits are right."""
        x = self.x[:tokens]
        seconds = seconds_of(lambda: [work(x, weight) for weight in weights]) / len(weights)
        return {
            "shape": self.name, "weights": self.kind, "tokens": tokens, "by": by, "ms": round(seconds * 1e3, 5),
            "tb_s": round(weights[0].nbytes / seconds / 1e12, 3),
            "same_bits": torch.equal(work(x, weights[0]), self.alone[:tokens]),
        }  # fmt: skip

    def as_floats(self, tokens):
        """The kernel for few tokens with the same weights as floats; of long sums it has bits of its own."""
        work = partial(few_tokens_linear, tiling=tiling_of(*self.floats[0].shape, tokens))
        return self.line(tokens, "floats", work, self.floats) | ({"same_bits": None} if self.is_long else {})

    def by_libraries(self):
        for by, way in (("cublas", nullcontext), ("unsplit", partial(unsplit_sums, self.x))):
            with way():
                yield from (self.line(tokens, by, F.linear, self.floats) for tokens in TOKENS)
        with unsplit_sums(self.x):
            found = ((tokens, F.linear(self.x[:tokens], self.floats[0])) for tokens in BETWEEN)
            wrong = [tokens for tokens, outs in found if not torch.equal(outs, self.alone[:tokens])]
        yield {"shape": self.name, "by": "unsplit", "between": BETWEEN, "other_bits": wrong}

    def by_tilings(self, tokens):
        """The fastest first."""
        found = []
        for tiling in tilings_of(self.kind, tokens, self.is_long):
            work = partial(self.linear, tiling=tiling)
            try:
                found.append(self.line(tokens, asdict(tiling), work, self.weights))
            except Exception as error:
                print("failed", tiling, repr(error)[:200], flush=True)
        return sorted(found, key=lambda one: one["ms"])

    def by_dequantizing(self):
        """One weight from codes to floats."""

        def work(weight):
            return dequantize(weight, torch.empty_like(self.floats[0]))

        seconds = seconds_of(lambda: [work(weight) for weight in self.weights]) / len(self.weights)
        same = torch.equal(work(self.weights[0]), self.floats[0])
        return {
            "shape": self.name,
            "weights": self.kind,
            "by": "dequantize",
            "ms": seconds * 1e3,
            "same_bits": same,
        }


class Mixture:
    """Layers of experts whose weights are several times what the L2 holds; every fourth token chooses alike."""

    def __init__(self, name, kind, number=None):
        self.name, self.kind = name, kind
        all_experts, self.top_k, size, inner = EXPERTS[name]
        number, tokens, self.layers = number or all_experts, max(EXPERT_TOKENS), []
        for _ in range(2):
            both = [
                torch.randn(number * rows, columns, dtype=torch.bfloat16, device="cuda") * 0.02
                for rows, columns in ((2 * inner, size), (size, inner))
            ]
            codes = both if kind == "bf16" else [in_codes(one, kind) for one in both]
            floats = both if kind == "bf16" else [one.dequantized() for one in codes]
            floats = [one.unflatten(0, (number, -1)) for one in floats]
            self.layers.append((floats, floats if kind == "bf16" else codes))
        self.x = torch.randn(tokens, size, dtype=torch.bfloat16, device="cuda")
        chosen = [torch.randperm(number, device="cuda")[: self.top_k] for _ in range(20 * tokens)]
        self.chosen = torch.stack(chosen).unflatten(0, (20, tokens))
        self.chosen[:, 3::4] = self.chosen[:, 2::4]
        self.weights = torch.rand(tokens, self.top_k, device="cuda").bfloat16()

    def product(self, at, tokens, tiles, in_codes=True):
        weights = self.layers[at % 2][in_codes]
        return experts(
            self.x[:tokens], *weights, self.chosen[at, :tokens], self.weights[:tokens], tiles=tiles
        )

    def lines(self, tokens):
        """Floats by their own tiles, then the fastest first."""

        found, expected = [], None
        for by, tiles in [("floats", None), *((asdict(one), one) for one in expert_tiles(self.kind, tokens))]:

            def work(tiles=tiles):
                in_codes = tiles is not None
                return [self.product(at, tokens, tiles, in_codes) for at in range(len(self.chosen))]

            try:
                out = torch.stack(work())
                seconds = seconds_of(work) / len(self.chosen)
            except Exception as error:
                print("failed", tiles, repr(error)[:200], flush=True)
                continue
            expected = out if expected is None else expected
            found.append({
                "shape": self.name, "weights": self.kind, "tokens": tokens, "by": by, "ms": round(seconds * 1e3, 5),
                "same_bits": torch.equal(out, expected),
            })  # fmt: skip
        return found[:1] + sorted(found[1:], key=lambda one: one["ms"])


def expert_tiles(kind, tokens):
    """Those of 8 pairs are for up to 8 tokens; codes have at least 16 outputs a warp."""
    return [
        one
        for one in EXPERT_TILES
        if (one.rows == 8) == (tokens <= 8)
        and (kind == "bf16" or min(one.up, one.down) >= 16 * one.num_warps)
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=110)
    parser.add_argument("--shapes", nargs="*", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--experts", nargs="*", choices=list(EXPERTS), default=[])
    parser.add_argument("--weights", nargs="+", choices=KINDS, default=["bf16"])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    born = time.time()
    jobs = [
        (kind, tokens, tiling)
        for kind in args.weights
        if args.shapes
        for tokens in ((8, 16, 32, 64) if kind == "bf16" else (8, 16, 32))
        for is_long in (False, True)[: 1 if kind == "bf16" else 2]
        for tiling in tilings_of(kind, tokens, is_long)
        if tokens >= tiling.tokens
    ] + [
        (kind, tokens, tiles)
        for kind in args.weights
        if args.experts
        for tokens in EXPERT_TOKENS
        for tiles in expert_tiles(kind, tokens)
    ]  # fmt: skip
    workers = min(os.cpu_count() or 1, 16)
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(compile_some, [jobs[i::workers] for i in range(workers)]))
    print(f"compiled {len(jobs)} in {time.time() - born:.0f} s", flush=True)
    with (args.out / "linear.jsonl").open("w") as file:
        for kind, name in product(args.weights, args.shapes):
            if time.time() - born > args.seconds:
                break
            shape = Shape(name, kind, *SHAPES[name])
            found = list(shape.by_libraries()) if kind == "bf16" else [shape.by_dequantizing()]
            for tokens in (
                (tokens for tokens in TOKENS if tokens <= FEW) if kind == "bf16" else IN_CODES_TOKENS
            ):
                lines = shape.by_tilings(tokens)
                if kind != "bf16":
                    lines.insert(0, shape.as_floats(tokens))
                    best = next((one for one in lines[1:] if one["same_bits"]), lines[1])
                    told = {"of_floats": round(lines[0]["ms"] / best["ms"], 2), "wrong_bits": [
                        one["by"] for one in lines if one["same_bits"] is False
                    ]}  # fmt: skip
                    print(json.dumps(best | told), flush=True)
                found += lines
            for line in found:
                print(json.dumps(line), file=file, flush=True)
            print(f"{kind} {name}: {time.time() - born:.0f} s", flush=True)
        for kind, name in product(args.weights, args.experts):
            mixture = Mixture(name, kind)
            for tokens in EXPERT_TOKENS:
                for line in mixture.lines(tokens):
                    print(json.dumps(line), file=file, flush=True)
                    print(json.dumps(line), flush=True)
            print(f"{kind} {name}: {time.time() - born:.0f} s", flush=True)


if __name__ == "__main__":
    torch.multiprocessing.set_start_method("spawn")
    main()
