"""What stands between matrix products, in one launch each, with the roundings of the PyTorch functions they replace.

A step of a few tokens takes as long as its launches: a sum with the norm behind it, a gate, and all that happens to
queries, keys and values on their way to attention. A token's bits do not depend on the tokens beside it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

GATE_TILE = 1024  # elements of a program that gates
ROPE_TILE = 1024  # of one that rotates heads without norms
HEADS_TILE = 2  # heads of a program that gates normed ones: with more there are too few programs of one token


@triton.jit  # type: ignore[untyped-decorator]
def _norm_scale(x, size: tl.constexpr, eps: tl.constexpr):  # type: ignore[no-untyped-def]
    """What RMSNorm multiplies ``x`` (float32, zeros behind its ``size`` elements) with."""
    return tl.rsqrt(tl.sum(x * x, 0) / size + eps)


@triton.jit  # type: ignore[untyped-decorator]
def _norm_weight(weight, at, there, zero_centered: tl.constexpr):  # type: ignore[no-untyped-def]
    loaded = tl.load(weight + at, there, 0.0).to(tl.float32)
    return 1.0 + loaded if zero_centered else loaded


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm_kernel(  # type: ignore[no-untyped-def]
    x, residual, weight, normed, total, x_token, residual_token,
    eps: tl.constexpr, zero_centered: tl.constexpr, size: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    token, at = tl.program_id(0).to(tl.int64), tl.arange(0, tile)
    there = at < size
    # First, for no load passes the sum's barriers: what the layers' matrices pushed out of the L2 takes longest.
    scale = _norm_weight(weight, at, there, zero_centered)
    added = tl.load(x + token * x_token + at, there, 0.0)
    before = tl.load(residual + token * residual_token + at, there, 0.0)
    after = (before.to(tl.float32) + added.to(tl.float32)).to(added.dtype)
    tl.store(total + token * size + at, after, there)
    wide = after.to(tl.float32)
    result = wide * _norm_scale(wide, size, eps) * scale
    tl.store(normed + token * size + at, result.to(added.dtype), there)


@triton.jit  # type: ignore[untyped-decorator]
def _silu_mul_kernel(  # type: ignore[no-untyped-def]
    gate_up, out, token_stride, size: tl.constexpr, tile: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * tile + tl.arange(0, tile)
    there = at < size
    gate = tl.load(gate_up + token * token_stride + at, there, 0.0)
    up = tl.load(gate_up + token * token_stride + size + at, there, 0.0)
    wide = gate.to(tl.float32)
    activated = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype).to(tl.float32)
    tl.store(out + token * size + at, (activated * up.to(tl.float32)).to(gate.dtype), there)


@triton.jit  # type: ignore[untyped-decorator]
def _normed_and_rotated(  # type: ignore[no-untyped-def]
    x, weight, cos, sin, eps: tl.constexpr, zero_centered: tl.constexpr, has_norm: tl.constexpr,
    head_dim: tl.constexpr, rotary_dim: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """One head after norm and ops/rope.rotate: each element needs the one half a rotation away."""
    dim = tl.arange(0, tile)
    there, turns = dim < head_dim, dim < rotary_dim
    half: tl.constexpr = rotary_dim // 2
    other = tl.where(dim < half, dim + half, dim - half)
    loaded = tl.load(x + dim, there, 0.0)
    dtype: tl.constexpr = loaded.dtype
    value, partner = loaded.to(tl.float32), tl.load(x + other, turns, 0.0).to(tl.float32)
    if has_norm:
        scale = _norm_scale(value, head_dim, eps)
        partner = partner * scale * _norm_weight(weight, other, turns, zero_centered)
        value = value * scale * _norm_weight(weight, dim, there, zero_centered)
        value, partner = value.to(dtype).to(tl.float32), partner.to(dtype).to(tl.float32)
    partner = tl.where(dim < half, -partner, partner)
    along = (value * tl.load(cos + dim, turns, 0.0).to(tl.float32)).to(dtype).to(tl.float32)
    across = (partner * tl.load(sin + dim, turns, 0.0).to(tl.float32)).to(dtype).to(tl.float32)
    return tl.where(turns, along + across, value).to(dtype)


@triton.jit  # type: ignore[untyped-decorator]
def _norm_rope_store_kernel(  # type: ignore[no-untyped-def]
    q, k, v, q_weight, k_weight, cos, sin, pages, slot_mapping, out,
    q_token, q_head, k_token, k_head, v_token, v_head, cos_token, sin_token, slot, side,
    eps: tl.constexpr, zero_centered: tl.constexpr, has_q_norm: tl.constexpr, has_k_norm: tl.constexpr,
    heads: tl.constexpr, kv_heads: tl.constexpr,
    head_dim: tl.constexpr, rotary_dim: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    token, head, dim = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, tile)
    there = dim < head_dim
    cos += token * cos_token
    sin += token * sin_token
    if head < heads:
        turned = _normed_and_rotated(
            q + token * q_token + head * q_head, q_weight, cos, sin,
            eps, zero_centered, has_q_norm, head_dim, rotary_dim, tile,
        )  # fmt: skip
        tl.store(out + (token * heads + head) * head_dim + dim, turned, there)
    else:
        stored = pages + tl.load(slot_mapping + token) * slot + dim
        kv_head = (head - heads) % kv_heads
        if head < heads + kv_heads:
            turned = _normed_and_rotated(
                k + token * k_token + kv_head * k_head, k_weight, cos, sin,
                eps, zero_centered, has_k_norm, head_dim, rotary_dim, tile,
            )  # fmt: skip
            tl.store(stored + kv_head * head_dim, turned, there)
        else:
            value = tl.load(v + token * v_token + kv_head * v_head + dim, there)
            tl.store(stored + side + kv_head * head_dim, value, there)


@triton.jit  # type: ignore[untyped-decorator]
def _rope_store_kernel(  # type: ignore[no-untyped-def]
    q, k, v, cos, sin, pages, slot_mapping, out,
    q_token, q_head, k_token, k_head, v_token, v_head, cos_token, sin_token, slot, side,
    heads: tl.constexpr, kv_heads: tl.constexpr, heads_tile: tl.constexpr,
    head_dim: tl.constexpr, rotary_dim: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """As :func:`_norm_rope_store_kernel` without norms: no sum ties a program to one head."""
    token, dim = tl.program_id(0).to(tl.int64), tl.arange(0, tile)[None, :]
    number = (tl.program_id(1) * heads_tile + tl.arange(0, heads_tile))[:, None]
    kv_head = (number - heads) % kv_heads
    is_dim, is_q = dim < head_dim, number < heads
    is_k = (number < heads + kv_heads) & (number >= heads)
    is_v = (number < heads + 2 * kv_heads) & (number >= heads + kv_heads)
    half: tl.constexpr = rotary_dim // 2
    other = tl.where(dim < half, dim + half, dim - half)
    q += token * q_token + number * q_head
    k += token * k_token + kv_head * k_head
    # Where each lies is said for itself: so neighbours are loaded together.
    x = tl.where(is_q, tl.load(q + dim, is_q & is_dim, 0.0), tl.load(k + dim, is_k & is_dim, 0.0))
    x = tl.where(is_v, tl.load(v + token * v_token + kv_head * v_head + dim, is_v & is_dim, 0.0), x)
    dtype: tl.constexpr = x.dtype
    turns = dim < rotary_dim
    partner = tl.where(is_q, tl.load(q + other, is_q & turns, 0.0), tl.load(k + other, is_k & turns, 0.0))
    partner = partner.to(tl.float32)
    partner = tl.where(dim < half, -partner, partner)
    across = tl.load(cos + token * cos_token + dim, turns, 0.0).to(tl.float32)
    along = tl.load(sin + token * sin_token + dim, turns, 0.0).to(tl.float32)
    turned = (x.to(tl.float32) * across).to(dtype).to(tl.float32)
    turned += (partner * along).to(dtype).to(tl.float32)
    found = tl.where((is_q | is_k) & turns, turned.to(dtype), x)
    tl.store(out + (token * heads + number) * head_dim + dim, found, is_q & is_dim)
    stored = pages + tl.load(slot_mapping + token) * slot + kv_head * head_dim + dim
    tl.store(stored, found, is_k & is_dim)
    tl.store(stored + side, found, is_v & is_dim)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, zero_centered: bool
) -> tuple[Tensor, Tensor]:
    """``total = residual + x`` and its RMSNorm, as ``(normed, total)``, both new; all [tokens, size].

    ``weight`` [size]; ``zero_centered``: it is stored as its distance from 1 (ops/norm.py).
    """
    num_tokens, size = x.shape
    assert (x.stride(1), residual.stride(1)) == (1, 1), "a token's elements lie side by side"
    normed, total = (torch.empty((num_tokens, size), dtype=x.dtype, device=x.device) for _ in range(2))
    tile = triton.next_power_of_2(size)
    _add_norm_kernel[(num_tokens,)](
        x, residual, weight, normed, total, x.stride(0), residual.stride(0),
        eps=eps, zero_centered=zero_centered, size=size, tile=tile,
        num_warps=min(max(tile // 512, 1), 16), enable_fp_fusion=False,
    )  # fmt: skip
    return normed, total


def silu_mul(gate_up: Tensor) -> Tensor:
    """``F.silu(gate) * up`` [tokens, size] of ``gate_up`` [tokens, 2 size], gates first."""
    num_tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    assert gate_up.stride(1) == 1, "a token's elements lie side by side"
    out = torch.empty((num_tokens, size), dtype=gate_up.dtype, device=gate_up.device)
    _silu_mul_kernel[(num_tokens, triton.cdiv(size, GATE_TILE))](
        gate_up, out, gate_up.stride(0), size=size, tile=GATE_TILE, num_warps=4, enable_fp_fusion=False
    )
    return out


def norm_rope_store(
    q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor | None,
    eps: float, zero_centered: bool, cos: Tensor, sin: Tensor, pages: Tensor, slot_mapping: Tensor,
) -> Tensor:  # fmt: skip
    """Queries normed and rotated, a new tensor [tokens, heads, head_dim]; keys likewise and values go to ``pages``.

    ``q`` [tokens, heads, head_dim], ``k``, ``v`` [tokens, kv_heads, head_dim] may be slices of wider tensors (a
    [query | gate] of each head: its first half). ``q_weight``, ``k_weight`` [head_dim]; None: no norm. ``cos``,
    ``sin`` [tokens, rotary_dim], rotary_dim at most head_dim. ``pages`` [num_slots, 2 (k, v), kv_heads, head_dim] is
    one layer of a paged cache, a token's slot in it ``slot_mapping`` [tokens] int64, no two alike.
    """
    num_tokens, heads, head_dim = q.shape
    kv_heads, rotary_dim = k.shape[1], cos.shape[-1]
    assert {x.stride(-1) for x in (q, k, v, cos, sin)} == {1}, "a head's elements lie side by side"
    assert pages.shape[1:] == (2, kv_heads, head_dim)
    assert pages.stride()[2:] == (head_dim, 1), "a token's heads lie side by side"
    out = torch.empty((num_tokens, heads, head_dim), dtype=q.dtype, device=q.device)
    strides = (
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        cos.stride(0),
        sin.stride(0),
        *pages.stride()[:2],
    )
    tile, every = triton.next_power_of_2(head_dim), heads + 2 * kv_heads
    if q_weight is None and k_weight is None:
        heads_tile = max(min(triton.next_power_of_2(every), ROPE_TILE // tile), 1)
        _rope_store_kernel[(num_tokens, triton.cdiv(every, heads_tile))](
            q, k, v, cos, sin, pages, slot_mapping, out, *strides,
            heads=heads, kv_heads=kv_heads, heads_tile=heads_tile, head_dim=head_dim, rotary_dim=rotary_dim,
            tile=tile, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
        return out
    _norm_rope_store_kernel[(num_tokens, every)](
        q, k, v, q if q_weight is None else q_weight, k if k_weight is None else k_weight,
        cos, sin, pages, slot_mapping, out, *strides,
        eps=eps, zero_centered=zero_centered, has_q_norm=q_weight is not None, has_k_norm=k_weight is not None,
        heads=heads, kv_heads=kv_heads, head_dim=head_dim, rotary_dim=rotary_dim,
        tile=tile, num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _sigmoid_mul_kernel(  # type: ignore[no-untyped-def]
    x, gate, out, num_heads, gate_token, gate_head, head_dim: tl.constexpr, tile: tl.constexpr
):
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dim = tl.arange(0, tile)
    there = dim < head_dim
    place = (token * num_heads + head) * head_dim + dim
    value = tl.load(x + place, there, 0.0)
    wide = tl.load(gate + token * gate_token + head * gate_head + dim, there, 0.0).to(tl.float32)
    gated = (1.0 / (1.0 + tl.exp(-wide))).to(value.dtype).to(tl.float32)
    tl.store(out + place, (value.to(tl.float32) * gated).to(value.dtype), there)


def sigmoid_mul(x: Tensor, gate: Tensor) -> Tensor:
    """``x * sigmoid(gate)``, [tokens, heads, head_dim], new; ``gate`` may lie apart but for its last dimension."""
    num_tokens, num_heads, head_dim = x.shape
    assert gate.stride(2) == 1, "a head's elements lie side by side"
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _sigmoid_mul_kernel[(num_tokens, num_heads)](
        x.contiguous(), gate, out, num_heads, gate.stride(0), gate.stride(1),
        head_dim=head_dim, tile=triton.next_power_of_2(head_dim), num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _gated_norm_kernel(  # type: ignore[no-untyped-def]
    out, z, weight, gated, num_heads, out_token, out_head, z_token, z_head, heads,
    eps: tl.constexpr, size: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    number, at = tl.program_id(0) * tile + tl.arange(0, tile), tl.arange(0, size)[None, :]
    there = (number < num_heads)[:, None]
    token, head = (number // heads).to(tl.int64)[:, None], (number % heads)[:, None]
    x = tl.load(out + token * out_token + head * out_head + at, there, 0.0)
    gate = tl.load(z + token * z_token + head * z_head + at, there, 0.0).to(tl.float32)
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 1) / size + eps)[:, None]
    normed = (wide * scale * tl.load(weight + at).to(tl.float32)).to(x.dtype).to(tl.float32)
    result = normed * (gate / (1.0 + tl.exp(-gate)))
    tl.store(gated + number.to(tl.int64)[:, None] * size + at, result.to(x.dtype), there)


def gated_norm(out: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of ``out`` [tokens, heads, value_dim] over value_dim, times silu of ``z``, of that shape: a tensor."""
    num_tokens, heads, size = out.shape
    gated = torch.empty((num_tokens, heads, size), dtype=out.dtype, device=out.device)
    assert (out.stride(2), z.stride(2)) == (1, 1), "value dimensions lie side by side"
    _gated_norm_kernel[(triton.cdiv(num_tokens * heads, HEADS_TILE),)](
        out, z, weight, gated, num_tokens * heads, out.stride(0), out.stride(1), z.stride(0), z.stride(1), heads,
        eps=eps, size=size, tile=HEADS_TILE, num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip
    return gated


@triton.jit  # type: ignore[untyped-decorator]
def _rope_kernel(  # type: ignore[no-untyped-def]
    positions, speeds, cos, sin, factor, half: tl.constexpr, tile: tl.constexpr
):
    token, dim = tl.program_id(0).to(tl.int64), tl.arange(0, tile)
    there = dim < half
    angle = tl.load(positions + token).to(tl.float32) * tl.load(speeds + dim, there, 0.0)
    at = token * 2 * half + dim
    dtype: tl.constexpr = cos.dtype.element_ty
    across = (tl.cos(angle) * factor).to(dtype)
    tl.store(cos + at, across, there)
    tl.store(cos + at + half, across, there)
    along = (tl.sin(angle) * factor).to(dtype)
    tl.store(sin + at, along, there)
    tl.store(sin + at + half, along, there)


def rope_of(positions: Tensor, speeds: Tensor, factor: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [num_tokens, 2 * half] of ``positions`` int64 [num_tokens], as ops/rope.Rotary has them.

    ``speeds`` float32 [half]: radians a position; ``factor`` is put on both.
    """
    half = len(speeds)
    cos, sin = torch.empty(2, len(positions), 2 * half, dtype=dtype, device=positions.device)
    _rope_kernel[(len(positions),)](
        positions.contiguous(), speeds, cos, sin, float(factor), half=half, tile=triton.next_power_of_2(half),
        num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip
    return cos, sin
