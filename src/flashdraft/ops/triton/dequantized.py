"""Tiles of quantized weights as floats, in registers, to the bit as ops/quantized.py defines them."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.target_info import cuda_capability_geq

from flashdraft.ops.quantized import CHUNK, EXPONENT, SLICE, SYMMETRIC_ZERO, TILE_ROWS, UNIT, QuantizedWeight

# What weights are kept in.
FLOATS, FP8, INT4, MXFP4 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
_UNIT = tl.constexpr(UNIT)
_CHUNK = tl.constexpr(CHUNK)
_ZERO = tl.constexpr(SYMMETRIC_ZERO)
_TILE_ROWS = tl.constexpr(TILE_ROWS)
_TO_FLOAT8 = tl.constexpr(2.0**EXPONENT)
_TO_FLOAT4 = tl.constexpr(2.0**126)  # E2M1's bits at the places of float32's are the value times 2 ** -126
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
LANES = tl.constexpr(4)  # threads of a warp that hold one row's unit, 16 bytes each


def _of_two_words(kind: str, one: str) -> str:
    """PTX: the four slices of two neighbouring words less ``$5``, times ``$6``. A code is the last bits of ``one``."""
    work = "lop3.b32 t, {q}, 0x000f000f, {one}, 0xea; sub.{kind} t, t, $5; mul.{kind} ${place}, t, $6;"
    lines = [work.format(q="$4", one=one, kind=kind, place=0)]
    for place in (1, 2, 3):
        lines += [f"shr.b32 q, $4, {4 * place};", work.format(q="q", one=one, kind=kind, place=place)]
    return "{ .reg .b32 q, t; " + " ".join(lines) + " }"


# 128 in bfloat16 and 1024 in float16: their last bits count by ones.
_BF16, _FP16 = (
    tl.constexpr(_of_two_words(*one)) for one in (("bf16x2", "0x43004300"), ("f16x2", "0x64006400"))
)
_BY_FMA = {  # before Hopper bfloat16 has no difference and no product alone: these have their bits
    "sub.bf16x2 t, t, $5;": "fma.rn.bf16x2 t, $5, m, t;",
    "mul.bf16x2 $0, t, $6;": "fma.rn.bf16x2 $0, t, $6, z;",
    "mul.bf16x2 $1, t, $6;": "fma.rn.bf16x2 $1, t, $6, z;",
    "mul.bf16x2 $2, t, $6;": "fma.rn.bf16x2 $2, t, $6, z;",
    "mul.bf16x2 $3, t, $6;": "fma.rn.bf16x2 $3, t, $6, z;",
}


def _before_hopper(ptx: str) -> str:
    """``ptx`` by sums of a product alone: with -0 in place of products, and with -1 times a number of differences."""
    for one, other in _BY_FMA.items():
        ptx = ptx.replace(one, other)
    return ptx.replace("{ ", "{ .reg .b32 m, z; mov.b32 m, 0xbf80bf80; mov.b32 z, 0x80008000; ", 1)


# The same with bfloat16's scales below LARGEST_SYMMETRIC_SCALE: a slice at places 4 to 7 is its code times 2 ** -SLICE.
# ``$5`` is the scale times 2 ** SLICE, ``$6`` the scale times -SYMMETRIC_ZERO.
_AT_ONCE = tl.constexpr(
    "{ .reg .b32 t; shl.b32 t, $4, 4; and.b32 t, t, 0x00f000f0; fma.rn.bf16x2 $0, t, $5, $6; "
    "and.b32 t, $4, 0x00f000f0; fma.rn.bf16x2 $1, t, $5, $6; "
    "shr.b32 t, $4, 4; and.b32 t, t, 0x00f000f0; fma.rn.bf16x2 $2, t, $5, $6; "
    "shr.b32 t, $4, 8; and.b32 t, t, 0x00f000f0; fma.rn.bf16x2 $3, t, $5, $6; }"
)
# Both of them, packed, of a float32 that bfloat16 holds: its upper half times 2 ** 64 and 1, then 2 ** 65 and -8.
_FACTOR_AND_TERM = tl.constexpr(
    "{ .reg .b32 t, m, z; prmt.b32 t, $1, $1, 0x3232; mov.b32 z, 0x80008000; mov.b32 m, 0x3f805f80; "
    "fma.rn.bf16x2 t, t, m, z; mov.b32 m, 0xc1006000; fma.rn.bf16x2 $0, t, m, z; }"
)
assert (SLICE, SYMMETRIC_ZERO) == (64 + 65, 8)
_HALF_SLICE, _OTHER_HALF = tl.constexpr(2.0 ** (SLICE // 2)), tl.constexpr(2.0 ** (SLICE - SLICE // 2))
# What _eight_bits has of its two words, with bits at the places of bfloat16's: the value times 2 ** -EXPONENT.
_FOUR_BYTES = tl.constexpr(
    "{ .reg .b32 s, t; and.b32 t, $4, 0x87f087f0; mul.bf16x2 $0, t, $6; and.b32 t, $5, 0x87f087f0; "
    "mul.bf16x2 $2, t, $6; shl.b32 s, $4, 4; shr.b32 t, $5, 4; and.b32 t, t, 0x07000700; "
    "lop3.b32 t, s, 0x80f080f0, t, 0xea; mul.bf16x2 $1, t, $6; shl.b32 s, $5, 4; shr.b32 t, $4, 4; "
    "and.b32 t, t, 0x07000700; lop3.b32 t, s, 0x80f080f0, t, 0xea; mul.bf16x2 $3, t, $6; }"
)
_OLD_BF16, _OLD_FOUR_BYTES = (tl.constexpr(_before_hopper(one.value)) for one in (_BF16, _FOUR_BYTES))


@triton.jit  # type: ignore[untyped-decorator]
def words_at(words, row, word_row, tiled: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where the first 64 bytes of the outputs ``row`` are: [outputs, 32], words of 16 bits."""
    column = tl.arange(0, 32)[None, :]
    if tiled:
        tile, place = row // _TILE_ROWS, row % _TILE_ROWS
        at = words + tile.to(tl.int64)[:, None] * (word_row * _TILE_ROWS) + place[:, None] * 32 + column
    else:
        at = words + row.to(tl.int64)[:, None] * word_row + column
    return at


@triton.jit
def spread_over_lanes(at):  # type: ignore[no-untyped-def]
    """What lies at ``at`` [outputs], LANES times: [outputs, LANES], laid out as rows of a unit's bytes are.

    Where the compiler sees that neighbours of ``at`` are neighbours in memory it chooses another layout, and moves the
    weights through shared memory: their distance is an argument that it does not specialize.
    """
    return tl.load(at[None, :] + tl.zeros([LANES, 1], tl.int32)).trans()


@triton.jit
def one_of_pair(words, number):  # type: ignore[no-untyped-def]
    """Number 0 or 1 of two scales of bfloat16 in words, as float32."""
    return (words >> number * 16 << 16).to(tl.float32, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def floats_of(  # type: ignore[no-untyped-def]
    words, scale, zero, outputs: tl.constexpr, inputs: tl.constexpr, warps: tl.constexpr, kind: tl.constexpr,
    has_zeros: tl.constexpr, by_ptx: tl.constexpr, scale_type: tl.constexpr, dtype: tl.constexpr,
    in_pairs: tl.constexpr = False,
):  # fmt: skip
    """[outputs, inputs] as ``dtype`` of loaded words of 16 bits; ``scale``, ``zero`` [outputs, LANES], float32.

    Of MXFP4 each word has a scale, bytes [outputs, inputs / 4]. ``in_pairs``: 4 bits' scales are made ready two
    numbers at once, if they can. Rows come as they are loaded (``warps`` 0), or as :func:`row_of` has them.
    """
    units: tl.constexpr = inputs // _UNIT if kind == FP8 else inputs // _CHUNK
    words = words.reshape(outputs, units, LANES, 8)
    pairs: tl.constexpr = in_pairs and kind == INT4 and scale_type == tl.bfloat16 and not has_zeros
    if pairs:
        times, plus = _factor_and_term(scale, outputs, units)
    elif kind != MXFP4:
        scale = scale.to(scale_type).reshape(outputs, 1, LANES, 1)
    high: tl.constexpr = 2 if warps else 1
    low: tl.constexpr = 8 if warps else 1
    across: tl.constexpr = warps if warps else 1
    rows: tl.constexpr = outputs // (high * across * low)
    if kind == FP8:
        scale = scale.reshape(outputs, 1, LANES, 1, 1).broadcast_to(outputs, units, LANES, 2, 2)
        even, odd = tl.split(words.reshape(outputs, units, LANES, 2, 2, 2).permute(0, 1, 2, 3, 5, 4))
        if by_ptx:
            a, b, c, d = _eight_bits_by_ptx(even, odd, scale)
        else:
            a, b, c, d = (
                _first(even, scale), _second(even, odd, scale), _first(odd, scale), _second(odd, even, scale)
            )  # fmt: skip
        tile = tl.join(tl.join(a, b), tl.join(c, d)).to(dtype)
        tile = tile.reshape(rows, high, across, low, units, LANES, 2, 2, 2, 2).permute(
            0, 2, 1, 3, 4, 6, 9, 8, 5, 7
        )
    else:
        if kind != MXFP4 and not pairs:
            scale = scale.broadcast_to(outputs, units, LANES, 8)
        if not has_zeros:
            zero = tl.full([outputs, LANES], _ZERO, tl.float32)
        zero = zero.to(scale_type).reshape(outputs, 1, LANES, 1).broadcast_to(outputs, units, LANES, 8)
        if pairs:
            a, b, c, d = _four_slices(words, times, plus, _AT_ONCE)
        elif kind == MXFP4:
            factor = _power_of_two(scale.reshape(outputs, units, LANES, 8))
            a, b, c, d = (
                _float4(words, 0, factor), _float4(words, 4, factor),
                _float4(words, 8, factor), _float4(words, 12, factor),
            )  # fmt: skip
        elif by_ptx:
            a, b, c, d = _four_bits_by_ptx(words, zero, scale, has_zeros)
        else:
            a, b, c, d = (
                _slice(words, 0, zero, scale), _slice(words, 4, zero, scale),
                _slice(words, 8, zero, scale), _slice(words, 12, zero, scale),
            )  # fmt: skip
        tile = tl.join(tl.join(a, c), tl.join(b, d)).to(dtype)
        tile = tile.reshape(rows, high, across, low, units, LANES, 4, 2, 2, 2).permute(
            0, 2, 1, 3, 4, 6, 8, 9, 5, 7
        )
    return tile.reshape(outputs, inputs)


@triton.jit  # type: ignore[untyped-decorator]
def factor_of(  # type: ignore[no-untyped-def]
    words, scale, zero, tokens: tl.constexpr, outputs: tl.constexpr, inputs: tl.constexpr, warps: tl.constexpr,
    kind: tl.constexpr, has_zeros: tl.constexpr, by_ptx: tl.constexpr, scale_type: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """:func:`floats_of` as the first factor of a product with ``tokens``."""
    own: tl.constexpr = by_ptx and (warps < 4 or tokens < 16 or outputs % 64 != 0)  # each warp's instruction
    # Before the four warps' own instruction pairs are slower: 1.04 of the time of 34,816 x 5,120 at 32 tokens.
    tile = floats_of(
        words, scale, zero, outputs, inputs, warps, kind, has_zeros, by_ptx, scale_type, dtype, own
    )
    if own:
        tile = own_instruction(tile)
    return tile


@triton.jit
def own_instruction(tile):  # type: ignore[no-untyped-def]
    """``tile``, of which :func:`tl.dot` takes the inputs in the order in which it takes floats from memory.

    Triton 3.6 gives a thread of mma.sync two neighbouring inputs of floats, but four of words of 16 bits and eight of
    bytes whose slices were joined: sums in another order, so other bits. It does not look behind an instruction that
    it may not move.
    """
    if tile.dtype.primitive_bitwidth == 16:  # float32 has no such order
        tile = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [tile], tile.dtype, is_pure=False, pack=2)
    return tile


@triton.jit  # type: ignore[untyped-decorator]
def row_of(place, warps: tl.constexpr):  # type: ignore[no-untyped-def]
    """The loaded row that is row ``place`` of a tile.

    A warp loads 8 rows at once, but a matrix unit's first factor has 16 of a warp side by side.
    """
    block = place // (16 * warps) * (16 * warps)
    return block + place // 8 % 2 * (8 * warps) + place // 16 % warps * 8 + place % 8


@triton.jit
def _eight_bits_by_ptx(even, odd, scale):  # type: ignore[no-untyped-def]
    """Both halves' codes of an even factor's words, then of the odd one's that stand beside them."""
    factor = tl.full(scale.shape, _TO_FLOAT8, tl.bfloat16)
    if scale.dtype == tl.bfloat16:
        factor = (scale.to(tl.float32) * _TO_FLOAT8).to(tl.bfloat16)
    ptx: tl.constexpr = _FOUR_BYTES if cuda_capability_geq(9) else _OLD_FOUR_BYTES
    a, b, c, d = tl.inline_asm_elementwise(
        ptx,
        "=r,=r,=r,=r,r,r,r",
        [even, odd, factor],
        (factor.dtype, factor.dtype, factor.dtype, factor.dtype),
        True,
        2,
    )
    if scale.dtype != tl.bfloat16:
        a, b, c, d = _scaled(a, scale), _scaled(b, scale), _scaled(c, scale), _scaled(d, scale)
    return a, b, c, d


@triton.jit
def _scaled(values, scale):  # type: ignore[no-untyped-def]
    return (values.to(tl.float32) * scale.to(tl.float32)).to(scale.dtype)


@triton.jit
def _first(words, scale):  # type: ignore[no-untyped-def]
    words = words.to(tl.int32)
    return _byte((words >> 8 & 128) | (words >> 4 & 127), scale)


@triton.jit
def _second(words, others, scale):  # type: ignore[no-untyped-def]
    words = words.to(tl.int32)
    return _byte((words >> 4 & 128) | (words & 15) | (others.to(tl.int32) >> 8 & 112), scale)


@triton.jit
def _byte(codes, scale):  # type: ignore[no-untyped-def]
    return _scaled(codes.to(tl.uint8).to(tl.float8e4nv, bitcast=True), scale)


@triton.jit  # type: ignore[untyped-decorator]
def _factor_and_term(scale, outputs: tl.constexpr, units: tl.constexpr):  # type: ignore[no-untyped-def]
    """What _AT_ONCE is given, [outputs, units, LANES, 8] both, of scales [outputs, LANES]."""
    both = tl.inline_asm_elementwise(_FACTOR_AND_TERM, "=r,r", [scale], tl.int32, True, 1)
    both = both.reshape(outputs, 1, LANES, 1).broadcast_to(outputs, units, LANES, 8)
    return _lower_half(both), _lower_half(both >> 16)


@triton.jit
def _lower_half(words):  # type: ignore[no-untyped-def]
    """Of words of 32 bits, as bfloat16."""
    return (words & 0xFFFF).to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def _four_bits_by_ptx(words, zero, scale, has_zeros: tl.constexpr):  # type: ignore[no-untyped-def]
    if scale.dtype == tl.bfloat16 and not has_zeros:
        numbers = scale.to(tl.float32)
        factor = (numbers * _HALF_SLICE * _OTHER_HALF).to(tl.bfloat16)
        a, b, c, d = _four_slices(words, factor, (numbers * -_ZERO).to(tl.bfloat16), _AT_ONCE)
    elif scale.dtype == tl.bfloat16:
        ptx: tl.constexpr = _BF16 if cuda_capability_geq(9) else _OLD_BF16
        a, b, c, d = _four_slices(words, zero + 128.0, scale, ptx)
    else:
        a, b, c, d = _four_slices(words, zero + 1024.0, scale, _FP16)
    return a, b, c, d


@triton.jit  # type: ignore[untyped-decorator]
def _four_slices(words, first, second, ptx: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.inline_asm_elementwise(
        ptx,
        "=r,=r,=r,=r,r,r,r",
        [words, first, second],
        (second.dtype, second.dtype, second.dtype, second.dtype),
        True,
        2,
    )


@triton.jit  # type: ignore[untyped-decorator]
def _slice(words, shift: tl.constexpr, zero, scale):  # type: ignore[no-untyped-def]
    codes = ((words.to(tl.int32) >> shift) & 15).to(tl.float32)
    return ((codes - zero.to(tl.float32)) * scale.to(tl.float32)).to(scale.dtype)


@triton.jit
def _power_of_two(exponent):  # type: ignore[no-untyped-def]
    """Float32 2 ** (exponent - 127) of bytes; that of 0 has no exponent of its own in float32."""
    return tl.maximum(exponent.to(tl.int32) << 23, 1 << 22).to(tl.float32, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def _float4(words, shift: tl.constexpr, factor):  # type: ignore[no-untyped-def]
    codes = words.to(tl.int32) >> shift
    bits = ((codes & 8) << 28) | ((codes & 7) << 22)
    return bits.to(tl.float32, bitcast=True) * _TO_FLOAT4 * factor


@triton.jit(do_not_specialize=["scale_step"])  # type: ignore[untyped-decorator]
def _dequantize_kernel(  # type: ignore[no-untyped-def]
    words, scales, zeros, out, num_outputs, num_inputs, word_row, scale_row, scale_step, group,
    outputs: tl.constexpr, inputs: tl.constexpr, kind: tl.constexpr, has_zeros: tl.constexpr, by_ptx: tl.constexpr,
    scale_type: tl.constexpr, tiled: tl.constexpr, paired: tl.constexpr,
):  # fmt: skip
    row, unit = tl.program_id(0) * outputs + tl.arange(0, outputs), tl.program_id(1)
    is_row = row < num_outputs
    which = unit * inputs // group
    scale_at = (which // 2 if paired else which) * scale_row + tl.where(is_row, row, 0) * scale_step
    scale = spread_over_lanes(scales + scale_at)
    if paired:
        scale = one_of_pair(scale, which % 2)
    zero = scale
    if has_zeros:
        zero = spread_over_lanes(zeros + scale_at)
    step: tl.constexpr = 32 * _TILE_ROWS if tiled else 32
    loaded = tl.load(words_at(words, row, word_row, tiled) + unit * step, is_row[:, None], 0)
    tile = floats_of(
        loaded, scale, zero, outputs, inputs, 0, kind, has_zeros, by_ptx, scale_type, out.dtype.element_ty
    )
    column = unit * inputs + tl.arange(0, inputs)
    tl.store(out + row[:, None].to(tl.int64) * num_inputs + column[None, :], tile, is_row[:, None])


def settings(weight: Tensor | QuantizedWeight) -> dict[str, object]:
    """What :func:`floats_of` is compiled for, by name."""
    if isinstance(weight, Tensor):
        return {"kind": FLOATS.value, "has_zeros": False, "by_ptx": False, "scale_type": tl.float32}
    kind = MXFP4 if weight.is_float4 else INT4 if weight.is_packed else FP8
    return {
        "kind": kind.value, "has_zeros": weight.zeros is not None,
        "by_ptx": weight.codes.is_cuda, "scale_type": _TYPES[weight.scale_dtype],
    }  # fmt: skip


def words_of(weight: QuantizedWeight) -> Tensor:
    """Its codes as words of 16 bits, int16 [num_outputs, 32 for each unit or chunk]."""
    return weight.codes if weight.is_packed else weight.codes.view(torch.int16)


def parts(weight: QuantizedWeight) -> dict[str, object]:
    """What kernels are given of ``weight``, by name: tensors, elements from row to row and from scale to scale."""
    zeros, words = weight.scales if weight.zeros is None else weight.zeros, words_of(weight)
    assert zeros.stride() == weight.scales.stride()
    return {
        "words": words, "scales": weight.scales, "zeros": zeros, "word_row": words.stride(0),
        "scale_row": weight.scales.stride(0), "scale_step": weight.scales.stride(1), "tiled": weight.tiled,
    }  # fmt: skip


def dequantize(weight: QuantizedWeight, out: Tensor) -> Tensor:
    """``weight`` as floats in ``out`` [num_outputs, num_inputs], contiguous, which is given back."""
    num_outputs, num_inputs = weight.shape
    outputs, inputs = 64, CHUNK if weight.is_packed else UNIT
    _dequantize_kernel[(triton.cdiv(num_outputs, outputs), num_inputs // inputs)](
        out=out, num_outputs=num_outputs, num_inputs=num_inputs, group=weight.group, outputs=outputs, inputs=inputs,
        paired=weight.is_paired, num_warps=4, **parts(weight), **settings(weight),
    )  # fmt: skip
    return out
