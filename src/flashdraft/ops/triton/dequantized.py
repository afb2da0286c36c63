"""Tiles of quantized weights as floats, in registers, to the bit as ops/quantized.py defines them."""

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from flashdraft.ops.quantized import CHUNK, SYMMETRIC_ZERO, QuantizedWeight

FLOATS, FP8, INT4 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # what weights are kept in
_INPUTS = tl.constexpr(CHUNK)
_ZERO = tl.constexpr(SYMMETRIC_ZERO)


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


@triton.jit  # type: ignore[untyped-decorator]
def weights_tile(  # type: ignore[no-untyped-def]
    codes, scales, zeros, first_output, at, group,
    outputs: tl.constexpr, inputs: tl.constexpr, kind: tl.constexpr, has_zeros: tl.constexpr, by_ptx: tl.constexpr,
    dtype: tl.constexpr,
):  # fmt: skip
    """[outputs, inputs] from ``first_output`` and input ``at`` on, as ``dtype``; given are descriptors."""
    if kind == FLOATS:
        tile = codes.load([first_output, at])
    else:
        loaded = codes.load([first_output, at // 4 if kind == INT4 else at])
        scale = scales.load([at // group, first_output]).reshape(outputs)
        zero = scale
        if has_zeros:
            zero = zeros.load([at // group, first_output]).reshape(outputs)
        tile = floats_of(loaded, scale, zero, outputs, inputs, kind, has_zeros, by_ptx, dtype)
    return tile


@triton.jit  # type: ignore[untyped-decorator]
def floats_of(  # type: ignore[no-untyped-def]
    codes, scale, zero, outputs: tl.constexpr, inputs: tl.constexpr, kind: tl.constexpr, has_zeros: tl.constexpr,
    by_ptx: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """[outputs, inputs] as ``dtype`` of loaded codes or words; ``scale``, ``zero`` [outputs]."""
    if kind == FP8:
        tile = (codes.to(tl.float32) * scale.to(tl.float32)[:, None]).to(scale.dtype).to(dtype)
    else:
        if not has_zeros:
            zero = tl.full([outputs], _ZERO, scale.dtype)
        if by_ptx:
            if scale.dtype == tl.bfloat16:
                a, b, c, d = _four_slices(codes, zero + 128.0, scale, outputs, _BF16)
            else:
                a, b, c, d = _four_slices(codes, zero + 1024.0, scale, outputs, _FP16)
        else:
            a, b, c, d = (
                _slice(codes, 0, zero, scale), _slice(codes, 4, zero, scale),
                _slice(codes, 8, zero, scale), _slice(codes, 12, zero, scale),
            )  # fmt: skip
        both = tl.join(tl.join(a, c), tl.join(b, d)).permute(0, 2, 3, 1)
        tile = both.reshape(outputs, inputs).to(dtype)
    return tile


@triton.jit  # type: ignore[untyped-decorator]
def _four_slices(words, zero, scale, outputs: tl.constexpr, ptx: tl.constexpr):  # type: ignore[no-untyped-def]
    width: tl.constexpr = _INPUTS // 4
    zero, scale = (
        tl.broadcast_to(zero[:, None], [outputs, width]), tl.broadcast_to(scale[:, None], [outputs, width])
    )  # fmt: skip
    return tl.inline_asm_elementwise(
        ptx,
        "=r,=r,=r,=r,r,r,r",
        [words, zero, scale],
        (scale.dtype, scale.dtype, scale.dtype, scale.dtype),
        True,
        2,
    )


@triton.jit  # type: ignore[untyped-decorator]
def _slice(words, shift: tl.constexpr, zero, scale):  # type: ignore[no-untyped-def]
    codes = ((words.to(tl.int32) >> shift) & 15).to(tl.float32)
    return ((codes - zero.to(tl.float32)[:, None]) * scale.to(tl.float32)[:, None]).to(scale.dtype)


@triton.jit  # type: ignore[untyped-decorator]
def _dequantize_kernel(  # type: ignore[no-untyped-def]
    codes, scales, zeros, out, num_outputs, num_inputs, group,
    outputs: tl.constexpr, inputs: tl.constexpr, kind: tl.constexpr, has_zeros: tl.constexpr, by_ptx: tl.constexpr,
):  # fmt: skip
    first, at = tl.program_id(0) * outputs, tl.program_id(1) * inputs
    tile = weights_tile(
        codes, scales, zeros, first, at, group, outputs, inputs, kind, has_zeros, by_ptx, out.dtype.element_ty
    )
    output, column = first + tl.arange(0, outputs), at + tl.arange(0, inputs)
    there = (output < num_outputs)[:, None] & (column < num_inputs)[None, :]
    tl.store(out + output[:, None].to(tl.int64) * num_inputs + column[None, :], tile, there)


def settings(weight: Tensor | QuantizedWeight) -> dict[str, object]:
    """What :func:`floats_of` is compiled for, by name."""
    if isinstance(weight, Tensor):
        return {"kind": FLOATS.value, "has_zeros": False, "by_ptx": False}
    return {
        "kind": INT4.value if weight.is_packed else FP8.value, "has_zeros": weight.zeros is not None,
        "by_ptx": weight.codes.is_cuda,
    }  # fmt: skip


def descriptors(weight: Tensor | QuantizedWeight, outputs: int, inputs: int) -> dict[str, object]:
    """What :func:`weights_tile` is given of ``weight`` for tiles of such a size, by name."""
    if isinstance(weight, Tensor):
        codes = TensorDescriptor.from_tensor(weight, [outputs, inputs])
        return {"codes": codes, "scales": codes, "zeros": codes, "group": 1}
    assert not weight.is_packed or inputs == CHUNK, "4-bit codes are read by whole chunks"
    width = inputs // 4 if weight.is_packed else inputs
    parts = [weight.scales, weight.scales if weight.zeros is None else weight.zeros]
    # A single group's own stride may be anything.
    strides = [part.stride() if len(part) > 1 else (part.shape[1], 1) for part in parts]
    scales, zeros = (
        TensorDescriptor(part, part.shape, stride, [1, outputs])
        for part, stride in zip(parts, strides, strict=True)
    )
    codes = TensorDescriptor.from_tensor(weight.codes, [outputs, width])
    return {"codes": codes, "scales": scales, "zeros": zeros, "group": weight.group}


def dequantize(weight: QuantizedWeight, out: Tensor) -> Tensor:
    """``weight`` as floats in ``out`` [num_outputs, num_inputs], contiguous, which is given back."""
    num_outputs, num_inputs = weight.shape
    outputs = 64
    _dequantize_kernel[(triton.cdiv(num_outputs, outputs), triton.cdiv(num_inputs, CHUNK))](
        out=out, num_outputs=num_outputs, num_inputs=num_inputs, outputs=outputs, inputs=CHUNK, num_warps=4,
        **descriptors(weight, outputs, CHUNK), **settings(weight),
    )  # fmt: skip
    return out
