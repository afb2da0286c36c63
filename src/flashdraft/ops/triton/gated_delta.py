"""Gated delta layers on CUDA. A step of one token a row is one launch: convolution, gates, norms and recurrence.

Of wider blocks all tokens are prepared at once: what they bring (q, k and v behind convolution and silu, lengths,
gates) is kept, and the recurrence, step after step of tokens, only loads it; so does the commit. A program of the
recurrence has one row, one value head and a tile of its value dimension, and keeps its part of the state in registers;
of a tree it has one path as well, from the root to a leaf. Paths share tokens, each of which then has the same bits.

Every sum over key dimensions is written out: halves are added to each other, the state's by fused products of every
fourth key first. No other product is fused with a sum. So the bits of a token depend neither on the number of rows, nor
on the width of the block, nor on the tile, nor on whether it is decoded, verified or committed. Roundings are those of
models/qwen3_5.py; lengths and decays multiply what is summed (S of raw k, times 1/|k|) and not every element.

``conv`` holds a sequence's last three inputs, oldest first; a step only reads it. Sequences that have not begun have
zeros there and in ``state``.
"""

import triton
import triton.language as tl
from torch import Tensor

from flashdraft.ops.triton.delta_inputs import (
    EXACT,
    check_inputs,
    constants,
    conv_of_one,
    gates_of,
    inputs_of_one,
    key_scalars,
    silu_conv,
    sum_by_halves,
)

VALUES = 16  # value dimensions of a program
MANY_ROWS = 4  # of one token, and more: programs have twice as many values, and prepare keys half as often
MANY_ROWS_OF_BLOCKS = 16  # of blocks: likewise
FEW_ROWS = 8  # no more: programs load all they need first, for they wait for memory more than they compute
REGISTERS = 168  # of a commit's thread at most: told so, ptxas takes 128 without a spill, else 151
CONV_TILE = 1024  # channels of a program that keeps the convolution's inputs


@triton.jit  # type: ignore[untyped-decorator]
def _quarters(x, quarter: tl.constexpr):  # type: ignore[no-untyped-def]
    """The four columns of ``x`` [quarter, 4]."""
    even, odd = tl.split(tl.reshape(x, (quarter, 2, 2)))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0[:, None], x1[:, None], x2[:, None], x3[:, None]


@triton.jit
def _fma(x, y, z):  # type: ignore[no-untyped-def]
    return tl.fma(x.broadcast_to(z.shape), y.broadcast_to(z.shape), z)


@triton.jit  # type: ignore[untyped-decorator]
def _product(s0, s1, s2, s3, x0, x1, x2, x3, quarter: tl.constexpr, values: tl.constexpr):  # type: ignore[no-untyped-def]
    """The state's product with a key or query: [values]."""
    return sum_by_halves(_fma(s3, x3, _fma(s2, x2, _fma(s1, x1, s0 * x0))), quarter, values)


@triton.jit  # type: ignore[untyped-decorator]
def _update(  # type: ignore[no-untyped-def]
    s0, s1, s2, s3, q, k, v, k_scale, q_scale, qk, decay, beta,
    quarter: tl.constexpr, values: tl.constexpr, has_out: tl.constexpr,
):  # fmt: skip
    """The state after a token and its output. ``s0`` .. ``s3`` [quarter, values]: the state of every fourth key.

    The output comes from the state before, so that both products of it are under way together.
    """
    k0, k1, k2, k3 = _quarters(k.to(tl.float32), quarter)
    known = _product(s0, s1, s2, s3, k0, k1, k2, k3, quarter, values)
    read = known
    if has_out:
        q0, q1, q2, q3 = _quarters(q.to(tl.float32), quarter)
        read = _product(s0, s1, s2, s3, q0, q1, q2, q3, quarter, values)
    missing = (v.to(tl.float32) - known * (k_scale * decay)) * beta
    out = read * (q_scale * decay) + missing * qk
    added = (missing * k_scale)[None, :]
    s0, s1 = _fma(k0, added, s0 * decay), _fma(k1, added, s1 * decay)
    s2, s3 = _fma(k2, added, s2 * decay), _fma(k3, added, s3 * decay)
    return s0, s1, s2, s3, out


@triton.jit  # type: ignore[untyped-decorator]
def _places(  # type: ignore[no-untyped-def]
    value_head, tile, heads: tl.constexpr, key_heads: tl.constexpr, key_dim: tl.constexpr,
    value_dim: tl.constexpr, values: tl.constexpr,
):  # fmt: skip
    """Where a program's keys [key_dim / 4, 4] and values [values] are among those of their kind."""
    keys = tl.arange(0, key_dim // 4)[:, None] * 4 + tl.arange(0, 4)[None, :]
    key_head = value_head // (heads // key_heads)
    return key_head * key_dim + keys, value_head * value_dim + tile * values + tl.arange(0, values)


@triton.jit  # type: ignore[untyped-decorator]
def _state_at(  # type: ignore[no-untyped-def]
    state, head, tile, key_dim: tl.constexpr, value_dim: tl.constexpr, values: tl.constexpr
):
    """Of every fourth key, from the first on; the next ones' are a row behind."""
    keys, columns = 4 * tl.arange(0, key_dim // 4), tile * values + tl.arange(0, values)
    return state + head * key_dim * value_dim + keys[:, None] * value_dim + columns[None, :]


@triton.jit  # type: ignore[untyped-decorator]
def _load_state(at, row: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.load(at), tl.load(at + row), tl.load(at + 2 * row), tl.load(at + 3 * row)


@triton.jit  # type: ignore[untyped-decorator]
def _store_state(at, s0, s1, s2, s3, row: tl.constexpr):  # type: ignore[no-untyped-def]
    tl.store(at, s0)
    tl.store(at + row, s1)
    tl.store(at + 2 * row, s2)
    tl.store(at + 3 * row, s3)


@triton.jit  # type: ignore[untyped-decorator]
def _step_kernel(  # type: ignore[no-untyped-def]
    qkv, a, b, weight, a_log, dt_bias, conv, state, slots, out,
    x_row, gate_row, conv_slot, state_slot, out_row,
    heads: tl.constexpr, key_heads: tl.constexpr, key_dim: tl.constexpr, value_dim: tl.constexpr,
    values: tl.constexpr, loads_first: tl.constexpr,
):  # fmt: skip
    tile, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    slot = tl.load(slots + row)
    at = _state_at(state + slot * state_slot, head, tile, key_dim, value_dim, values)
    channels: tl.constexpr = 2 * key_heads * key_dim + heads * value_dim
    q_at, column = _places(head, tile, heads, key_heads, key_dim, value_dim, values)
    k_at, v_at = q_at + key_heads * key_dim, column + 2 * key_heads * key_dim
    x, past, gate = qkv + row * x_row, conv + slot * conv_slot, row * gate_row + head
    if loads_first:  # before the first use of any: the compiler waits for memory twice, and else four times
        q3, q2, q1, q0, qw3, qw2, qw1, qw0 = inputs_of_one(x, weight, past, q_at, channels)
        k3, k2, k1, k0, kw3, kw2, kw1, kw0 = inputs_of_one(x, weight, past, k_at, channels)
        v3, v2, v1, v0, vw3, vw2, vw1, vw0 = inputs_of_one(x, weight, past, v_at, channels)
        fading, asked = tl.load(a + gate), tl.load(b + gate)
        log, bias = tl.load(a_log + head), tl.load(dt_bias + head)
        s0, s1, s2, s3 = _load_state(at, value_dim)
        q = silu_conv(q3, q2, q1, q0, qw3, qw2, qw1, qw0)
        k = silu_conv(k3, k2, k1, k0, kw3, kw2, kw1, kw0)
        v = silu_conv(v3, v2, v1, v0, vw3, vw2, vw1, vw0)
        decay, beta = gates_of(fading, asked, log, bias)
    else:
        s0, s1, s2, s3 = _load_state(at, value_dim)
        q = conv_of_one(x, weight, past, q_at, channels)
        k = conv_of_one(x, weight, past, k_at, channels)
        v = conv_of_one(x, weight, past, v_at, channels)
        decay, beta = gates_of(
            tl.load(a + gate), tl.load(b + gate), tl.load(a_log + head), tl.load(dt_bias + head)
        )
    k_scale, q_scale, qk = key_scalars(q, k, key_dim, 1)
    s0, s1, s2, s3, read = _update(
        s0, s1, s2, s3, q, k, v, k_scale, q_scale, qk, decay, beta, key_dim // 4, values, True
    )
    tl.store(out + row * out_row + column, read.to(out.dtype.element_ty))
    _store_state(at, s0, s1, s2, s3, value_dim)


@triton.jit  # type: ignore[untyped-decorator]
def _place(path, number, has_path: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where token ``number`` of a row, or of one path of its tree, stands in the row."""
    place = number
    if has_path:
        place = tl.load(path + number)
    return place


@triton.jit  # type: ignore[untyped-decorator]
def _prepared(  # type: ignore[no-untyped-def]
    convolved, scalars, path, t, end, q_at, column, head, y_token, scalar_token, heads: tl.constexpr,
    key_heads: tl.constexpr, key_dim: tl.constexpr, has_path: tl.constexpr, has_out: tl.constexpr,
):  # fmt: skip
    """q, k, v, 1 / |k|, scale / |q|, their product, decay and beta of token ``t``; the last one's from ``end`` on."""
    t = _place(path, tl.minimum(t, end - 1), has_path)
    y, scalar = convolved + t * y_token, scalars + t * scalar_token
    of_key = scalar + head // (heads // key_heads)
    k = tl.load(y + q_at + key_heads * key_dim)
    v = tl.load(y + column + 2 * key_heads * key_dim)
    q, q_scale, qk = k, 0.0, 0.0
    if has_out:
        q, q_scale, qk = tl.load(y + q_at), tl.load(of_key + key_heads), tl.load(of_key + 2 * key_heads)
    scalar += 3 * key_heads + head
    return q, k, v, tl.load(of_key), q_scale, qk, tl.load(scalar), tl.load(scalar + heads)


@triton.jit  # type: ignore[untyped-decorator]
def _run_tokens(  # type: ignore[no-untyped-def]
    convolved, scalars, path, out, s0, s1, s2, s3, head, tile, first, end, y_token, scalar_token, out_token,
    heads: tl.constexpr, key_heads: tl.constexpr, key_dim: tl.constexpr, value_dim: tl.constexpr,
    values: tl.constexpr, has_path: tl.constexpr, has_out: tl.constexpr,
):  # fmt: skip
    """The state after the tokens ``first`` .. ``end`` - 1 of one row, or of its ``path``; outputs where wanted."""
    q_at, column = _places(head, tile, heads, key_heads, key_dim, value_dim, values)
    q, k, v, k_scale, q_scale, qk, decay, beta = _prepared(
        convolved, scalars, path, first, end, q_at, column, head, y_token, scalar_token,
        heads, key_heads, key_dim, has_path, has_out,
    )  # fmt: skip
    # Two tokens a turn: what is loaded ahead need not be moved to where the next turn looks for it.
    for t in tl.range(first, end, loop_unroll_factor=2):
        # Loaded a token ahead: there is much to compute meanwhile.
        q_next, k_next, v_next, next_k_scale, next_q_scale, next_qk, next_decay, next_beta = _prepared(
            convolved, scalars, path, t + 1, end, q_at, column, head, y_token, scalar_token,
            heads, key_heads, key_dim, has_path, has_out,
        )  # fmt: skip
        s0, s1, s2, s3, read = _update(
            s0, s1, s2, s3, q, k, v, k_scale, q_scale, qk, decay, beta, key_dim // 4, values, has_out
        )
        if has_out:
            tl.store(out + _place(path, t, has_path) * out_token + column, read.to(out.dtype.element_ty))
        q, k, v, k_scale, q_scale = q_next, k_next, v_next, next_k_scale, next_q_scale
        qk, decay, beta = next_qk, next_decay, next_beta
    return s0, s1, s2, s3


@triton.jit(do_not_specialize=["width"])  # type: ignore[untyped-decorator]
def _block_kernel(  # type: ignore[no-untyped-def]
    convolved, scalars, state, slots, out, width,
    y_row, y_token, scalar_row, scalar_token, state_slot, out_row, out_token,
    heads: tl.constexpr, key_heads: tl.constexpr, key_dim: tl.constexpr, value_dim: tl.constexpr,
    values: tl.constexpr,
):  # fmt: skip
    tile, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    slot = tl.load(slots + row)
    at = _state_at(state + slot * state_slot, head, tile, key_dim, value_dim, values)
    s0, s1, s2, s3 = _load_state(at, value_dim)
    _run_tokens(
        convolved + row * y_row, scalars + row * scalar_row, slots, out + row * out_row,
        s0, s1, s2, s3, head, tile, 0, width, y_token, scalar_token, out_token,
        heads, key_heads, key_dim, value_dim, values, False, True,
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _tree_kernel(  # type: ignore[no-untyped-def]
    convolved, scalars, state, slots, depths, paths, out,
    y_row, y_token, scalar_row, scalar_token, state_slot, out_row, out_token,
    heads: tl.constexpr, key_heads: tl.constexpr, key_dim: tl.constexpr, value_dim: tl.constexpr,
    values: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    tiles: tl.constexpr = value_dim // values
    head, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    place, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    depths += row * width
    paths += row * width * width
    out += row * out_row
    depth, others = tl.load(depths + place), tl.arange(0, width)
    is_deeper = tl.load(depths + others) > depth
    is_behind = is_deeper & (tl.load(paths + others * width + depth, is_deeper, -1) == place)
    if (depth == 0) & (place > 0):  # padding, which has to be finite
        column = head * value_dim + tile * values + tl.arange(0, values)
        tl.store(out + place * out_token + column, tl.zeros([values], out.dtype.element_ty))
    elif tl.sum(is_behind.to(tl.int32), 0) == 0:
        slot = tl.load(slots + row)
        at = _state_at(state + slot * state_slot, head, tile, key_dim, value_dim, values)
        s0, s1, s2, s3 = _load_state(at, value_dim)
        _run_tokens(
            convolved + row * y_row, scalars + row * scalar_row, paths + place * width, out,
            s0, s1, s2, s3, head, tile, 0, (depth + 1).to(tl.int32), y_token, scalar_token, out_token,
            heads, key_heads, key_dim, value_dim, values, True, True,
        )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _commit_kernel(  # type: ignore[no-untyped-def]
    convolved, scalars, state, slots, starts, counts, paths, path_len,
    y_layer, y_row, y_token, scalar_layer, scalar_row, scalar_token, state_layer, state_slot,
    heads: tl.constexpr, key_heads: tl.constexpr, key_dim: tl.constexpr, value_dim: tl.constexpr,
    values: tl.constexpr, has_path: tl.constexpr,
):  # fmt: skip
    tiles: tl.constexpr = value_dim // values
    head, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    row, layer = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    start, count = tl.load(starts + row), tl.load(counts + row)
    if count > 0:
        own = state + layer * state_layer + tl.load(slots + row) * state_slot
        at = _state_at(own, head, tile, key_dim, value_dim, values)
        s0, s1, s2, s3 = _load_state(at, value_dim)
        s0, s1, s2, s3 = _run_tokens(
            convolved + layer * y_layer + row * y_row, scalars + layer * scalar_layer + row * scalar_row,
            paths + row * path_len, scalars, s0, s1, s2, s3, head, tile, start, start + count,
            y_token, scalar_token, 0, heads, key_heads, key_dim, value_dim, values, has_path, False,
        )  # fmt: skip
        _store_state(at, s0, s1, s2, s3, value_dim)


@triton.jit  # type: ignore[untyped-decorator]
def _conv_kernel(  # type: ignore[no-untyped-def]
    qkv, conv, slots, starts, counts, paths, path_len, x_layer, x_row, x_token, conv_layer, conv_slot,
    num_channels: tl.constexpr, tile: tl.constexpr, has_path: tl.constexpr,
):  # fmt: skip
    row, layer = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    start, count = tl.load(starts + row), tl.load(counts + row)
    if count > 0:
        at = tl.program_id(0) * tile + tl.arange(0, tile)
        there = at < num_channels
        past = conv + layer * conv_layer + tl.load(slots + row) * conv_slot + at
        x, path, last = qkv + layer * x_layer + row * x_row + at, paths + row * path_len, start + count - 1
        second = tl.load(past + 2 * num_channels, there)
        third = tl.load(past + num_channels, there)
        if count > 1:
            third, second = second, tl.load(x + _place(path, last - 1, has_path) * x_token, there)
        if count > 2:
            third = tl.load(x + _place(path, last - 2, has_path) * x_token, there)
        tl.store(past, third, there)
        tl.store(past + num_channels, second, there)
        newest = tl.load(x + _place(path, last, has_path) * x_token, there)
        tl.store(past + 2 * num_channels, newest, there)


def gated_delta_step(
    qkv: Tensor, a: Tensor, b: Tensor, conv_weight: Tensor, a_log: Tensor, dt_bias: Tensor,
    conv: Tensor, state: Tensor, slots: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """One layer's outputs ``out`` [rows, 1, heads, value_dim] of one token a row, which goes into ``state``.

    ``qkv`` [rows, 1, channels] (channels = q, k of all key heads, then v), ``a``, ``b`` [rows, 1, heads], of
    like strides, may be slices of one projection. ``conv_weight`` [channels, 4]; ``a_log``, ``dt_bias`` [heads];
    ``conv`` [num_slots, 3, channels], left to :func:`conv_commit`; ``state`` [num_slots, heads, key_dim, value_dim]
    float32, dims powers of 2 from 16 on; ``slots`` [rows]: each row's place in both.
    """
    shape, (rows, width, _) = constants(qkv, state), qkv.shape
    assert width == 1, "wider blocks are prepared first"
    check_inputs(qkv, a, b, conv)
    values = min(VALUES if rows < MANY_ROWS else 2 * VALUES, shape["value_dim"])
    _step_kernel[(shape["value_dim"] // values, shape["heads"], rows)](
        qkv, a, b, conv_weight, a_log, dt_bias, conv, state, slots, out,
        qkv.stride(0), a.stride(0), conv.stride(0), state.stride(0), out.stride(0), **shape,
        values=values, loads_first=rows <= FEW_ROWS, **EXACT,
    )  # fmt: skip


def gated_delta_block(
    convolved: Tensor, scalars: Tensor, state: Tensor, slots: Tensor, out: Tensor,
    tree: tuple[Tensor, Tensor] | None = None,
) -> None:  # fmt: skip
    """One layer's outputs ``out`` [rows, width, heads, value_dim] of prepared tokens; ``state`` is only read.

    ``tree``: as in ``gated_delta_prepare``; their width is a power of two.
    """
    shape, (rows, width, _) = constants(convolved, state), convolved.shape
    values = min(VALUES, shape["value_dim"])
    if tree is not None:
        _tree_kernel[(shape["value_dim"] // values * shape["heads"], width, rows)](
            convolved, scalars, state, slots, *tree, out, *convolved.stride()[:2], *scalars.stride()[:2],
            state.stride(0), *out.stride()[:2], **shape, values=values, width=width, **EXACT,
        )  # fmt: skip
        return
    if rows >= MANY_ROWS_OF_BLOCKS:
        values = min(2 * VALUES, shape["value_dim"])
    _block_kernel[(shape["value_dim"] // values, shape["heads"], rows)](
        convolved, scalars, state, slots, out, width, *convolved.stride()[:2], *scalars.stride()[:2],
        state.stride(0), *out.stride()[:2], **shape, values=values, **EXACT,
    )  # fmt: skip


def gated_delta_commit(
    convolved: Tensor, scalars: Tensor, state: Tensor, slots: Tensor, starts: Tensor, counts: Tensor,
    path: Tensor | None = None,
) -> None:  # fmt: skip
    """Replay tokens ``starts[row]`` .. ``starts[row] + counts[row]`` - 1 of each row into its states, all layers.

    ``convolved`` [layers, rows, width, channels] and ``scalars`` [layers, rows, width, num_scalars] as
    ``gated_delta_prepare`` left them; ``state`` [layers, num_slots, heads, key_dim, value_dim]; ``slots``, ``starts``,
    ``counts`` [rows]. ``path`` int64 [rows, path_len]: token i is the one at place ``path[row, i]``; None: at i. The
    bits are those of steps of one token.
    """
    shape = constants(convolved, state)
    num_layers, rows, _, _ = convolved.shape
    values = min(VALUES, shape["value_dim"])
    _commit_kernel[(shape["value_dim"] // values * shape["heads"], rows, num_layers)](
        convolved, scalars, state, slots, starts, counts, *_told_path(path, starts),
        *convolved.stride()[:3], *scalars.stride()[:3], *state.stride()[:2],
        **shape, values=values, has_path=path is not None, maxnreg=REGISTERS, **EXACT,
    )  # fmt: skip


def _told_path(path: Tensor | None, like: Tensor) -> tuple[Tensor, int]:
    """A path and its length as kernels take them; without one, whatever tensor."""
    return (like, 0) if path is None else (path, path.stride(0))


def conv_commit(
    qkv: Tensor, conv: Tensor, slots: Tensor, starts: Tensor, counts: Tensor, path: Tensor | None = None
) -> None:
    """Append the inputs of the same tokens to ``conv`` [layers, num_slots, 3, channels], its last three, all layers."""
    num_layers, rows, _, channels = qkv.shape
    _conv_kernel[(triton.cdiv(channels, CONV_TILE), rows, num_layers)](
        qkv, conv, slots, starts, counts, *_told_path(path, starts), *qkv.stride()[:3], *conv.stride()[:2],
        num_channels=channels, tile=CONV_TILE, has_path=path is not None, num_warps=4,
    )  # fmt: skip
