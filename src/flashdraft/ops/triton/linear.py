"""Products of few tokens with large weights, bound by reading the weights once.

The weights are the first factor: on Hopper a tile of 64 of their rows feeds the matrix units' widest instruction, and
tokens are its short side. Each output is one sum over the inputs in order, whatever stands beside it, so that a
token's bits do not depend on how many tokens there are.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from flashdraft.ops.quantized import CHUNK, QuantizedWeight
from flashdraft.ops.triton.dequantized import (
    FP8,
    factor_of,
    parts,
    row_of,
    settings,
    spread_over_lanes,
)
from flashdraft.ops.triton.tiling import Tiling

_CHUNK = tl.constexpr(CHUNK)


@triton.jit(do_not_specialize=["num_tokens"])  # type: ignore[untyped-decorator]
def _linear(  # type: ignore[no-untyped-def]
    x, weights, bias, out, num_tokens, num_outputs, num_inputs, x_token, out_token,
    tokens: tl.constexpr, outputs: tl.constexpr, inputs: tl.constexpr,
    has_bias: tl.constexpr, precision: tl.constexpr, even: tl.constexpr,
):  # fmt: skip
    # Tokens vary fastest: programs that read the same weights run side by side, and all but one find them in the L2.
    token = tl.program_id(0) * tokens + tl.arange(0, tokens)
    first = tl.program_id(1) * outputs
    output, column = first + tl.arange(0, outputs), tl.arange(0, inputs)
    is_token = token < num_tokens
    x_at = x + token[None, :].to(tl.int64) * x_token + column[:, None]
    summed = tl.zeros([outputs, tokens], tl.float32)
    for at in range(0, num_inputs, inputs):
        if even:
            rows = tl.load(x_at + at, is_token[None, :], 0.0)
        else:
            rows = tl.load(x_at + at, is_token[None, :] & (at + column < num_inputs)[:, None], 0.0)
        summed = tl.dot(weights.load([first, at]), rows, summed, input_precision=precision)
    store_sums(summed, bias, out, token, output, num_tokens, num_outputs, out_token, has_bias)


@triton.jit(do_not_specialize=["num_tokens", "scale_step"])  # type: ignore[untyped-decorator]
def linear_of_codes(  # type: ignore[no-untyped-def]
    x, words, scales, zeros, bias, out, num_tokens, num_outputs, num_inputs, x_token, out_token,
    word_row, scale_row, scale_step,
    tokens: tl.constexpr, outputs: tl.constexpr, chunks: tl.constexpr, warps: tl.constexpr, group: tl.constexpr,
    chains: tl.constexpr, has_bias: tl.constexpr, precision: tl.constexpr, even: tl.constexpr, alone: tl.constexpr,
    kind: tl.constexpr, has_zeros: tl.constexpr, by_ptx: tl.constexpr, scale_type: tl.constexpr,
):  # fmt: skip
    """Sums in one chain, or in four as long_sums.py has them; ``chunks``, of a tile, are a multiple of ``chains``.

    Rows' codes come 64 bytes at a time, by which each thread gets what is its own in the product: dequantized.py.
    ``alone``: of one token, which stands in all columns of a tile; in shared memory it is there once.
    """
    units: tl.constexpr = 2 if kind == FP8 else 1  # of a chunk
    unit: tl.constexpr = _CHUNK // units
    dtype: tl.constexpr = out.dtype.element_ty
    token = tl.program_id(0) * tokens + tl.arange(0, tokens)
    first, place, column = tl.program_id(1) * outputs, tl.arange(0, outputs), tl.arange(0, unit)
    row, is_token = tl.minimum(first + place, num_outputs - 1), token < num_tokens
    x_at = x + (column if alone else token[None, :].to(tl.int64) * x_token + column[:, None])
    words_at = words + row.to(tl.int64)[:, None] * word_row + tl.arange(0, 32)[None, :]
    scales_at, zeros_at = scales + row * scale_step, zeros + row * scale_step
    scale = spread_over_lanes(scales_at)
    zero = scale
    if has_zeros:
        zero = spread_over_lanes(zeros_at)
    one = tl.zeros([outputs, tokens], tl.float32)
    two, three, four = one, one, one
    for at in range(0, num_inputs, chunks * _CHUNK):
        for part in tl.static_range(chunks * units):
            start = at + part * unit
            if group > 0 and part % units == 0:
                which = start // group
                if not even:
                    which = tl.minimum(which, (num_inputs - 1) // group)
                scale = spread_over_lanes(scales_at + which * scale_row)
                if has_zeros:
                    zero = spread_over_lanes(zeros_at + which * scale_row)
            rows = inputs_of(x_at + part * unit, is_token[None, :], start + column < num_inputs, even, alone)
            if alone:
                rows = rows.broadcast_to(unit, tokens)
            if even:
                loaded = tl.load(words_at + part * 32)
            else:
                loaded = tl.load(words_at + part * 32, (place * 0 + start < num_inputs)[:, None], 0)
            weights = factor_of(
                loaded, scale, zero, tokens, outputs, unit, warps, kind, has_zeros, by_ptx, scale_type, dtype
            )
            if part // units % chains == 0:
                one = tl.dot(weights, rows, one, input_precision=precision)
            elif part // units % chains == 1:
                two = tl.dot(weights, rows, two, input_precision=precision)
            elif part // units % chains == 2:
                three = tl.dot(weights, rows, three, input_precision=precision)
            else:
                four = tl.dot(weights, rows, four, input_precision=precision)
        x_at, words_at = x_at + chunks * _CHUNK, words_at + chunks * units * 32
    output = first + row_of(place, warps)
    if chains == 4:
        one = one + two + three + four
    store_sums(one, bias, out, token, output, num_tokens, num_outputs, out_token, has_bias)


@triton.jit  # type: ignore[untyped-decorator]
def inputs_of(at, is_token, is_input, even: tl.constexpr, alone: tl.constexpr):  # type: ignore[no-untyped-def]
    """Tokens' inputs that lie ``at`` [.., inputs, tokens]; of one ``alone`` [.., inputs], a column given.

    ``is_token`` [.., 1, tokens], ``is_input`` [.., inputs], which are all where the tiles are ``even``.
    """
    if alone:
        rows = (tl.load(at) if even else tl.load(at, is_input, 0.0)).expand_dims(-1)
    elif even:
        rows = tl.load(at, is_token, 0.0)
    else:
        rows = tl.load(at, is_token & is_input.expand_dims(-1), 0.0)
    return rows


@triton.jit  # type: ignore[untyped-decorator]
def store_sums(  # type: ignore[no-untyped-def]
    sums, bias, out, token, output, num_tokens, num_outputs, out_token, has_bias: tl.constexpr
):
    """``sums`` [outputs, tokens] and ``bias`` into ``out``."""
    is_output = output < num_outputs
    if has_bias:
        sums += tl.load(bias + output, is_output, 0.0).to(tl.float32)[:, None]
    out_at = out + token[None, :].to(tl.int64) * out_token + output[:, None]
    tl.store(out_at, sums.to(out.dtype.element_ty), (token < num_tokens)[None, :] & is_output[:, None])


def launch_of(
    x: Tensor,
    weight: Tensor | QuantizedWeight,
    tiling: Tiling,
    tokens: int,
    bias: Tensor | None,
    out: Tensor | None,
) -> tuple[tuple[int, int], Tensor, dict[str, Any]]:
    """The grid of tiles with ``tokens``, where the product goes, and what all its kernels are told by name."""
    (num_tokens, num_inputs), num_outputs = x.shape, weight.shape[0]
    if out is None:
        out = torch.empty(num_tokens, num_outputs, dtype=x.dtype, device=x.device)
    a_row = weight.nbytes * tiling.inputs // (num_outputs * num_inputs)
    size = tiling.outputs * a_row + tokens * tiling.inputs * x.element_size()
    common = {
        "bias": out if bias is None else bias, "out": out, "num_tokens": num_tokens, "num_outputs": num_outputs,
        "num_inputs": num_inputs, "out_token": out.stride(0), "tokens": tokens, "outputs": tiling.outputs,
        "has_bias": bias is not None, "precision": "ieee" if x.dtype == torch.float32 else "tf32",
        "num_warps": tiling.warps, "num_stages": tiling.stages_of(size, x.device),
    }  # fmt: skip
    return (triton.cdiv(num_tokens, tokens), triton.cdiv(num_outputs, tiling.outputs)), out, common


def stands_alone(x: Tensor, weight: QuantizedWeight) -> bool:
    """Whether :func:`linear_of_codes` is told so: FP8's tiles are so large that it brings nothing, in some it costs."""
    return len(x) == 1 and weight.is_packed


def few_tokens_linear(
    x: Tensor,
    weight: Tensor | QuantizedWeight,
    tiling: Tiling,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``x`` [num_tokens, num_inputs] times ``weight`` [num_outputs, num_inputs] transposed, [num_tokens, num_outputs].

    ``out``: where it goes, rows apart as they like. Sums are float32, rounded once. A weight in codes is cut into at
    least 16 outputs a warp, and whole chunks of inputs.
    """
    tokens = tiling.tokens_for(len(x))
    grid, out, common = launch_of(x, weight, tiling, tokens, bias, out)
    common |= {"x_token": x.stride(0), "even": x.shape[1] % tiling.inputs == 0}
    if isinstance(weight, Tensor):
        tiles = TensorDescriptor.from_tensor(weight, [tiling.outputs, tiling.inputs])
        _linear[grid](x, tiles, inputs=tiling.inputs, **common)
    else:
        assert tiling.outputs % (16 * tiling.warps) == 0
        assert tiling.inputs % CHUNK == 0
        linear_of_codes[grid](
            x, chunks=tiling.inputs // CHUNK, warps=tiling.warps, chains=1, alone=stands_alone(x, weight),
            group=weight.group if len(weight.scales) > 1 else 0, **common, **parts(weight),
            **settings(weight),
        )  # fmt: skip
    return out
