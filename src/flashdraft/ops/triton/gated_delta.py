"""Gated delta layers on CUDA: convolution, gates, norms and recurrence of all tokens of a block in one launch.

A program has one row, one value head and a tile of its value dimension; its part of the state stays in registers
while it goes from token to token. Every program reduces over the same shapes in the same order, and no product is
fused with a sum unless it is written so: the bits of a token depend neither on the number of rows, nor on the width
of the block, nor on whether it is decoded, verified or committed. Roundings are those of models/qwen3_5.py.

``conv`` holds a sequence's last three inputs, oldest first; a step only reads it. Sequences that have not begun have
zeros there and in ``state``.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

VALUES = 16  # value dimensions of a program
CONV_TILE = 1024  # channels of a program that keeps the convolution's inputs
EXACT = {"num_warps": 1, "enable_fp_fusion": False}  # as written, so that every kernel gives the same bits


@triton.jit
def _tap_weights(weight, channels):  # type: ignore[no-untyped-def]
    """A channel's four weights, oldest first."""
    at = weight + channels * 4
    return (
        tl.load(at).to(tl.float32),
        tl.load(at + 1).to(tl.float32),
        tl.load(at + 2).to(tl.float32),
        tl.load(at + 3).to(tl.float32),
    )


@triton.jit  # type: ignore[untyped-decorator]
def _past_inputs(conv, at, num_channels: tl.constexpr):  # type: ignore[no-untyped-def]
    """The last three inputs, oldest first."""
    return tl.load(conv + at), tl.load(conv + num_channels + at), tl.load(conv + 2 * num_channels + at)


@triton.jit
def _silu_conv(x3, x2, x1, x0, w3, w2, w1, w0):  # type: ignore[no-untyped-def]
    """silu of the convolution, float32, rounded to the inputs' type wherever ops/causal_conv.py rounds."""
    dtype: tl.constexpr = x0.dtype
    total = (x0.to(tl.float32) * w0).to(dtype).to(tl.float32)
    total = (total + (x1.to(tl.float32) * w1).to(dtype).to(tl.float32)).to(dtype).to(tl.float32)
    total = (total + (x2.to(tl.float32) * w2).to(dtype).to(tl.float32)).to(dtype).to(tl.float32)
    total = (total + (x3.to(tl.float32) * w3).to(dtype).to(tl.float32)).to(dtype).to(tl.float32)
    return (total / (1.0 + tl.exp(-total))).to(dtype).to(tl.float32)


@triton.jit
def _unit_length(x):  # type: ignore[no-untyped-def]
    return x * tl.rsqrt(tl.sum(x * x, 0) + 1e-6)


@triton.jit
def _softplus(x):  # type: ignore[no-untyped-def]
    """log(1 + exp(x)) to the last bits: the hardware's logarithm is coarse where its result is small."""
    e = tl.exp(-tl.abs(x))
    s = e / (2.0 + e)  # log(1 + e) = 2 atanh(s), s at most 1/3
    y = s * s
    series = 1.0 / 15
    series = series * y + 1.0 / 13
    series = series * y + 1.0 / 11
    series = series * y + 1.0 / 9
    series = series * y + 1.0 / 7
    series = series * y + 1.0 / 5
    series = series * y + 1.0 / 3
    return tl.maximum(x, 0.0) + 2.0 * (s + s * (series * y))


@triton.jit
def _inputs_of(qkv, a, b, t, end, x_token, gate_token, q_at, k_at, v_at, head):  # type: ignore[no-untyped-def]
    """What token ``t`` brings; the last one's again from ``end`` on."""
    t = tl.minimum(t, end - 1)
    x, gate = qkv + t * x_token, t * gate_token + head
    return tl.load(x + q_at), tl.load(x + k_at), tl.load(x + v_at), tl.load(a + gate), tl.load(b + gate)


@triton.jit  # type: ignore[untyped-decorator]
def _run_tokens(  # type: ignore[no-untyped-def]
    qkv, a, b, weight, a_log, dt_bias, conv, out, state, value_head, tile, first, end,
    x_token, gate_token, out_token,
    heads: tl.constexpr, key_heads: tl.constexpr, key_dim: tl.constexpr, value_dim: tl.constexpr,
    values: tl.constexpr, has_out: tl.constexpr,
):  # fmt: skip
    """The state [key_dim, values] after the tokens ``first`` .. ``end`` - 1 of one row; outputs where wanted."""
    channels: tl.constexpr = 2 * key_heads * key_dim + heads * value_dim
    q_at = value_head // (heads // key_heads) * key_dim + tl.arange(0, key_dim)
    k_at = q_at + key_heads * key_dim
    column = value_head * value_dim + tile * values + tl.arange(0, values)
    v_at = column + 2 * key_heads * key_dim
    wq3, wq2, wq1, wq0 = _tap_weights(weight, q_at)
    wk3, wk2, wk1, wk0 = _tap_weights(weight, k_at)
    wv3, wv2, wv1, wv0 = _tap_weights(weight, v_at)
    q3, q2, q1 = _past_inputs(conv, q_at, channels)
    k3, k2, k1 = _past_inputs(conv, k_at, channels)
    v3, v2, v1 = _past_inputs(conv, v_at, channels)
    fading = -tl.exp(tl.load(a_log + value_head).to(tl.float32))
    bias = tl.load(dt_bias + value_head).to(tl.float32)
    scale: tl.constexpr = key_dim**-0.5
    q0, k0, v0, fade, gate = _inputs_of(
        qkv, a, b, first, end, x_token, gate_token, q_at, k_at, v_at, value_head
    )
    for t in range(first, end):
        # Loaded a token ahead: there is much to compute meanwhile.
        q_next, k_next, v_next, next_fade, next_gate = _inputs_of(
            qkv, a, b, t + 1, end, x_token, gate_token, q_at, k_at, v_at, value_head
        )
        beta = (1.0 / (1.0 + tl.exp(-gate.to(tl.float32)))).to(gate.dtype).to(tl.float32)
        decay = tl.exp(fading * _softplus(fade.to(tl.float32) + bias))
        q = _unit_length(_silu_conv(q3, q2, q1, q0, wq3, wq2, wq1, wq0)) * scale
        k = _unit_length(_silu_conv(k3, k2, k1, k0, wk3, wk2, wk1, wk0))
        v = _silu_conv(v3, v2, v1, v0, wv3, wv2, wv1, wv0)
        state = state * decay
        missing = (v - tl.sum(state * k[:, None], 0)) * beta
        state = tl.fma(
            k[:, None].broadcast_to(state.shape), missing[None, :].broadcast_to(state.shape), state
        )
        if has_out:
            read = tl.sum(state * q[:, None], 0)
            tl.store(out + t * out_token + column, read.to(out.dtype.element_ty))
        q3, q2, q1, q0 = q2, q1, q0, q_next
        k3, k2, k1, k0 = k2, k1, k0, k_next
        v3, v2, v1, v0 = v2, v1, v0, v_next
        fade, gate = next_fade, next_gate
    return state


@triton.jit  # type: ignore[untyped-decorator]
def _state_at(  # type: ignore[no-untyped-def]
    state, head, tile, key_dim: tl.constexpr, value_dim: tl.constexpr, values: tl.constexpr
):
    keys, columns = tl.arange(0, key_dim), tile * values + tl.arange(0, values)
    return state + head * key_dim * value_dim + keys[:, None] * value_dim + columns[None, :]


@triton.jit(do_not_specialize=["width"])  # type: ignore[untyped-decorator]
def _step_kernel(  # type: ignore[no-untyped-def]
    qkv, a, b, weight, a_log, dt_bias, conv, state, slots, out, width,
    x_row, x_token, gate_row, gate_token, conv_slot, state_slot, out_row, out_token,
    heads: tl.constexpr, key_heads: tl.constexpr, key_dim: tl.constexpr, value_dim: tl.constexpr,
    values: tl.constexpr, write_state: tl.constexpr,
):  # fmt: skip
    tile, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    slot = tl.load(slots + row)
    at = _state_at(state + slot * state_slot, head, tile, key_dim, value_dim, values)
    after = _run_tokens(
        qkv + row * x_row, a + row * gate_row, b + row * gate_row, weight, a_log, dt_bias,
        conv + slot * conv_slot, out + row * out_row, tl.load(at), head, tile, 0, width,
        x_token, gate_token, out_token, heads, key_heads, key_dim, value_dim, values, True,
    )  # fmt: skip
    if write_state:
        tl.store(at, after)


@triton.jit  # type: ignore[untyped-decorator]
def _commit_kernel(  # type: ignore[no-untyped-def]
    qkv, a, b, weight, a_log, dt_bias, conv, state, slots, starts, counts,
    x_layer, x_row, x_token, gate_layer, gate_row, gate_token, conv_layer, conv_slot, state_layer, state_slot,
    heads: tl.constexpr, key_heads: tl.constexpr, key_dim: tl.constexpr, value_dim: tl.constexpr,
    values: tl.constexpr,
):  # fmt: skip
    tiles: tl.constexpr = value_dim // values
    head, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    row, layer = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    start, count = tl.load(starts + row), tl.load(counts + row)
    if count > 0:
        slot = tl.load(slots + row)
        at = _state_at(
            state + layer * state_layer + slot * state_slot, head, tile, key_dim, value_dim, values
        )
        channels: tl.constexpr = 2 * key_heads * key_dim + heads * value_dim
        gates = layer * gate_layer + row * gate_row
        after = _run_tokens(
            qkv + layer * x_layer + row * x_row, a + gates, b + gates,
            weight + layer * channels * 4, a_log + layer * heads, dt_bias + layer * heads,
            conv + layer * conv_layer + slot * conv_slot, qkv, tl.load(at), head, tile, start, start + count,
            x_token, gate_token, 0, heads, key_heads, key_dim, value_dim, values, False,
        )  # fmt: skip
        tl.store(at, after)


@triton.jit  # type: ignore[untyped-decorator]
def _conv_kernel(  # type: ignore[no-untyped-def]
    qkv, conv, slots, starts, counts, x_layer, x_row, x_token, conv_layer, conv_slot,
    num_channels: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    row, layer = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    start, count = tl.load(starts + row), tl.load(counts + row)
    if count > 0:
        at = tl.program_id(0) * tile + tl.arange(0, tile)
        there = at < num_channels
        past = conv + layer * conv_layer + tl.load(slots + row) * conv_slot + at
        last = qkv + layer * x_layer + row * x_row + (start + count - 1) * x_token + at
        second = tl.load(past + 2 * num_channels, there)
        third = tl.load(past + num_channels, there)
        if count > 1:
            third, second = second, tl.load(last - x_token, there)
        if count > 2:
            third = tl.load(last - 2 * x_token, there)
        tl.store(past, third, there)
        tl.store(past + num_channels, second, there)
        tl.store(past + 2 * num_channels, tl.load(last, there), there)


@triton.jit  # type: ignore[untyped-decorator]
def _norm_kernel(  # type: ignore[no-untyped-def]
    out, z, weight, gated, out_token, out_head, z_token, z_head, heads, eps: tl.constexpr, size: tl.constexpr
):
    token, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    at = tl.arange(0, size)
    x = tl.load(out + token * out_token + head * out_head + at)
    gate = tl.load(z + token * z_token + head * z_head + at).to(tl.float32)
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / size + eps)
    normed = (wide * scale * tl.load(weight + at).to(tl.float32)).to(x.dtype).to(tl.float32)
    result = normed * (gate / (1.0 + tl.exp(-gate)))
    tl.store(gated + (token * heads + head) * size + at, result.to(x.dtype))


def _shape(qkv: Tensor, a: Tensor, b: Tensor, conv: Tensor, state: Tensor) -> dict[str, int]:
    """The kernels' constants, from one layer's tensors or all layers'."""
    heads, key_dim, value_dim = state.shape[-3:]
    channels = qkv.shape[-1]
    key_heads = (channels - heads * value_dim) // (2 * key_dim)
    assert channels == 2 * key_heads * key_dim + heads * value_dim, "qkv is not [q | k | v] of these heads"
    assert heads % key_heads == 0, "each key head serves as many value heads"
    assert conv.shape[-2:] == (3, channels), "the kernels are for convolutions of width 4"
    assert a.stride() == b.stride(), "a and b are slices of one tensor"
    assert (qkv.stride(-1), a.stride(-1)) == (1, 1), "channels lie side by side"
    assert conv.stride()[-2:] == (channels, 1)
    assert state.stride()[-3:] == (key_dim * value_dim, value_dim, 1)
    return {
        "heads": heads, "key_heads": key_heads, "key_dim": key_dim, "value_dim": value_dim,
        "values": min(VALUES, value_dim),
    }  # fmt: skip


def gated_delta_step(
    qkv: Tensor, a: Tensor, b: Tensor, conv_weight: Tensor, a_log: Tensor, dt_bias: Tensor,
    conv: Tensor, state: Tensor, slots: Tensor, out: Tensor, write_state: bool,
) -> None:  # fmt: skip
    """One layer's outputs ``out`` [rows, width, heads, value_dim] after what is committed in ``slots`` [rows].

    ``qkv`` [rows, width, channels] (channels = q, k of all key heads, then v), ``a``, ``b`` [rows, width, heads], of
    like strides, may be slices of one projection. ``conv_weight`` [channels, 4]; ``a_log``, ``dt_bias`` [heads];
    ``conv`` [num_slots, 3, channels]; ``state`` [num_slots, heads, key_dim, value_dim] float32, dims
    powers of 2 from 16 on.
    ``write_state``: the state after the last token replaces the one before; ``conv`` is left to :func:`conv_commit`.
    """
    shape = _shape(qkv, a, b, conv, state)
    grid = (shape["value_dim"] // shape["values"], shape["heads"], len(qkv))
    _step_kernel[grid](
        qkv, a, b, conv_weight, a_log, dt_bias, conv, state, slots, out, qkv.shape[1],
        qkv.stride(0), qkv.stride(1), a.stride(0), a.stride(1), conv.stride(0), state.stride(0),
        out.stride(0), out.stride(1), **shape, write_state=write_state, **EXACT,
    )  # fmt: skip


def gated_delta_commit(
    qkv: Tensor, a: Tensor, b: Tensor, conv_weight: Tensor, a_log: Tensor, dt_bias: Tensor,
    conv: Tensor, state: Tensor, slots: Tensor, starts: Tensor, counts: Tensor,
) -> None:  # fmt: skip
    """Replay tokens ``starts[row]`` .. ``starts[row] + counts[row]`` - 1 of each row into its states, all layers.

    Shapes as in :func:`gated_delta_step`, each but ``slots``, ``starts`` and ``counts`` [rows] with the layers before
    them. ``conv`` holds the inputs before token ``starts[row]``: :func:`conv_commit` comes after this. The bits are
    those of steps of one token that write their states.
    """
    shape = _shape(qkv, a, b, conv, state)
    grid = (shape["value_dim"] // shape["values"] * shape["heads"], qkv.shape[1], len(qkv))
    _commit_kernel[grid](
        qkv, a, b, conv_weight, a_log, dt_bias, conv, state, slots, starts, counts,
        *qkv.stride()[:3], *a.stride()[:3], conv.stride(0), conv.stride(1), state.stride(0), state.stride(1),
        **shape, **EXACT,
    )  # fmt: skip


def conv_commit(qkv: Tensor, conv: Tensor, slots: Tensor, starts: Tensor, counts: Tensor) -> None:
    """Append the inputs of the same tokens to ``conv`` [layers, num_slots, 3, channels], its last three, all layers."""
    num_layers, rows, _, channels = qkv.shape
    _conv_kernel[(triton.cdiv(channels, CONV_TILE), rows, num_layers)](
        qkv, conv, slots, starts, counts, *qkv.stride()[:3], conv.stride(0), conv.stride(1),
        num_channels=channels, tile=CONV_TILE, num_warps=4,
    )  # fmt: skip


def gated_norm(out: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of ``out`` [tokens, heads, value_dim] over value_dim, times silu of ``z``, of that shape: a tensor."""
    num_tokens, heads, size = out.shape
    gated = torch.empty((num_tokens, heads, size), dtype=out.dtype, device=out.device)
    assert (out.stride(2), z.stride(2)) == (1, 1), "value dimensions lie side by side"
    _norm_kernel[(num_tokens * heads,)](
        out, z, weight, gated, out.stride(0), out.stride(1), z.stride(0), z.stride(1), heads,
        eps=eps, size=size, **EXACT,
    )  # fmt: skip
    return gated
