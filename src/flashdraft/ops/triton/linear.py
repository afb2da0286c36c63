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

from flashdraft.ops.quantized import CHUNK, TILE_ROWS, QuantizedWeight
from flashdraft.ops.triton.dequantized import (
    FP8,
    factor_of,
    one_of_pair,
    parts,
    row_of,
    settings,
    spread_over_lanes,
    words_at,
)
from flashdraft.ops.triton.tiling import Tiling

_CHUNK = tl.constexpr(CHUNK)
_TILE_ROWS = tl.constexpr(TILE_ROWS)
_BESIDE = 16  # outputs of a program that has floats beside codes: a matrix unit's
_MOST_BESIDE = 512
_BESIDE_OUTPUTS = tl.constexpr(_BESIDE)


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
    x, words, scales, zeros, beside, bias, out, num_tokens, num_outputs, num_beside, num_inputs, x_token, out_token,
    word_row, scale_row, scale_step,
    tokens: tl.constexpr, outputs: tl.constexpr, chunks: tl.constexpr, warps: tl.constexpr, group: tl.constexpr,
    chains: tl.constexpr, has_beside: tl.constexpr, gated: tl.constexpr, has_bias: tl.constexpr,
    precision: tl.constexpr, even: tl.constexpr, alone: tl.constexpr, kind: tl.constexpr, has_zeros: tl.constexpr,
    by_ptx: tl.constexpr, scale_type: tl.constexpr, tiled: tl.constexpr, paired: tl.constexpr,
):  # fmt: skip
    """Sums in one chain, or in four as long_sums.py has them; ``chunks``, of a tile, are a multiple of ``chains``.

    ``alone``: of one token, which stands in all columns of a tile; in shared memory it is there once. ``beside``
    [num_beside, num_inputs]: floats, whose outputs follow those of the codes, by the first programs: what they have
    takes longest.
    """
    token, number = tl.program_id(0) * tokens + tl.arange(0, tokens), tl.program_id(1)
    if has_beside:
        programs = tl.cdiv(num_beside, _BESIDE_OUTPUTS)
        if number < programs:
            _floats_beside(
                x, beside, bias, out, token, number, num_tokens, num_outputs, num_beside, num_inputs, x_token,
                out_token, tokens, has_bias, precision, alone,
            )  # fmt: skip
            return
        number -= programs
    first, place = number * outputs, tl.arange(0, outputs)
    row = tl.minimum(first + place, num_outputs - 1)
    if gated:  # a warp's first eight rows are gates, the others what these gate
        half: tl.constexpr = outputs // 2
        row = tl.minimum(number * half + place % half, num_outputs - 1) + place // half * num_outputs
    sums = sums_of_codes(
        x, words, scales, zeros, token, row, 0, num_tokens, num_inputs, x_token, word_row, scale_row, scale_step,
        tokens, outputs, chunks, 1, warps, group, chains, precision, even, alone, kind, has_zeros, by_ptx, scale_type,
        out.dtype.element_ty, tiled, paired,
    )  # fmt: skip
    output = first + row_of(place, warps)
    if gated:
        sums = _gated(sums, outputs, tokens, warps, out.dtype.element_ty)
        output = number * half + tl.arange(0, half)
    store_sums(sums, bias, out, token, output, num_tokens, num_outputs, out_token, has_bias)


@triton.jit  # type: ignore[untyped-decorator]
def sums_of_codes(  # type: ignore[no-untyped-def]
    x, words, scales, zeros, token, row, first, num_tokens, num_inputs, x_token, word_row, scale_row, scale_step,
    tokens: tl.constexpr, outputs: tl.constexpr, chunks: tl.constexpr, apart: tl.constexpr, warps: tl.constexpr,
    group: tl.constexpr, chains: tl.constexpr, precision: tl.constexpr, even: tl.constexpr, alone: tl.constexpr,
    kind: tl.constexpr, has_zeros: tl.constexpr, by_ptx: tl.constexpr, scale_type: tl.constexpr, dtype: tl.constexpr,
    tiled: tl.constexpr, paired: tl.constexpr,
):  # fmt: skip
    """[outputs, tokens] of the weights' rows at ``row`` [outputs], as dequantized.row_of has them.

    Of chunks the ``first`` and each ``apart`` from the one before. Rows' codes come 64 bytes at a time, by which each
    thread gets what is its own in the product: dequantized.py.
    """
    units: tl.constexpr = 2 if kind == FP8 else 1  # of a chunk
    unit: tl.constexpr = _CHUNK // units
    column, is_token = tl.arange(0, unit), token < num_tokens
    step: tl.constexpr = 32 * _TILE_ROWS if tiled else 32
    x_at = x + first * _CHUNK + (column if alone else token[None, :].to(tl.int64) * x_token + column[:, None])
    codes_at = words_at(words, row, word_row, tiled) + first * (units * step)
    scales_at, zeros_at = scales + row * scale_step, zeros + row * scale_step
    pair = spread_over_lanes(scales_at)
    scale = one_of_pair(pair, 0) if paired else pair
    zero = spread_over_lanes(zeros_at) if has_zeros else scale
    one = tl.zeros([outputs, tokens], tl.float32)
    two, three, four = one, one, one
    for at in range(0, num_inputs, chunks * apart * _CHUNK):
        for part in tl.static_range(chunks * units):
            skipped = part // units * apart
            start = at + (first + skipped) * _CHUNK + part % units * unit
            if group > 0 and part % units == 0:
                which = start // group
                if not even:
                    which = tl.minimum(which, (num_inputs - 1) // group)
                if not paired or chunks % 2 == 1 or part // units % 2 == 0:
                    pair = spread_over_lanes(scales_at + (which // 2 if paired else which) * scale_row)
                scale = one_of_pair(pair, which % 2 if chunks % 2 else part // units % 2) if paired else pair
                if has_zeros:
                    zero = spread_over_lanes(zeros_at + which * scale_row)
            x_part = x_at + skipped * _CHUNK + part % units * unit
            codes_part = codes_at + (skipped * units + part % units) * step
            rows = inputs_of(x_part, is_token[None, :], start + column < num_inputs, even, alone)
            if alone:
                rows = rows.broadcast_to(unit, tokens)
            there = (row * 0 + start < num_inputs)[:, None]
            loaded = tl.load(codes_part) if even else tl.load(codes_part, there, 0)
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
        x_at, codes_at = x_at + chunks * apart * _CHUNK, codes_at + chunks * apart * units * step
    if chains == 4:
        one = one + two + three + four
    return one


@triton.jit  # type: ignore[untyped-decorator]
def _floats_beside(  # type: ignore[no-untyped-def]
    x, weights, bias, out, token, number, num_tokens, before, num_outputs, num_inputs, x_token, out_token,
    tokens: tl.constexpr, has_bias: tl.constexpr, precision: tl.constexpr, alone: tl.constexpr,
):  # fmt: skip
    """Tile ``number`` of the outputs of ``weights``, which go behind ``before`` others; inputs are whole chunks."""
    output, column = number * _BESIDE_OUTPUTS + tl.arange(0, _BESIDE_OUTPUTS), tl.arange(0, _CHUNK)
    x_at = x + (column if alone else token[None, :].to(tl.int64) * x_token + column[:, None])
    weights_at = weights + output[:, None] * num_inputs + column[None, :]
    summed = tl.zeros([_BESIDE_OUTPUTS, tokens], tl.float32)
    for at in range(0, num_inputs, _CHUNK):
        rows = inputs_of(x_at + at, (token < num_tokens)[None, :], column < num_inputs, True, alone)
        if alone:
            rows = rows.broadcast_to(_CHUNK, tokens)
        loaded = tl.load(weights_at + at, (output < num_outputs)[:, None], 0.0)
        summed = tl.dot(loaded, rows, summed, input_precision=precision)
    output, end = before + output, before + num_outputs
    store_sums(summed, bias, out, token, output, num_tokens, end, out_token, has_bias)


@triton.jit  # type: ignore[untyped-decorator]
def _gated(sums, outputs: tl.constexpr, tokens: tl.constexpr, warps: tl.constexpr, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """``silu(gate) * up`` of ``sums`` [16 * warps, tokens], with the roundings of fused.silu_mul."""
    both = sums.to(dtype).to(tl.float32).reshape(warps, 2, 8, tokens).permute(0, 2, 3, 1)
    gate, up = tl.split(both)
    activated = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
    return (activated * up).reshape(outputs // 2, tokens)


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
    beside: Tensor | None = None,
    gated: bool = False,
) -> Tensor:
    """``x`` [num_tokens, num_inputs] times ``weight`` [num_outputs, num_inputs] transposed, [num_tokens, num_outputs].

    ``out``: where it goes, rows apart as they like. Sums are float32, rounded once. A weight in codes is cut into at
    least 16 outputs a warp, and whole chunks of inputs. ``beside`` [more, num_inputs], floats that are
    :func:`small <is_small>`, has outputs behind those of the codes: so have ``bias`` and ``out``, which is given then.
    ``gated``: of codes, of which the first half are gates; what is given is ``silu(gate) * up``, [num_tokens,
    num_outputs / 2].
    """
    tokens = tiling.tokens_for(len(x))
    if gated:
        out = torch.empty(len(x), len(weight) // 2, dtype=x.dtype, device=x.device)
    grid, out, common = launch_of(x, weight, tiling, tokens, bias, out)
    if gated:
        common["num_outputs"] //= 2
    common |= {"x_token": x.stride(0), "even": x.shape[1] % tiling.inputs == 0}
    if isinstance(weight, Tensor):
        tiles = TensorDescriptor.from_tensor(weight, [tiling.outputs, tiling.inputs])
        _linear[grid](x, tiles, inputs=tiling.inputs, **common)
    else:
        assert tiling.outputs % (16 * tiling.warps) == 0
        assert tiling.inputs % CHUNK == 0
        assert not gated or (tiling.outputs == 16 * tiling.warps and bias is beside is None)
        more = 0 if beside is None else len(beside)
        linear_of_codes[grid[0], grid[1] + triton.cdiv(more, _BESIDE)](
            x, chunks=tiling.inputs // CHUNK, warps=tiling.warps, chains=1, beside=out if beside is None else beside,
            num_beside=more, has_beside=more > 0, gated=gated, group=weight.group if weight.num_groups > 1 else 0,
            alone=stands_alone(x, weight), paired=weight.is_paired, **common, **parts(weight), **settings(weight),
        )  # fmt: skip
    return out


def is_small(weight: Tensor) -> bool:
    """Whether :func:`few_tokens_linear` takes ``weight`` beside codes: a launch of its own would take longer."""
    return weight.is_contiguous() and len(weight) <= _MOST_BESIDE and weight.shape[1] % CHUNK == 0
