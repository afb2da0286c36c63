"""Each Triton kernel on a CUDA GPU: against its PyTorch reference, and its time in a recorded step.

    python benchmarks/gpu_kernels.py                      # all, one JSON object a line
    python benchmarks/gpu_kernels.py --only gated experts
    python benchmarks/gpu_kernels.py --sweep              # settings of gated_delta_step instead

Shapes are those of Qwen3.5-27B and of Qwen3.5-35B-A3B's experts, bfloat16, random weights. A case records one call for
each of as many layers as a step has (or as memory allows), as one CUDA graph, so that no cache keeps what a step
would read anew; ``us`` is the time of one call, ``gb_s`` the bytes that it cannot but read and write in that time.
``error`` is the largest difference from the reference over the largest value; ``bits`` whether tokens are equal to
what they are alone.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flashdraft.models.mlp import Experts
from flashdraft.models.qwen3_5 import GatedDeltaNet
from flashdraft.ops.norm import ZeroCenteredRMSNorm
from flashdraft.ops.rope import rotate
from flashdraft.ops.triton import gated_delta
from flashdraft.ops.triton.delta_inputs import gated_delta_prepare, num_scalars
from flashdraft.ops.triton.experts import NUM_EXACT, experts
from flashdraft.ops.triton.fused import add_rms_norm, gated_norm, norm_rope_store, silu_mul
from flashdraft.ops.triton.gated_delta import (
    conv_commit,
    gated_delta_block,
    gated_delta_commit,
    gated_delta_step,
)

EPS = 1e-6


@dataclass(frozen=True)
class Shape:
    """What of a model decides its kernels' shapes."""

    hidden_size: int = 5120
    intermediate_size: int = 17408
    delta_layers: int = 48
    key_heads: int = 16
    heads: int = 48
    key_dim: int = 128
    value_dim: int = 128
    attention_heads: int = 24
    kv_heads: int = 4
    head_dim: int = 256
    rotary_dim: int = 64
    num_experts: int = 256
    expert_hidden_size: int = 2048
    expert_intermediate_size: int = 512
    top_k: int = 8
    dtype: torch.dtype = torch.bfloat16
    device: str = "cuda"

    def random(self, *sizes: int) -> Tensor:
        """Normal numbers in the model's type."""
        return torch.randn(*sizes, dtype=self.dtype, device=self.device)


@dataclass
class Case:
    """One kernel at one size."""

    name: str
    size: dict[str, int]
    calls: list[Callable[[], Any]]  # alike, each with its own layer's tensors
    num_bytes: int  # of one call
    found: dict[str, Any] = field(default_factory=dict)  # errors and statements about bits


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest value."""
    return float(((found.double() - expected.double()).abs().max() / expected.double().abs().max()).item())


class DeltaLayers:
    """Gated delta layers of one shape with their states, and the fused projections of one block."""

    def __init__(self, shape: Shape, rows: int, width: int) -> None:
        self.shape, self.rows, self.width = shape, rows, width
        config = SimpleNamespace(
            hidden_size=shape.hidden_size,
            linear_num_key_heads=shape.key_heads,
            linear_num_value_heads=shape.heads,
            linear_key_head_dim=shape.key_dim,
            linear_value_head_dim=shape.value_dim,
            linear_conv_kernel_dim=4,
            rms_norm_eps=EPS,
        )
        with torch.device(shape.device):
            self.layer = GatedDeltaNet(config).to(shape.dtype).requires_grad_(False)
        torch.nn.init.normal_(self.layer.A_log, mean=-1.0)
        torch.nn.init.normal_(self.layer.conv1d.weight, std=0.5)
        num_layers, sizes = shape.delta_layers, (shape.heads, shape.key_dim, shape.value_dim)
        channels = self.layer.conv_shape[1]
        self.parts = (channels, shape.heads * shape.value_dim, shape.heads, shape.heads)  # qkv, z, a, b
        self.x = shape.random(rows, width, shape.hidden_size)
        self.fused = shape.random(num_layers, rows, width, sum(self.parts))
        projections = ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b")
        self.fused[0] = torch.cat([getattr(self.layer, name)(self.x) for name in projections], dim=-1)
        self.conv = shape.random(num_layers, rows, 3, channels)
        self.state = torch.randn(num_layers, rows, *sizes, device=shape.device)
        self.slots = torch.randperm(rows, device=shape.device)
        weights = (self.layer.conv1d.weight.squeeze(1), self.layer.A_log, self.layer.dt_bias)
        self.weights = [weight.expand(num_layers, *weight.shape).contiguous() for weight in weights]
        self.out = shape.random(rows, width, shape.heads, shape.value_dim)
        self.convolved = shape.random(num_layers, rows, width, channels)
        sizes = (num_layers, rows, width, num_scalars(shape.key_heads, shape.heads))
        self.scalars = torch.rand(sizes, device=shape.device)

    def step(self, layer: int, rows: slice = slice(None), tokens: slice = slice(None)) -> Tensor:
        """One layer's outputs of some rows' single tokens, whose states are written, or of the whole block."""
        qkv, _, a, b = self.fused[layer, rows, tokens].split(self.parts, dim=-1)
        out, state, slots = self.out[rows, tokens], self.state[layer], self.slots[rows]
        if qkv.shape[1] == 1:
            weights = [weight[layer] for weight in self.weights]
            gated_delta_step(qkv, a, b, *weights, self.conv[layer], state, slots, out)
        else:
            self.prepare(layer)
            gated_delta_block(self.convolved[layer], self.scalars[layer], state, slots, out)
        return out

    def trees(self, layer: int) -> Tensor:
        """One layer's outputs of :meth:`tree` in each row."""
        self.prepare(layer, self.tree)
        given = self.convolved[layer], self.scalars[layer], self.state[layer], self.slots, self.out
        gated_delta_block(*given, self.tree)
        return self.out

    @cached_property
    def tree(self) -> tuple[Tensor, Tensor]:
        """Depths and paths: half of the tokens are a chain, and of the others one follows each of these."""
        half, place = self.width // 2, torch.arange(self.width, device=self.shape.device)
        depths = torch.where(place < half, place, place - half + 1)
        paths = torch.where(place == depths[:, None], place[:, None], place)
        every = torch.ones(self.rows, 1, 1, dtype=torch.int32, device=self.shape.device)
        return every[:, :, 0].long() * depths, every * paths.int()

    def check_trees(self) -> dict[str, Any]:
        """Tokens of layer 0 against steps down their paths, of the first row."""
        out, one, alone = self.trees(0)[0].clone(), slice(0, 1), True
        before = self.state[0].clone(), self.conv[0].clone()
        qkv, half = self.fused[:1, one].split(self.parts, dim=-1)[0], self.width // 2
        for t in range(half):
            alone &= torch.equal(self.step(0, one, slice(t, t + 1))[0, 0], out[t])
            conv_commit(qkv, self.conv[:1], self.slots[one], self.counts(t, 1), self.counts(1, 1))
            kept = self.state[0].clone()
            alone &= torch.equal(self.step(0, one, slice(t + half, t + half + 1))[0, 0], out[t + half])
            self.state[0] = kept
        self.state[0], self.conv[0] = before
        return {"bits": alone}

    def prepare(self, layer: int, tree: tuple[Tensor, Tensor] | None = None) -> None:
        """What the block's tokens bring."""
        qkv, _, a, b = self.fused[layer].split(self.parts, dim=-1)
        gated_delta_prepare(
            qkv, a, b, *(weight[layer] for weight in self.weights), self.conv[layer], self.state[layer],
            self.slots, self.convolved[layer], self.scalars[layer], tree,
        )  # fmt: skip

    def commit(self, layers: slice, starts: Tensor, counts: Tensor) -> None:
        """Both commits of some layers."""
        qkv = self.fused[layers].split(self.parts, dim=-1)[0]
        gated_delta_commit(
            self.convolved[layers], self.scalars[layers], self.state[layers], self.slots, starts, counts
        )
        conv_commit(qkv, self.conv[layers], self.slots, starts, counts)

    def counts(self, number: int, rows: int | None = None) -> Tensor:
        """The same number for each row."""
        return torch.full((rows or self.rows,), number, device=self.shape.device)

    def check(self) -> dict[str, Any]:
        """Layer 0 against the PyTorch layer, a block's tokens against steps of one token, the commit likewise."""
        first = slice(0, 1)
        before = self.state[0].clone(), self.conv[0].clone()
        expected = self.layer.new_state(self.rows)
        expected.recurrent, expected.conv = before[0].clone(), before[1].clone()
        expected.use(self.slots)
        positions = torch.arange(9, 9 + self.width, device=self.shape.device).expand(self.rows, -1)
        wanted = self.layer(self.x, positions, expected)
        out = self.step(0).clone()
        self.state[0] = before[0]
        self.prepare(0)
        z = self.fused[0].split(self.parts, dim=-1)[1].view(out.shape)
        normed = gated_norm(out.flatten(0, 1), z.flatten(0, 1), self.layer.norm.weight, EPS)
        found = {"error": error(self.layer.out_proj(normed.view(self.rows, self.width, -1)), wanted)}
        expected.commit([self.width] * self.rows)
        self.commit(first, self.counts(0), self.counts(self.width))
        found["commit_error"] = error(self.state[0], expected.recurrent)
        after = self.state[0].clone(), self.conv[0].clone()
        self.state[0], self.conv[0] = before
        alone = True
        for row, t in itertools.product(range(self.rows), range(self.width)):
            one = slice(row, row + 1)
            alone &= torch.equal(self.step(0, one, slice(t, t + 1))[0, 0], out[row, t])
            qkv = self.fused[first, one].split(self.parts, dim=-1)[0]
            conv_commit(qkv, self.conv[first], self.slots[one], self.counts(t, 1), self.counts(1, 1))
        found["bits"] = alone
        found["commit_bits"] = torch.equal(self.state[0], after[0]) and torch.equal(self.conv[0], after[1])
        return found


def delta_cases(shape: Shape, sizes: list[tuple[int, int]]) -> Iterator[Case]:
    """Steps, commits of all layers and the norm behind."""
    state_bytes = shape.heads * shape.key_dim * shape.value_dim * 4
    for rows, width in sizes:
        layers = DeltaLayers(shape, rows, width)
        size, found = {"rows": rows, "width": width}, layers.check()
        width_bytes = sum(layers.parts) * width * shape.dtype.itemsize
        calls: list[Callable[[], Any]]
        calls = [partial(layers.step, layer) for layer in range(shape.delta_layers)]
        step_bytes = rows * (state_bytes * (2 if width == 1 else 1) + width_bytes)
        yield Case("gated_delta_step", size, calls, step_bytes, found)
        calls = [partial(layers.prepare, layer) for layer in range(shape.delta_layers)]
        yield Case("gated_delta_prepare (part of wide steps)", size, calls, rows * 2 * width_bytes)
        if width > 1:
            calls = [partial(layers.trees, layer) for layer in range(shape.delta_layers)]
            yield Case("gated_delta_block of trees", size, calls, step_bytes, layers.check_trees())
        starts, counts = layers.counts(0), layers.counts(max(1, width // 2))
        commit = partial(layers.commit, slice(None), starts, counts)
        commit_bytes = shape.delta_layers * rows * (2 * state_bytes + width_bytes // 2)
        yield Case("gated_delta_commit + conv_commit, all layers", size, [commit], commit_bytes)
        out = layers.out.flatten(0, 1)
        z = layers.fused.split(layers.parts, dim=-1)[1].flatten(1, 2)
        calls = [
            partial(gated_norm, out, gate.view(out.shape), layers.layer.norm.weight, EPS) for gate in z[:16]
        ]
        yield Case("gated_norm", size, calls, 3 * out.nbytes)
        del layers, calls, commit, z


def fused_cases(shape: Shape, sizes: list[int]) -> Iterator[Case]:
    """What stands between matrix products."""
    for num_tokens in sizes:
        size = {"tokens": num_tokens}
        x, residual = shape.random(2, num_tokens, shape.hidden_size)
        norm = (
            ZeroCenteredRMSNorm(shape.hidden_size, EPS).to(shape.dtype).to(shape.device).requires_grad_(False)
        )
        norm.weight.normal_(std=0.3)
        add = partial(add_rms_norm, x, residual, norm.weight, EPS, True)
        found = {"error": error(add()[0], norm(residual + x)), "total": torch.equal(add()[1], residual + x)}
        yield Case("add_rms_norm", size, [add] * 16, 4 * x.nbytes, found)
        gate_up = shape.random(num_tokens, 2 * shape.intermediate_size)
        gate, up = gate_up.chunk(2, dim=-1)
        found = {"error": error(silu_mul(gate_up), F.silu(gate) * up)}
        yield Case("silu_mul", size, [partial(silu_mul, gate_up)] * 16, gate_up.nbytes * 3 // 2, found)
        yield rope_case(shape, num_tokens)


def rope_case(shape: Shape, num_tokens: int) -> Case:
    """Norm, rotation and storing of one layer's queries, keys and values."""
    q = shape.random(num_tokens, shape.attention_heads, 2 * shape.head_dim)[..., : shape.head_dim]
    k, v = shape.random(2, num_tokens, shape.kv_heads, shape.head_dim)
    angles = torch.randn(num_tokens, shape.rotary_dim // 2, device=shape.device).repeat(1, 2)
    cos, sin = angles.cos().to(shape.dtype), angles.sin().to(shape.dtype)
    pages = shape.random(2 * num_tokens, 16, 2, shape.kv_heads, shape.head_dim)[:, 3]
    slots = torch.randperm(2 * num_tokens, device=shape.device)[:num_tokens]
    norm = ZeroCenteredRMSNorm(shape.head_dim, EPS).to(shape.dtype).to(shape.device).requires_grad_(False)
    norm.weight.normal_(std=0.3)
    call = partial(norm_rope_store, q, k, v, norm.weight, norm.weight, EPS, True, cos, sin, pages, slots)
    rope = cos.unsqueeze(1), sin.unsqueeze(1)
    found = {
        "error": max(error(call(), rotate(norm(q), *rope)), error(pages[slots, 0], rotate(norm(k), *rope))),
        "values": torch.equal(pages[slots, 1], v),
    }
    num_bytes = 2 * (q.numel() + k.numel() + v.numel()) * shape.dtype.itemsize
    return Case("norm_rope_store", {"tokens": num_tokens}, [call] * 16, num_bytes, found)


def expert_cases(shape: Shape, sizes: list[int], num_routings: int = 8) -> Iterator[Case]:
    """A sparse layer; calls differ in what they choose."""
    with torch.device(shape.device):
        network = Experts(shape.num_experts, shape.expert_hidden_size, shape.expert_intermediate_size)
    network = network.to(shape.dtype).requires_grad_(False)
    for weight in network.parameters():
        weight.normal_(std=0.02)
    for num_tokens in sizes:
        x = shape.random(num_tokens, shape.expert_hidden_size)
        routings = []
        for _ in range(num_routings):
            scores = torch.rand(num_tokens, shape.num_experts, device=shape.device)
            weights, chosen = scores.softmax(-1).topk(shape.top_k, dim=-1)
            routings.append((chosen, (weights / weights.sum(-1, keepdim=True)).to(shape.dtype)))
        calls = [partial(_experts, network, x, *routing) for routing in routings]
        together = calls[0]()
        found: dict[str, Any] = {"error": error(together, network(x, *routings[0]))}
        chosen, weights = routings[0]
        found["bits"] = all(
            torch.equal(_experts(network, x[one], chosen[one], weights[one]), together[one])
            for one in (slice(i, i + 1) for i in {0, num_tokens // 2, num_tokens - 1})
        )
        expert_bytes = 3 * shape.expert_hidden_size * shape.expert_intermediate_size * shape.dtype.itemsize
        num_chosen = sum(len(chosen.unique()) for chosen, _ in routings) / len(routings)
        num_bytes = int(num_chosen * expert_bytes) + 2 * x.nbytes
        yield Case("experts", {"tokens": num_tokens}, calls, num_bytes, found)


def _experts(network: Experts, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    return experts(x, network.gate_up_proj, network.down_proj, chosen, weights)


def seconds(calls: list[Callable[[], Any]], repeats: int = 5) -> float:
    """Of one call, recorded: the median of some measurements of several replays each."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiled and run once before they are recorded
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for num_replays in [1] + [5] * repeats:  # the first warms up
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(num_replays):
            graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / num_replays / len(calls))
    return median(times[1:])


def row(case: Case) -> dict[str, Any]:
    """What is printed of a case."""
    taken = seconds(case.calls)
    speed = {"us": round(taken * 1e6, 2), "gb_s": round(case.num_bytes / taken / 1e9)}
    return {"kernel": case.name, **case.size, **speed, **case.found}


def sweep(shape: Shape, sizes: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """Steps and commits by value dimensions and warps of a program."""
    layers = [DeltaLayers(shape, rows, width) for rows, width in sizes]
    checked = DeltaLayers(replace(shape, delta_layers=1), 2, 8)
    for values, num_warps in ((8, 1), (16, 1), (16, 2), (32, 1), (32, 2), (32, 4), (64, 2), (64, 4)):
        gated_delta.VALUES = values
        gated_delta.EXACT.update(num_warps=num_warps)
        line = {"values": values, "num_warps": num_warps, **checked.check()}
        for block in layers:
            calls: list[Callable[[], Any]]
            calls = [partial(block.step, layer) for layer in range(shape.delta_layers)]
            line[f"step {block.rows} x {block.width}, us"] = round(seconds(calls) * 1e6, 2)
        commit = partial(block.commit, slice(None), block.counts(0), block.counts(max(1, block.width // 2)))
        line["last commit, us"] = round(seconds([commit]) * 1e6)
        yield line


def cases(shape: Shape, only: list[str]) -> Iterator[Case]:
    """All, or those whose group is named."""
    if "gated" in only:
        yield from delta_cases(
            shape, [(1, 1), (8, 1), (32, 1), (1, 8), (1, 16), (8, 16), (32, 16), (1, 32), (4, 32)]
        )
    if "fused" in only:
        yield from fused_cases(shape, [1, 16, 512])
    if "experts" in only:
        yield from expert_cases(shape, [1, 16, 64, 512, 4 * NUM_EXACT])


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description="Triton kernels on a CUDA GPU: errors, bits and times.")
    parser.add_argument(
        "--only", nargs="+", choices=("gated", "fused", "experts"), default=["gated", "fused", "experts"]
    )
    parser.add_argument("--sweep", action="store_true", help="settings of gated_delta_step instead")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("found no CUDA GPU: these kernels run on one. On a CPU they are tested: make test")
    shape = Shape()
    print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__}), flush=True)
    if args.sweep:
        for line in sweep(shape, [(1, 1), (32, 1), (1, 16), (32, 16)]):
            print(json.dumps(line), flush=True)
        return
    for case in cases(shape, args.only):
        print(json.dumps(row(case)), flush=True)


if __name__ == "__main__":
    main()
