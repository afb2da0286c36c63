"""Products whose sums are long, with weights in codes: each sum is cut into CHAINS parts, which are made side by side.

A sum in order is a chain of a matrix unit's instructions that wait for one another; where outputs are few, these chains
and not the memory are what a product of few tokens takes its time for. Chunk c of CHUNK inputs belongs to chain
c % CHAINS; the chains' sums are added one after the other. All products with such weights add so, many tokens' with the
same weights as floats too: a token's bits do not depend on how many tokens there are.
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from flashdraft.ops.quantized import CHUNK, LONG_SUM, TILE_ROWS, QuantizedWeight
from flashdraft.ops.triton.dequantized import (
    FP8,
    floats_of,
    own_instruction,
    parts,
    row_of,
    settings,
    spread_over_lanes,
    words_at,
)
from flashdraft.ops.triton.linear import (
    inputs_of,
    launch_of,
    linear_of_codes,
    stands_alone,
    store_sums,
    sums_of_codes,
)
from flashdraft.ops.triton.tiling import Tiling

CHAINS = 4
_CHUNK = tl.constexpr(CHUNK)
_CHAINS = tl.constexpr(CHAINS)
_TILE_ROWS = tl.constexpr(TILE_ROWS)
_COUNTERS = 1 << 16  # tiles of a launch at most, whose chains are in programs of their own


def has_long_sums(weight: Tensor | QuantizedWeight) -> bool:
    """Whether products with ``weight``, if it is in codes, add in chains: by its inputs alone."""
    return weight.shape[1] >= LONG_SUM


@triton.jit(do_not_specialize=["num_tokens", "scale_step"])  # type: ignore[untyped-decorator]
def _linear_of_codes(  # type: ignore[no-untyped-def]
    x, words, scales, zeros, bias, out, num_tokens, num_outputs, num_inputs, x_token, out_token,
    word_row, scale_row, scale_step,
    tokens: tl.constexpr, outputs: tl.constexpr, rounds: tl.constexpr, warps: tl.constexpr, group: tl.constexpr,
    has_bias: tl.constexpr, precision: tl.constexpr, even: tl.constexpr, alone: tl.constexpr,
    kind: tl.constexpr, has_zeros: tl.constexpr, by_ptx: tl.constexpr, scale_type: tl.constexpr,
    tiled: tl.constexpr,
):  # fmt: skip
    # A warp has all the outputs of CHAINS / warps chains: [CHAINS, outputs, unit] times [CHAINS, unit, tokens].
    units: tl.constexpr = 2 if kind == FP8 else 1  # of a chunk
    unit: tl.constexpr = _CHUNK // units
    dtype: tl.constexpr = out.dtype.element_ty
    token = tl.program_id(0) * tokens + tl.arange(0, tokens)
    first = tl.program_id(1) * outputs
    row, chain = _loaded_rows(first, outputs, warps)
    row, is_token = tl.minimum(row, num_outputs - 1), token < num_tokens
    column = tl.arange(0, _CHAINS)[:, None] * _CHUNK + tl.arange(0, unit)[None, :]
    x_at = x + (column if alone else token[None, None, :].to(tl.int64) * x_token + column[:, :, None])
    step: tl.constexpr = 32 * _TILE_ROWS if tiled else 32
    codes_at = words_at(words, row, word_row, tiled) + (chain * (units * step))[:, None]
    scales_at, zeros_at = scales + row * scale_step, zeros + row * scale_step
    scale = spread_over_lanes(scales_at)
    zero = scale
    if has_zeros:
        zero = spread_over_lanes(zeros_at)
    summed = tl.zeros([_CHAINS, outputs, tokens], tl.float32)
    for at in range(0, num_inputs, rounds * _CHAINS * _CHUNK):
        for part in tl.static_range(rounds * units):
            skipped = part // units * _CHAINS
            start = at + skipped * _CHUNK + part % units * unit  # of the first chain's unit
            if group > 0 and part % units == 0:
                which = (start + chain * _CHUNK) // group
                if not even:
                    which = tl.minimum(which, (num_inputs - 1) // group)
                scale = spread_over_lanes(scales_at + which * scale_row)
                if has_zeros:
                    zero = spread_over_lanes(zeros_at + which * scale_row)
            x_part = x_at + skipped * _CHUNK + part % units * unit
            codes_part = codes_at + (skipped * units + part % units) * step
            rows = inputs_of(x_part, is_token[None, None, :], start + column < num_inputs, even, alone)
            if alone:
                rows = rows.broadcast_to(_CHAINS, unit, tokens)
            if even:
                loaded = tl.load(codes_part)
            else:
                loaded = tl.load(codes_part, (start + chain * _CHUNK < num_inputs)[:, None], 0)
            weights = _factor(
                loaded, scale, zero, outputs, unit, warps, kind, has_zeros, by_ptx, scale_type, dtype,
            )  # fmt: skip
            summed = tl.dot(weights, rows, summed, input_precision=precision)
        x_at += rounds * _CHAINS * _CHUNK
        codes_at += rounds * _CHAINS * units * step
    first_and_third, second_and_fourth = tl.split(summed.permute(1, 2, 0).reshape(outputs, tokens, 2, 2))
    one, three = tl.split(first_and_third)
    two, four = tl.split(second_and_fourth)
    output = first + tl.arange(0, outputs)
    store_sums(
        one + two + three + four, bias, out, token, output, num_tokens, num_outputs, out_token, has_bias
    )


@triton.jit  # type: ignore[untyped-decorator]
def _loaded_rows(first, outputs: tl.constexpr, warps: tl.constexpr):  # type: ignore[no-untyped-def]
    """Outputs from ``first`` on and their chains, as they are loaded: [outputs * CHAINS] both.

    A warp loads 8 rows at once, and 16 are an instruction's: they are (chain / warps, tile of 16, half, warp, 8).
    """
    tiles: tl.constexpr = outputs // 16
    place = tl.arange(0, outputs * _CHAINS)
    chain = place // (16 * warps * tiles) * warps + place // 8 % warps
    return first + place // (16 * warps) % tiles * 16 + place // (8 * warps) % 2 * 8 + place % 8, chain


@triton.jit  # type: ignore[untyped-decorator]
def _factor(  # type: ignore[no-untyped-def]
    words, scale, zero, outputs: tl.constexpr, unit: tl.constexpr, warps: tl.constexpr, kind: tl.constexpr,
    has_zeros: tl.constexpr, by_ptx: tl.constexpr, scale_type: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """[CHAINS, outputs, unit] of words of :func:`_loaded_rows`."""
    rows: tl.constexpr = outputs * _CHAINS
    tile = floats_of(
        words, scale, zero, rows, unit, warps, kind, has_zeros, by_ptx, scale_type, dtype, by_ptx
    )
    tile = tile.reshape(_CHAINS // warps, outputs // 16, warps, 16, unit).permute(0, 2, 1, 3, 4)
    tile = tile.reshape(_CHAINS, outputs, unit)
    if by_ptx:
        tile = own_instruction(tile)
    return tile


@triton.jit(do_not_specialize=["num_tokens", "scale_step"])  # type: ignore[untyped-decorator]
def _chains_of_codes(  # type: ignore[no-untyped-def]
    x, words, scales, zeros, bias, out, chain_sums, arrived, num_tokens, num_outputs, num_inputs, x_token, out_token,
    word_row, scale_row, scale_step,
    tokens: tl.constexpr, outputs: tl.constexpr, chunks: tl.constexpr, warps: tl.constexpr, group: tl.constexpr,
    has_bias: tl.constexpr, precision: tl.constexpr, even: tl.constexpr, alone: tl.constexpr, kind: tl.constexpr,
    has_zeros: tl.constexpr, by_ptx: tl.constexpr, scale_type: tl.constexpr, tiled: tl.constexpr,
):  # fmt: skip
    # A program has one chain of its outputs, and reads a quarter of x. The last of a tile's four that arrives adds all.
    token, place = tl.program_id(0) * tokens + tl.arange(0, tokens), tl.arange(0, outputs)
    block, chain = tl.program_id(1) // _CHAINS, tl.program_id(1) % _CHAINS
    row = tl.minimum(block * outputs + place, num_outputs - 1)
    summed = sums_of_codes(
        x, words, scales, zeros, token, row, chain, num_tokens, num_inputs, x_token, word_row, scale_row, scale_step,
        tokens, outputs, chunks, _CHAINS, warps, group, 1, precision, even, alone, kind, has_zeros, by_ptx, scale_type,
        out.dtype.element_ty, tiled, False,
    )  # fmt: skip
    tile = tl.program_id(0) * (tl.num_programs(1) // _CHAINS) + block
    cell = place[:, None] * tokens + tl.arange(0, tokens)[None, :]
    sums_at = chain_sums + tile * (_CHAINS * outputs * tokens) + cell
    tl.store(sums_at + chain * (outputs * tokens), summed)
    tl.debug_barrier()  # all threads' sums are there before one of them says so
    if tl.atomic_add(arrived + tile, 1, sem="acq_rel") == _CHAINS - 1:
        total = tl.load(sums_at, cache_modifier=".cg")
        for other in tl.static_range(1, _CHAINS):
            total += tl.load(sums_at + other * (outputs * tokens), cache_modifier=".cg")
        tl.atomic_xchg(arrived + tile, 0, sem="relaxed")
        output = block * outputs + row_of(place, warps)
        store_sums(total, bias, out, token, output, num_tokens, num_outputs, out_token, has_bias)


@triton.jit(do_not_specialize=["num_tokens"])  # type: ignore[untyped-decorator]
def _linear(  # type: ignore[no-untyped-def]
    x, weights, bias, out, num_tokens, num_outputs, num_inputs, out_token,
    tokens: tl.constexpr, outputs: tl.constexpr, inputs: tl.constexpr,
    has_bias: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    # Floats: one chain after the other, so that two sums are all that a program holds.
    token, first = tl.program_id(0) * tokens, tl.program_id(1) * outputs
    of_chunk: tl.constexpr = _CHUNK // inputs
    chunks = tl.cdiv(num_inputs, _CHUNK)
    total = tl.zeros([outputs, tokens], tl.float32)
    for chain in range(_CHAINS):
        summed = tl.zeros([outputs, tokens], tl.float32)
        for part in range(tl.cdiv(chunks - chain, _CHAINS) * of_chunk):
            at = (part // of_chunk * (_CHAINS - 1) + chain) * _CHUNK + part * inputs
            rows = x.load([token, at]).trans()
            summed = tl.dot(weights.load([first, at]), rows, summed, input_precision=precision)
        total += summed
    token, output = token + tl.arange(0, tokens), first + tl.arange(0, outputs)
    store_sums(total, bias, out, token, output, num_tokens, num_outputs, out_token, has_bias)


@cache
def counters(device: torch.device) -> Tensor:
    """Zeros, int32 [_COUNTERS], which each launch leaves as such. Launches of a device run one after the other.

    Whoever records launches has run them before (ops/recorded.py): a recording would make the zeros its own.
    """
    assert device.type != "cuda" or not torch.cuda.is_current_stream_capturing()
    return torch.zeros(_COUNTERS, dtype=torch.int32, device=device)


def _by_chains(grid: tuple[int, int], **common: Any) -> None:
    assert common["outputs"] % (16 * common["warps"]) == 0
    tiles, device = grid[0] * grid[1], common["x"].device
    assert tiles <= _COUNTERS
    cells = tiles * CHAINS * common["outputs"] * common["tokens"]
    sums = torch.empty(cells, dtype=torch.float32, device=device)
    _chains_of_codes[grid[0], grid[1] * CHAINS](chain_sums=sums, arrived=counters(device), **common)


def long_sums_linear(
    x: Tensor,
    weight: Tensor | QuantizedWeight,
    tiling: Tiling,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """As linear.few_tokens_linear, in chains; the bits of ``weight`` in codes and as floats are the same.

    In codes, a tile's inputs are whole chunks of all chains, and its warps have chains of their own, or all together
    where four have 64 outputs. Where they are fewer chunks, or no whole ones of all chains, a program has one chain:
    faster for some 32 tokens. As floats, inputs are a part of a chunk, and rows of ``x`` begin at multiples of 16
    bytes, or are copied.
    """
    tokens = tiling.tokens if isinstance(weight, Tensor) else tiling.tokens_for(len(x))
    grid, out, common = launch_of(x, weight, tiling, tokens, bias, out)
    if isinstance(weight, Tensor):
        if x.data_ptr() % 16 or x.stride(0) * x.element_size() % 16:
            x = x.contiguous()
        tiles = TensorDescriptor.from_tensor(weight, [tiling.outputs, tiling.inputs])
        rows = TensorDescriptor.from_tensor(x, [tokens, tiling.inputs])
        _linear[grid](rows, tiles, inputs=tiling.inputs, **common)
        return out
    own = tiling.inputs % (CHAINS * CHUNK) != 0  # programs have chains of their own
    chunks, period = tiling.inputs // CHUNK, tiling.inputs * (CHAINS if own else 1)
    common |= parts(weight) | settings(weight) | {
        "x": x, "x_token": x.stride(0), "warps": tiling.warps, "alone": stands_alone(x, weight),
        "group": weight.group if len(weight.scales) > 1 else 0, "even": x.shape[1] % period == 0,
    }  # fmt: skip
    assert tiling.inputs % CHUNK == 0
    assert not weight.is_paired
    if own:
        _by_chains(grid, chunks=chunks, **common)
    elif tiling.outputs % 64 == 0 and tiling.warps == 4:
        only_codes = {"beside": out, "num_beside": 0, "has_beside": False, "gated": False, "paired": False}
        linear_of_codes[grid](chunks=chunks, chains=CHAINS, **only_codes, **common)
    else:
        assert tiling.outputs % 16 == 0
        assert CHAINS % tiling.warps == 0
        _linear_of_codes[grid](rounds=chunks // CHAINS, **common)
    return out
