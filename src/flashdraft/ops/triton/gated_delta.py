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

from flashdraft.ops.triton.conv_commit import place_of, told_path
from flashdraft.ops.triton.delta_inputs import (
    EXACT,
    Prepared,
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
REGISTERS = 128  # of a commit's thread at most: sixteen programs a multiprocessor, which wait for memory, and no spill


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
def _grown(s0, s1, s2, s3, k, added, decay, quarter: tl.constexpr):  # type: ignore[no-untyped-def]
    """The state after a token with key ``k`` that adds ``added`` [values]."""
    k0, k1, k2, k3 = _quarters(k.to(tl.float32), quarter)
    added = added[None, :]
    s0, s1 = _fma(k0, added, s0 * decay), _fma(k1, added, s1 * decay)
    s2, s3 = _fma(k2, added, s2 * decay), _fma(k3, added, s3 * decay)
    return s0, s1, s2, s3


@triton.jit  # type: ignore[untyped-decorator]
def _update(  # type: ignore[no-untyped-def]
    s0, s1, s2, s3, q, k, v, k_scale, q_scale, qk, decay, beta, quarter: tl.constexpr, values: tl.constexpr
):
    """The state after a token, its output, and what it adds. ``s0`` .. ``s3`` [quarter, values]: of every fourth key.

    The output comes from the state before, so that both products of it are under way together.
    """
    k0, k1, k2, k3 = _quarters(k.to(tl.float32), quarter)
    known = _product(s0, s1, s2, s3, k0, k1, k2, k3, quarter, values)
    q0, q1, q2, q3 = _quarters(q.to(tl.float32), quarter)
    read = _product(s0, s1, s2, s3, q0, q1, q2, q3, quarter, values)
    missing = (v.to(tl.float32) - known * (k_scale * decay)) * beta
    out = read * (q_scale * decay) + missing * qk
    added = missing * k_scale
    s0, s1, s2, s3 = _grown(s0, s1, s2, s3, k, added, decay, quarter)
    return s0, s1, s2, s3, out, added


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
    s0, s1, s2, s3, read, _ = _update(
        s0, s1, s2, s3, q, k, v, k_scale, q_scale, qk, decay, beta, key_dim // 4, values
    )
    tl.store(out + row * out_row + column, read.to(out.dtype.element_ty))
    _store_state(at, s0, s1, s2, s3, value_dim)


@triton.jit  # type: ignore[untyped-decorator]
def _prepared(  # type: ignore[no-untyped-def]
    convolved, scalars, path, t, end, q_at, column, head, y_token, scalar_token,
    heads: tl.constexpr, key_heads: tl.constexpr, key_dim: tl.constexpr, has_path: tl.constexpr,
):  # fmt: skip
    """q, k, v, 1 / |k|, scale / |q|, their product, decay and beta of token ``t``; the last one's from ``end`` on."""
    t = place_of(path, tl.minimum(t, end - 1), has_path)
    y, scalar = convolved + t * y_token, scalars + t * scalar_token
    of_key, of_head = scalar + head // (heads // key_heads), scalar + 3 * key_heads + head
    q, k = tl.load(y + q_at), tl.load(y + q_at + key_heads * key_dim)
    v = tl.load(y + column + 2 * key_heads * key_dim)
    k_scale, q_scale, qk = tl.load(of_key), tl.load(of_key + key_heads), tl.load(of_key + 2 * key_heads)
    return q, k, v, k_scale, q_scale, qk, tl.load(of_head), tl.load(of_head + heads)


@triton.jit  # type: ignore[untyped-decorator]
def _run_tokens(  # type: ignore[no-untyped-def]
    convolved, scalars, added, path, out, s0, s1, s2, s3, head, tile, end, y_token, scalar_token, added_token,
    out_token, heads: tl.constexpr, key_heads: tl.constexpr, key_dim: tl.constexpr, value_dim: tl.constexpr,
    values: tl.constexpr, has_path: tl.constexpr,
):  # fmt: skip
    """Outputs of the tokens 0 .. ``end`` - 1 of one row, or of its ``path``, and what each adds to the state."""
    q_at, column = _places(head, tile, heads, key_heads, key_dim, value_dim, values)
    q, k, v, k_scale, q_scale, qk, decay, beta = _prepared(
        convolved, scalars, path, 0, end, q_at, column, head, y_token, scalar_token,
        heads, key_heads, key_dim, has_path,
    )  # fmt: skip
    # Two tokens a turn: what is loaded ahead need not be moved to where the next turn looks for it.
    for t in tl.range(0, end, loop_unroll_factor=2):
        # Loaded a token ahead: there is much to compute meanwhile.
        q_next, k_next, v_next, next_k_scale, next_q_scale, next_qk, next_decay, next_beta = _prepared(
            convolved, scalars, path, t + 1, end, q_at, column, head, y_token, scalar_token,
            heads, key_heads, key_dim, has_path,
        )  # fmt: skip
        s0, s1, s2, s3, read, more = _update(
            s0, s1, s2, s3, q, k, v, k_scale, q_scale, qk, decay, beta, key_dim // 4, values
        )
        place = place_of(path, t, has_path)
        tl.store(out + place * out_token + column, read.to(out.dtype.element_ty))
        tl.store(added + place * added_token + column, more)
        q, k, v, k_scale, q_scale = q_next, k_next, v_next, next_k_scale, next_q_scale
        qk, decay, beta = next_qk, next_decay, next_beta


@triton.jit  # type: ignore[untyped-decorator]
def _brought(  # type: ignore[no-untyped-def]
    convolved, scalars, added, path, t, end, k_at, column, decay_at, y_token, scalar_token, added_token,
    has_path: tl.constexpr,
):  # fmt: skip
    """k, what is added and decay of token ``t``; the last one's from ``end`` on."""
    t = place_of(path, tl.minimum(t, end - 1), has_path)
    k, more = tl.load(convolved + t * y_token + k_at), tl.load(added + t * added_token + column)
    return k, more, tl.load(scalars + t * scalar_token + decay_at)


@triton.jit  # type: ignore[untyped-decorator]
def _replay_tokens(  # type: ignore[no-untyped-def]
    convolved, scalars, added, path, s0, s1, s2, s3, head, tile, first, end, y_token, scalar_token, added_token,
    heads: tl.constexpr, key_heads: tl.constexpr, key_dim: tl.constexpr, value_dim: tl.constexpr,
    values: tl.constexpr, has_path: tl.constexpr,
):  # fmt: skip
    """The state after the tokens ``first`` .. ``end`` - 1 of one row, or of its ``path``, by what their step added."""
    q_at, column = _places(head, tile, heads, key_heads, key_dim, value_dim, values)
    k_at, decay_at = q_at + key_heads * key_dim, 3 * key_heads + head
    k, more, decay = _brought(
        convolved, scalars, added, path, first, end, k_at, column, decay_at, y_token, scalar_token, added_token,
        has_path,
    )  # fmt: skip
    for t in tl.range(first, end, loop_unroll_factor=2):
        next_k, next_more, next_decay = _brought(
            convolved, scalars, added, path, t + 1, end, k_at, column, decay_at, y_token, scalar_token, added_token,
            has_path,
        )  # fmt: skip
        s0, s1, s2, s3 = _grown(s0, s1, s2, s3, k, more, decay, key_dim // 4)
        k, more, decay = next_k, next_more, next_decay
    return s0, s1, s2, s3


@triton.jit(do_not_specialize=["width", "first_row"])  # type: ignore[untyped-decorator]
def _block_kernel(  # type: ignore[no-untyped-def]
    convolved, scalars, added, firsts, state, slots, out, left_firsts, left_counts, width,
    y_token, scalar_token, added_token, first_row, state_slot, out_row, out_token,
    heads: tl.constexpr, key_heads: tl.constexpr, key_dim: tl.constexpr, value_dim: tl.constexpr,
    values: tl.constexpr, has_left: tl.constexpr,
):  # fmt: skip
    tile, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    slot, first = tl.load(slots + row), tl.load(firsts + row * first_row)
    at = _state_at(state + slot * state_slot, head, tile, key_dim, value_dim, values)
    s0, s1, s2, s3 = _load_state(at, value_dim)
    if has_left:
        count = tl.load(left_counts + row)
        if count > 0:
            left = tl.load(left_firsts + row)
            s0, s1, s2, s3 = _replay_tokens(
                convolved + left * y_token, scalars + left * scalar_token, added + left * added_token, slots,
                s0, s1, s2, s3, head, tile, 0, count, y_token, scalar_token, added_token,
                heads, key_heads, key_dim, value_dim, values, False,
            )  # fmt: skip
            _store_state(at, s0, s1, s2, s3, value_dim)
    _run_tokens(
        convolved + first * y_token, scalars + first * scalar_token, added + first * added_token, slots,
        out + row * out_row, s0, s1, s2, s3, head, tile, width, y_token, scalar_token, added_token, out_token,
        heads, key_heads, key_dim, value_dim, values, False,
    )  # fmt: skip


@triton.jit(do_not_specialize=["first_row"])  # type: ignore[untyped-decorator]
def _tree_kernel(  # type: ignore[no-untyped-def]
    convolved, scalars, added, firsts, state, slots, depths, paths, out,
    y_token, scalar_token, added_token, first_row, state_slot, out_row, out_token,
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
        slot, first = tl.load(slots + row), tl.load(firsts + row * first_row)
        at = _state_at(state + slot * state_slot, head, tile, key_dim, value_dim, values)
        s0, s1, s2, s3 = _load_state(at, value_dim)
        _run_tokens(
            convolved + first * y_token, scalars + first * scalar_token, added + first * added_token,
            paths + place * width, out, s0, s1, s2, s3, head, tile, (depth + 1).to(tl.int32),
            y_token, scalar_token, added_token, out_token,
            heads, key_heads, key_dim, value_dim, values, True,
        )  # fmt: skip


@triton.jit(do_not_specialize=["first_layer", "first_row"])  # type: ignore[untyped-decorator]
def _commit_kernel(  # type: ignore[no-untyped-def]
    convolved, scalars, added, firsts, state, slots, starts, counts, paths, path_len,
    y_token, scalar_token, added_token, first_layer, first_row, state_layer, state_slot,
    heads: tl.constexpr, key_heads: tl.constexpr, key_dim: tl.constexpr, value_dim: tl.constexpr,
    values: tl.constexpr, has_path: tl.constexpr,
):  # fmt: skip
    tiles: tl.constexpr = value_dim // values
    head, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    row, layer = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    start, count = tl.load(starts + row), tl.load(counts + row)
    if count > 0:
        first = tl.load(firsts + layer * first_layer + row * first_row)
        own = state + layer * state_layer + tl.load(slots + row) * state_slot
        at = _state_at(own, head, tile, key_dim, value_dim, values)
        s0, s1, s2, s3 = _load_state(at, value_dim)
        s0, s1, s2, s3 = _replay_tokens(
            convolved + first * y_token, scalars + first * scalar_token, added + first * added_token,
            paths + row * path_len, s0, s1, s2, s3, head, tile, start, start + count,
            y_token, scalar_token, added_token, heads, key_heads, key_dim, value_dim, values, has_path,
        )  # fmt: skip
        _store_state(at, s0, s1, s2, s3, value_dim)


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
    prepared: Prepared, state: Tensor, slots: Tensor, out: Tensor,
    tree: tuple[Tensor, Tensor] | None = None, left: tuple[Tensor, Tensor] | None = None,
) -> None:  # fmt: skip
    """One layer's outputs ``out`` [rows, width, heads, value_dim] of ``prepared`` tokens, which ``state`` has not.

    ``tree``: as in ``gated_delta_prepare``; their width is a power of two. ``left``: of chains, what rounds before left
    to commit: where among the prepared tokens, and how many of each row, int64 [rows] both. These go into ``state``
    first, which is then read once for both, with the bits of :func:`gated_delta_commit`; None: it is only read.
    """
    shape, (rows, width) = constants(prepared.convolved, state), out.shape[:2]
    tokens = *prepared.tokens, prepared.firsts, state, slots
    strides = *prepared.strides, prepared.firsts.stride(0)
    values = min(VALUES, shape["value_dim"])
    if tree is not None:
        assert left is None, "each path would commit what is left, and only one may"
        _tree_kernel[(shape["value_dim"] // values * shape["heads"], width, rows)](
            *tokens, *tree, out, *strides, state.stride(0), *out.stride()[:2],
            **shape, values=values, width=width, **EXACT,
        )  # fmt: skip
        return
    if rows >= MANY_ROWS_OF_BLOCKS:
        values = min(2 * VALUES, shape["value_dim"])
    _block_kernel[(shape["value_dim"] // values, shape["heads"], rows)](
        *tokens, out, *(left or (slots, slots)), width, *strides, state.stride(0), *out.stride()[:2],
        **shape, values=values, has_left=left is not None, **EXACT,
    )  # fmt: skip


def gated_delta_commit(
    prepared: Prepared,
    state: Tensor,
    slots: Tensor,
    starts: Tensor,
    counts: Tensor,
    path: Tensor | None = None,
) -> None:
    """Replay tokens ``starts[row]`` .. ``starts[row] + counts[row]`` - 1 of each row into its states, all layers.

    ``prepared``: tokens of all layers; ``state`` [layers, num_slots, heads, key_dim, value_dim]; ``slots``, ``starts``,
    ``counts`` [rows]. ``path`` int64 [rows, path_len]: token i is the one at place ``path[row, i]``; None: at i. The
    bits are those of steps of one token.
    """
    shape, (num_layers, rows) = constants(prepared.convolved, state), prepared.firsts.shape
    values = min(VALUES, shape["value_dim"])
    _commit_kernel[(shape["value_dim"] // values * shape["heads"], rows, num_layers)](
        *prepared.tokens, prepared.firsts, state, slots, starts, counts, *told_path(path, starts),
        *prepared.strides, *prepared.firsts.stride(), *state.stride()[:2],
        **shape, values=values, has_path=path is not None, maxnreg=REGISTERS, **EXACT,
    )  # fmt: skip
