"""What tokens bring to a gated delta layer's recurrence: of a block, all at once, kept for the recurrence to load.

Every sum over key dimensions is written out, halves added to each other, and no product is fused with a sum: the bits
are the same whatever the launch.
"""

import triton
import triton.language as tl
from torch import Tensor

TOKENS = 2  # tokens of a program
EXACT = {"num_warps": 1, "enable_fp_fusion": False}  # as written, so that every kernel gives the same bits


@triton.jit
def _tap_weights(weight, channels):  # type: ignore[no-untyped-def]
    """A channel's four weights, oldest first, which lie side by side: one load of 8 bytes, not four of 2 far apart."""
    taps = tl.load(weight + tl.expand_dims(channels, -1) * 4 + tl.arange(0, 4))
    even, odd = tl.split(tl.reshape(taps, channels.shape + (2, 2)))  # noqa: RUF005 - Triton knows no star
    w3, w1 = tl.split(even)
    w2, w0 = tl.split(odd)
    return w3.to(tl.float32), w2.to(tl.float32), w1.to(tl.float32), w0.to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _past_inputs(conv, at, num_channels: tl.constexpr):  # type: ignore[no-untyped-def]
    """The last three inputs, oldest first."""
    return tl.load(conv + at), tl.load(conv + num_channels + at), tl.load(conv + 2 * num_channels + at)


@triton.jit
def silu_conv(x3, x2, x1, x0, w3, w2, w1, w0):  # type: ignore[no-untyped-def]
    """silu of the convolution, float32, rounded to the inputs' type wherever ops/causal_conv.py rounds."""
    dtype: tl.constexpr = x0.dtype
    total = (x0.to(tl.float32) * w0).to(dtype).to(tl.float32)
    total = (total + (x1.to(tl.float32) * w1).to(dtype).to(tl.float32)).to(dtype).to(tl.float32)
    total = (total + (x2.to(tl.float32) * w2).to(dtype).to(tl.float32)).to(dtype).to(tl.float32)
    total = (total + (x3.to(tl.float32) * w3).to(dtype).to(tl.float32)).to(dtype).to(tl.float32)
    return (total / (1.0 + tl.exp(-total))).to(dtype).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def sum_by_halves(x, size: tl.constexpr, columns: tl.constexpr):  # type: ignore[no-untyped-def]
    """``x`` [size, columns] or of that many elements, summed over ``size`` by halves: [columns]."""
    for level in tl.static_range(10):
        if size >> level > 1:
            x = tl.sum(tl.reshape(x, (2, size >> (level + 1), columns)), 0)
    return tl.reshape(x, (columns,))


@triton.jit  # type: ignore[untyped-decorator]
def key_scalars(q, k, size: tl.constexpr, columns: tl.constexpr):  # type: ignore[no-untyped-def]
    """1 / |k|, scale / |q| and the product of both vectors at these lengths, [columns] each."""
    k_scale = tl.rsqrt(sum_by_halves(k * k, size, columns) + 1e-6)
    q_scale = tl.rsqrt(sum_by_halves(q * q, size, columns) + 1e-6) * size**-0.5
    return k_scale, q_scale, sum_by_halves(q * k, size, columns) * (k_scale * q_scale)


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
def gates_of(a, b, a_log, dt_bias):  # type: ignore[no-untyped-def]
    """decay and beta, float32."""
    fading = -tl.exp(a_log.to(tl.float32))
    decay = tl.exp(fading * _softplus(a.to(tl.float32) + dt_bias.to(tl.float32)))
    return decay, (1.0 / (1.0 + tl.exp(-b.to(tl.float32)))).to(b.dtype).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def inputs_of_one(x, weight, conv, at, channels: tl.constexpr):  # type: ignore[no-untyped-def]
    """What :func:`silu_conv` takes of a first token behind ``conv``."""
    w3, w2, w1, w0 = _tap_weights(weight, at)
    x3, x2, x1 = _past_inputs(conv, at, channels)
    return x3, x2, x1, tl.load(x + at), w3, w2, w1, w0


@triton.jit  # type: ignore[untyped-decorator]
def conv_of_one(x, weight, conv, at, channels: tl.constexpr):  # type: ignore[no-untyped-def]
    """A first token behind ``conv``."""
    x3, x2, x1, x0, w3, w2, w1, w0 = inputs_of_one(x, weight, conv, at, channels)
    return silu_conv(x3, x2, x1, x0, w3, w2, w1, w0)


@triton.jit  # type: ignore[untyped-decorator]
def _input_at(x, conv, at, t, there, x_token, channels: tl.constexpr):  # type: ignore[no-untyped-def]
    """Inputs of the tokens ``t``, which are up to three before the block's first: [channels, tokens]."""
    own = tl.load(x + at + t * x_token, there & (t >= 0), 0.0)
    return tl.where(t >= 0, own, tl.load(conv + at + (3 + t) * channels, there & (t < 0), 0.0))


@triton.jit  # type: ignore[untyped-decorator]
def _conv_of_block(  # type: ignore[no-untyped-def]
    x, weight, conv, y, at, t, t1, t2, t3, there, x_token, y_token, channels: tl.constexpr
):
    """The same of tokens ``t``, which follow those at ``t1``, ``t2``, ``t3``, [channels, tokens]; it is kept."""
    at, t, there = at[:, None], t[None, :], there[None, :]
    w3, w2, w1, w0 = _tap_weights(weight, at)
    x3 = _input_at(x, conv, at, t3[None, :], there, x_token, channels)
    x2 = _input_at(x, conv, at, t2[None, :], there, x_token, channels)
    x1 = _input_at(x, conv, at, t1[None, :], there, x_token, channels)
    x0 = _input_at(x, conv, at, t, there, x_token, channels)
    result = silu_conv(x3, x2, x1, x0, w3, w2, w1, w0)
    tl.store(y + at + t * y_token, result.to(x0.dtype), there & (at >= 0))
    return result


@triton.jit  # type: ignore[untyped-decorator]
def _before(t, back: tl.constexpr, depths, paths, width, there, has_tree: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where the token ``back`` tokens before those at ``t`` stands; before the block it is -1, -2 and so on."""
    place = t - back
    if has_tree:
        depth = (tl.load(depths + t, there, 0) - back).to(tl.int32)
        place = tl.where(depth < 0, depth, tl.load(paths + t * width + depth, there & (depth >= 0), 0))
    return place


@triton.jit(do_not_specialize=["width"])  # type: ignore[untyped-decorator]
def _prepare_kernel(  # type: ignore[no-untyped-def]
    qkv, a, b, weight, a_log, dt_bias, conv, slots, convolved, scalars, depths, paths, width,
    x_row, x_token, gate_row, gate_token, conv_slot, y_row, y_token, scalar_row, scalar_token,
    heads: tl.constexpr, key_heads: tl.constexpr, key_dim: tl.constexpr, value_dim: tl.constexpr,
    tokens: tl.constexpr, has_tree: tl.constexpr,
):  # fmt: skip
    unit, row = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channels: tl.constexpr = 2 * key_heads * key_dim + heads * value_dim
    t = tl.program_id(1) * tokens + tl.arange(0, tokens)
    there = t < width
    x, past, y = qkv + row * x_row, conv + tl.load(slots + row) * conv_slot, convolved + row * y_row
    scalar = scalars + row * scalar_row + t * scalar_token + unit
    depths += row * width
    paths += row * width * width
    t1 = _before(t, 1, depths, paths, width, there, has_tree)
    t2 = _before(t, 2, depths, paths, width, there, has_tree)
    t3 = _before(t, 3, depths, paths, width, there, has_tree)
    if unit < key_heads:  # q and k of one head
        at = unit * key_dim + tl.arange(0, key_dim)
        q = _conv_of_block(x, weight, past, y, at, t, t1, t2, t3, there, x_token, y_token, channels)
        at += key_heads * key_dim
        k = _conv_of_block(x, weight, past, y, at, t, t1, t2, t3, there, x_token, y_token, channels)
        k_scale, q_scale, qk = key_scalars(q, k, key_dim, tokens)
        tl.store(scalar, k_scale, there)
        tl.store(scalar + key_heads, q_scale, there)
        tl.store(scalar + 2 * key_heads, qk, there)
    else:  # v and gates of one
        head = unit - key_heads
        at = 2 * key_heads * key_dim + head * value_dim + tl.arange(0, value_dim)
        _conv_of_block(x, weight, past, y, at, t, t1, t2, t3, there, x_token, y_token, channels)
        gate = row * gate_row + t * gate_token + head
        fade, open_by = tl.load(a + gate, there, 0.0), tl.load(b + gate, there, 0.0)
        decay, beta = gates_of(fade, open_by, tl.load(a_log + head), tl.load(dt_bias + head))
        tl.store(scalar + 2 * key_heads, decay, there)
        tl.store(scalar + 2 * key_heads + heads, beta, there)


def constants(convolved: Tensor, state: Tensor) -> dict[str, int]:
    """The kernels' constants, from the channels [q | k | v] and states of one layer or of all."""
    heads, key_dim, value_dim = state.shape[-3:]
    channels = convolved.shape[-1]
    key_heads = (channels - heads * value_dim) // (2 * key_dim)
    assert channels == 2 * key_heads * key_dim + heads * value_dim, (
        "channels are not [q | k | v] of these heads"
    )
    assert heads % key_heads == 0, "each key head serves as many value heads"
    assert convolved.stride(-1) == 1, "channels lie side by side"
    assert state.stride()[-3:] == (key_dim * value_dim, value_dim, 1)
    return {"heads": heads, "key_heads": key_heads, "key_dim": key_dim, "value_dim": value_dim}


def check_inputs(qkv: Tensor, a: Tensor, b: Tensor, conv: Tensor) -> None:
    """Shapes and strides that the kernels take for granted."""
    assert conv.shape[-2:] == (3, qkv.shape[-1]), "the kernels are for convolutions of width 4"
    assert a.stride() == b.stride(), "a and b are slices of one tensor"
    assert (qkv.stride(-1), a.stride(-1)) == (1, 1), "channels lie side by side"
    assert conv.stride()[-2:] == (qkv.shape[-1], 1)


def num_scalars(key_heads: int, heads: int) -> int:
    """Float32 numbers that a prepared token has: three of each key head, decay and beta of each value head."""
    return 3 * key_heads + 2 * heads


def gated_delta_prepare(
    qkv: Tensor, a: Tensor, b: Tensor, conv_weight: Tensor, a_log: Tensor, dt_bias: Tensor,
    conv: Tensor, state: Tensor, slots: Tensor, convolved: Tensor, scalars: Tensor,
    tree: tuple[Tensor, Tensor] | None = None,
) -> None:  # fmt: skip
    """What the tokens of a block bring to one layer's recurrence: ``convolved`` and ``scalars`` are written.

    Inputs as in ``gated_delta_step``, of any width; of ``state`` only the shape counts. ``convolved``
    [rows, width, channels] of ``qkv``'s type; ``scalars`` [rows, width, num_scalars] float32, see :func:`num_scalars`.
    ``tree``: depths int64 [rows, width] and paths int32 [rows, width, width] of trees, as ops/triton/trees.Trees has
    them; None: chains.
    """
    shape, (rows, width, _) = constants(qkv, state), qkv.shape
    check_inputs(qkv, a, b, conv)
    grid = (shape["key_heads"] + shape["heads"], triton.cdiv(width, TOKENS), rows)
    _prepare_kernel[grid](
        qkv, a, b, conv_weight, a_log, dt_bias, conv, slots, convolved, scalars, *(tree or (slots, slots)), width,
        *qkv.stride()[:2], *a.stride()[:2], conv.stride(0), *convolved.stride()[:2], *scalars.stride()[:2],
        **shape, tokens=TOKENS, has_tree=tree is not None, **EXACT,
    )  # fmt: skip
