"""A mixture of experts on CUDA: no step asks the host which experts were chosen, so that it can be recorded.

A (token, chosen expert) is a pair. Pairs of one expert share a block of rows, so that its weights are read once for
that many of them. Few pairs find their block by themselves: each program looks at all that was chosen, and the first
pair of each block works for the others. Many are sorted first. Grids are as large as the worst case.

Up to ``NUM_EXACT`` tokens, a token's bits do not depend on the tokens beside it: rows of a product do not mix, and all
sizes run the same tiles in the same order.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashdraft.ops.quantized import CHUNK, QuantizedWeight
from flashdraft.ops.triton.dequantized import (
    FLOATS,
    FP8,
    MXFP4,
    factor_of,
    row_of,
    settings,
    spread_over_lanes,
    words_of,
)
from flashdraft.ops.triton.routing import sorted_pairs

NUM_FEW = 512  # pairs up to which blocks are found without sorting
NUM_EXACT = 1024  # tokens; more come as prompts, in larger tiles
_CHUNK = tl.constexpr(CHUNK)
SUM_TILE = 512  # elements of a program that sums


@dataclass(frozen=True)
class ClampedSwiGLU:
    """gpt-oss' experts: ``(up + 1) * gate * sigmoid(alpha * gate)`` of products with biases.

    Gates are at most ``limit``, ups within it; rows of both come in turn.
    """

    gate_up_bias: Tensor  # [num_experts, 2 intermediate_size]
    down_bias: Tensor  # [num_experts, hidden_size]
    alpha: float
    limit: float


@dataclass(frozen=True)
class Tiles:
    """How a product is cut, and how it is compiled."""

    rows: int  # pairs of a block
    up: int  # columns of a gate_up program
    down: int  # columns of a down program
    inner: int  # elements that are summed at a time
    num_warps: int
    num_stages: int


_DECODING = Tiles(rows=16, up=32, down=64, inner=128, num_warps=4, num_stages=4)
_DECODING_CODES = Tiles(rows=16, up=64, down=64, inner=128, num_warps=4, num_stages=4)
_ONE_TOKEN_CODES = Tiles(rows=8, up=16, down=16, inner=128, num_warps=1, num_stages=4)
_PROMPTS = Tiles(rows=64, up=64, down=128, inner=64, num_warps=4, num_stages=3)


@triton.jit  # type: ignore[untyped-decorator]
def _block_of_few(  # type: ignore[no-untyped-def]
    chosen, pair, num_pairs, rows: tl.constexpr, max_pairs: tl.constexpr
):
    """The expert of ``pair``, the up to ``rows`` pairs that it works for, and whether it works at all."""
    at = tl.arange(0, max_pairs)
    expert = tl.load(chosen + pair)
    is_same = (tl.load(chosen + at, at < num_pairs, -1) == expert).to(tl.int32)
    rank = tl.cumsum(is_same, 0) - 1
    first = tl.sum(tl.where(at < pair, is_same, 0), 0)
    wanted = first + tl.arange(0, rows)
    is_wanted = (is_same[None, :] == 1) & (rank[None, :] == wanted[:, None])
    pairs = tl.sum(tl.where(is_wanted, at[None, :], 0), 1)
    return expert, pairs, wanted < tl.sum(is_same, 0), first % rows == 0


@triton.jit  # type: ignore[untyped-decorator]
def _block_of_sorted(order, blocks, block, num_experts, rows: tl.constexpr):  # type: ignore[no-untyped-def]
    """The same from :func:`sorted_pairs`."""
    expert, start, end = (
        tl.load(blocks + block * 3),
        tl.load(blocks + block * 3 + 1),
        tl.load(blocks + block * 3 + 2),
    )
    place = start + tl.arange(0, rows)
    there = place < end
    return expert, tl.load(order + place, there, 0), there, expert < num_experts


@triton.jit  # type: ignore[untyped-decorator]
def _block(  # type: ignore[no-untyped-def]
    chosen, order, blocks, num_pairs, num_experts, rows: tl.constexpr, max_pairs: tl.constexpr
):
    if max_pairs > 0:
        expert, pairs, there, works = _block_of_few(chosen, tl.program_id(0), num_pairs, rows, max_pairs)
    else:
        expert, pairs, there, works = _block_of_sorted(order, blocks, tl.program_id(0), num_experts, rows)
    return expert.to(tl.int64), pairs.to(tl.int64), there, works


@triton.jit  # type: ignore[untyped-decorator]
def _weights(  # type: ignore[no-untyped-def]
    weight, scales, zeros, row, start, num_rows, scale_step, size: tl.constexpr, rows: tl.constexpr,
    tile: tl.constexpr, inner: tl.constexpr, warps: tl.constexpr, group: tl.constexpr, kind: tl.constexpr,
    has_zeros: tl.constexpr, by_ptx: tl.constexpr, scale_type: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """[tile, inner] of rows ``row`` from element ``start`` of their ``size`` on, as ``dtype``; codes by row_of."""
    a_code: tl.constexpr = 1 if kind == FLOATS else 2 if kind == FP8 else 4  # inputs a word
    chunk: tl.constexpr = _CHUNK if kind == MXFP4 else 1  # which rows are padded to
    whole: tl.constexpr = (size + chunk - 1) // chunk * chunk
    depth = start // a_code + tl.arange(0, inner // a_code)
    seen = (depth < whole // a_code)[None, :]
    at = weight + row[:, None] * (whole // a_code) + depth[None, :]
    loaded = tl.load(at) if whole % inner == 0 else tl.load(at, seen, 0.0)
    if kind == MXFP4:  # a word's inputs are of one group
        of_group = (depth // 32 * 4 + depth % 8 // 2).to(tl.int64)[None, :] * num_rows + row[:, None]
        scale = tl.load(scales + of_group)
        loaded = factor_of(
            loaded, scale, scale, rows, tile, inner, warps, kind, False, by_ptx, scale_type, dtype
        )
    elif kind != FLOATS:
        of_group = (row + start // group * num_rows) * scale_step
        scale = spread_over_lanes(scales + of_group)
        zero = scale
        if has_zeros:
            zero = spread_over_lanes(zeros + of_group)
        loaded = factor_of(
            loaded, scale, zero, rows, tile, inner, warps, kind, has_zeros, by_ptx, scale_type, dtype
        )
    return loaded


@triton.jit  # type: ignore[untyped-decorator]
def _inputs(at, there, start, size: tl.constexpr, inner: tl.constexpr):  # type: ignore[no-untyped-def]
    """[inner, rows] from element ``start`` of the pairs' ``size`` on; ``at`` [rows] are their first."""
    depth = start + tl.arange(0, inner)[:, None]
    seen = there[None, :] if size % inner == 0 else there[None, :] & (depth < size)
    return tl.load(at[None, :] + depth, seen, 0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _columns(num_columns, tile: tl.constexpr, warps: tl.constexpr, kind: tl.constexpr):  # type: ignore[no-untyped-def]
    """Columns whose weights a program loads, and those that its sums are of: codes stand otherwise in a product."""
    first, place = tl.program_id(1) * tile, tl.arange(0, tile)
    loaded = tl.minimum(first + place, num_columns - 1)
    if kind != FLOATS:
        place = row_of(place, warps)
    return loaded, first + place


@triton.jit(do_not_specialize=["scale_step"])  # type: ignore[untyped-decorator]
def _up_kernel(  # type: ignore[no-untyped-def]
    x, weight, scales, zeros, scale_step, bias, activated, chosen, order, blocks, num_pairs, num_experts,
    x_token, alpha, limit, is_clamped: tl.constexpr, top_k: tl.constexpr, size: tl.constexpr, inner_size: tl.constexpr,
    rows: tl.constexpr, max_pairs: tl.constexpr, tile: tl.constexpr, inner: tl.constexpr, warps: tl.constexpr,
    group: tl.constexpr, kind: tl.constexpr, has_zeros: tl.constexpr, by_ptx: tl.constexpr, scale_type: tl.constexpr,
):  # fmt: skip
    """``silu(gate) * up`` of a block's pairs, some columns of ``inner_size`` (an expert's intermediate size).

    Rows of gates come before those of ups; where it is clamped (ClampedSwiGLU) they come in turn.
    """
    expert, pairs, there, works = _block(chosen, order, blocks, num_pairs, num_experts, rows, max_pairs)
    if works:
        loaded, column = _columns(inner_size, tile, warps, kind)
        is_column = column < inner_size
        taken = x + pairs // top_k * x_token
        dtype: tl.constexpr = activated.dtype.element_ty
        to_row: tl.constexpr = 2 if is_clamped else 1
        to_up: tl.constexpr = 1 if is_clamped else inner_size
        first, num_rows = expert * (2 * inner_size), num_experts * (2 * inner_size)
        gate, up = tl.zeros([tile, rows], tl.float32), tl.zeros([tile, rows], tl.float32)
        for start in range(0, size, inner):
            values = _inputs(taken, there, start, size, inner)
            gate_weight = _weights(
                weight, scales, zeros, first + loaded * to_row, start, num_rows, scale_step, size, rows,
                tile, inner, warps, group, kind, has_zeros, by_ptx, scale_type, dtype,
            )  # fmt: skip
            gate = tl.dot(gate_weight, values, gate, input_precision="ieee")
            up_weight = _weights(
                weight, scales, zeros, first + loaded * to_row + to_up, start, num_rows, scale_step, size, rows,
                tile, inner, warps, group, kind, has_zeros, by_ptx, scale_type, dtype,
            )  # fmt: skip
            up = tl.dot(up_weight, values, up, input_precision="ieee")
        gate, up = gate.to(dtype).to(tl.float32), up.to(dtype).to(tl.float32)
        if is_clamped:
            row = first + column * to_row
            gate = (gate + tl.load(bias + row, is_column, 0.0)[:, None]).to(dtype).to(tl.float32)
            up = (up + tl.load(bias + row + to_up, is_column, 0.0)[:, None]).to(dtype).to(tl.float32)
            gate, up = tl.minimum(gate, limit), tl.minimum(tl.maximum(up, -limit), limit) + 1.0
            gate = gate / (1.0 + tl.exp(-alpha * gate))
        else:
            gate = gate / (1.0 + tl.exp(-gate))
        gate = gate.to(dtype).to(tl.float32)
        target = activated + pairs[None, :] * inner_size + column[:, None]
        tl.store(target, (gate * up).to(dtype), there[None, :] & is_column[:, None])


@triton.jit(do_not_specialize=["scale_step"])  # type: ignore[untyped-decorator]
def _down_kernel(  # type: ignore[no-untyped-def]
    activated, weight, scales, zeros, scale_step, bias, parts, chosen, order, blocks, num_pairs, num_experts,
    is_clamped: tl.constexpr, size: tl.constexpr, inner_size: tl.constexpr,
    rows: tl.constexpr, max_pairs: tl.constexpr, tile: tl.constexpr, inner: tl.constexpr, warps: tl.constexpr,
    group: tl.constexpr, kind: tl.constexpr, has_zeros: tl.constexpr, by_ptx: tl.constexpr, scale_type: tl.constexpr,
):  # fmt: skip
    expert, pairs, there, works = _block(chosen, order, blocks, num_pairs, num_experts, rows, max_pairs)
    if works:
        loaded, column = _columns(size, tile, warps, kind)
        is_column = column < size
        taken = activated + pairs * inner_size
        dtype: tl.constexpr = parts.dtype.element_ty
        first, num_rows = expert * size, num_experts * size
        total = tl.zeros([tile, rows], tl.float32)
        for start in range(0, inner_size, inner):
            weights = _weights(
                weight, scales, zeros, first + loaded, start, num_rows, scale_step, inner_size, rows,
                tile, inner, warps, group, kind, has_zeros, by_ptx, scale_type, dtype,
            )  # fmt: skip
            total = tl.dot(
                weights, _inputs(taken, there, start, inner_size, inner), total, input_precision="ieee"
            )
        if is_clamped:
            total = total.to(dtype).to(tl.float32)
            total += tl.load(bias + first + column, is_column, 0.0).to(tl.float32)[:, None]
        target = parts + pairs[None, :] * size + column[:, None]
        tl.store(target, total.to(dtype), there[None, :] & is_column[:, None])


@triton.jit  # type: ignore[untyped-decorator]
def _sum_kernel(  # type: ignore[no-untyped-def]
    parts, weights, shared, shared_gate, out, shared_token, gate_token,
    has_shared: tl.constexpr, top_k: tl.constexpr, size: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    token, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * tile + tl.arange(0, tile)
    there = at < size
    dtype: tl.constexpr = out.dtype.element_ty
    total = tl.zeros([tile], tl.float32)
    for place in tl.static_range(top_k):
        pair = token * top_k + place
        part = tl.load(parts + pair * size + at, there, 0.0).to(tl.float32)
        total += part * tl.load(weights + pair).to(tl.float32)
    total = total.to(dtype).to(tl.float32)
    if has_shared:
        gate = tl.load(shared_gate + token * gate_token).to(tl.float32)
        gate = (1.0 / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
        part = tl.load(shared + token * shared_token + at, there, 0.0).to(tl.float32)
        total += (gate * part).to(dtype).to(tl.float32)
    tl.store(out + token * size + at, total.to(dtype), there)


def experts(
    x: Tensor, gate_up_proj: Tensor | QuantizedWeight, down_proj: Tensor | QuantizedWeight, chosen: Tensor,
    weights: Tensor, shared: Tensor | None = None, shared_gate: Tensor | None = None,
    clamped: ClampedSwiGLU | None = None, tiles: Tiles | None = None,
) -> Tensor:  # fmt: skip
    """Weighted sum of the experts ``chosen`` for each token, as models/mlp.Experts: [num_tokens, hidden_size].

    ``x`` [num_tokens, hidden_size]; ``gate_up_proj`` [num_experts, 2 intermediate_size, hidden_size], ``down_proj``
    [num_experts, hidden_size, intermediate_size], in codes with the experts' outputs one after the other; ``chosen``
    (int64), ``weights`` [num_tokens, top_k]. The sum runs in float32 in the order of ``chosen``. To it comes
    ``sigmoid(shared_gate) * shared``, where there is a shared expert's output [num_tokens, hidden_size] with its gate
    [num_tokens, 1]. ``clamped``: what gpt-oss' experts have otherwise.
    """
    (num_tokens, size), top_k = x.shape, chosen.shape[1]
    inner_size = down_proj.shape[-1]
    num_experts = gate_up_proj.shape.numel() // (2 * inner_size * size)
    assert gate_up_proj.shape.numel() == num_experts * 2 * inner_size * size
    assert down_proj.shape.numel() == num_experts * size * inner_size
    assert all(t.is_contiguous() for t in (_codes(gate_up_proj), _codes(down_proj), chosen, weights))
    assert x.stride(1) == 1, "a token's elements lie side by side"
    num_pairs = num_tokens * top_k
    if tiles is None:
        tiles = _tiles(num_tokens, isinstance(gate_up_proj, QuantizedWeight))
    if num_pairs <= NUM_FEW:
        order = blocks = chosen
        num_blocks, max_pairs = num_pairs, triton.next_power_of_2(num_pairs)
    else:
        order, blocks = sorted_pairs(chosen, num_experts, tiles.rows)
        num_blocks, max_pairs = len(blocks), 0
    activated = torch.empty((num_pairs, inner_size), dtype=x.dtype, device=x.device)
    parts = torch.empty((num_pairs, size), dtype=x.dtype, device=x.device)
    common = {
        "chosen": chosen, "order": order, "blocks": blocks, "num_pairs": num_pairs, "num_experts": num_experts,
        "size": size, "inner_size": inner_size, "rows": tiles.rows, "max_pairs": max_pairs,
        "warps": tiles.num_warps, "num_warps": tiles.num_warps, "num_stages": tiles.num_stages,
        "is_clamped": clamped is not None,
    }  # fmt: skip
    _up_kernel[(num_blocks, triton.cdiv(inner_size, tiles.up))](
        x, bias=clamped.gate_up_bias if clamped else x, activated=activated, x_token=x.stride(0), top_k=top_k,
        tile=tiles.up, alpha=clamped.alpha if clamped else 0.0, limit=clamped.limit if clamped else 0.0,
        **_given(gate_up_proj, tiles), **common,
    )  # fmt: skip
    _down_kernel[(num_blocks, triton.cdiv(size, tiles.down))](
        activated,
        bias=clamped.down_bias if clamped else x,
        parts=parts,
        tile=tiles.down,
        **_given(down_proj, tiles),
        **common,
    )
    return _summed(parts, weights, shared, shared_gate)


def _tiles(num_tokens: int, in_codes: bool) -> Tiles:
    """The fastest measured on an H200: benchmarks/results/h200/experts.jsonl."""
    if num_tokens > NUM_EXACT:
        return _PROMPTS
    if not in_codes:
        return _DECODING
    if num_tokens == 1:
        return _ONE_TOKEN_CODES
    # No expert has more pairs than there are tokens.
    return replace(_DECODING_CODES, rows=8) if num_tokens <= 8 else _DECODING_CODES


def _codes(weight: Tensor | QuantizedWeight) -> Tensor:
    return weight if isinstance(weight, Tensor) else weight.codes


def _given(weight: Tensor | QuantizedWeight, tiles: Tiles) -> dict[str, object]:
    """What kernels are given of ``weight``, by name; 4-bit codes are read by whole chunks."""
    found = {"inner": tiles.inner, "scale_step": 1, **settings(weight)}
    if isinstance(weight, Tensor):
        return found | {"weight": weight, "scales": weight, "zeros": weight, "group": 1}
    zeros = weight.scales if weight.zeros is None else weight.zeros
    assert not weight.tiled
    assert not weight.is_paired
    assert weight.scales.is_contiguous()
    assert zeros.is_contiguous()
    inner = CHUNK if weight.is_packed else tiles.inner
    found |= {"weight": words_of(weight), "inner": inner}
    return found | {"scales": weight.scales, "zeros": zeros, "group": weight.group}


def _summed(parts: Tensor, weights: Tensor, shared: Tensor | None, shared_gate: Tensor | None) -> Tensor:
    (num_tokens, top_k), size = weights.shape, parts.shape[1]
    out = torch.empty((num_tokens, size), dtype=parts.dtype, device=parts.device)
    added, gate = (parts, parts) if shared is None or shared_gate is None else (shared, shared_gate)
    assert added.stride(1) == 1, "a token's elements lie side by side"
    _sum_kernel[(num_tokens, triton.cdiv(size, SUM_TILE))](
        parts, weights, added, gate, out, added.stride(0), gate.stride(0),
        has_shared=shared is not None, top_k=top_k, size=size, tile=SUM_TILE, num_warps=2, enable_fp_fusion=False,
    )  # fmt: skip
    return out
