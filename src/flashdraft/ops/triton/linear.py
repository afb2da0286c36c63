"""Products of some hundred tokens and fewer with large weights, bound by reading the weights once.

The weights are the first factor: on Hopper a tile of 64 of their rows feeds the matrix units' widest instruction, and
tokens are its short side. A token's bits do not depend on how many tokens there are: each output is a sum over the
inputs in order, in parts that the shape of the weights alone decides, which are then added in order.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

_SHARED_BYTES = 208 * 1024
UNIT = tl.constexpr(256)  # inputs: sums are cut at multiples of it
# How the inputs of an output are shared out: not at all, each tile's in parts, or all tiles' in a row in parts.
WHOLE, PARTS, WALK = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@dataclass(frozen=True)
class Tiling:
    """How a product is cut: outputs and inputs of a tile, loads in flight, warps; and the parts of its sums.

    Bits depend on ``parts`` or, where ``programs`` are given, on these and on ``outputs``; on nothing else here.
    """

    outputs: int
    inputs: int
    stages: int
    warps: int
    most_tokens: int = 64  # of a tile
    parts: int = 1  # of the inputs, each summed by a program of its own
    programs: int = (
        0  # all tiles' inputs one after the other, in as many equal parts; 0: each tile in ``parts``
    )
    by_descriptor: bool = False  # tokens through the card's copy engine, as weights are


@triton.jit  # type: ignore[untyped-decorator]
def _sum(  # type: ignore[no-untyped-def]
    x, weight, first_token, first_output, begin, end, num_tokens, num_inputs, x_token,
    tokens: tl.constexpr, outputs: tl.constexpr, inputs: tl.constexpr, by_descriptor: tl.constexpr,
    precision: tl.constexpr, even: tl.constexpr,
):  # fmt: skip
    summed = tl.zeros([outputs, tokens], tl.float32)
    if not by_descriptor:
        token, column = first_token + tl.arange(0, tokens), tl.arange(0, inputs)
        is_token = token < num_tokens
        x_at = x + token[None, :].to(tl.int64) * x_token + column[:, None]
    for step in range(begin, end):
        at = step * inputs
        if by_descriptor:
            rows = x.load([first_token, at]).T
        elif even:
            rows = tl.load(x_at + at, is_token[None, :], 0.0)
        else:
            rows = tl.load(x_at + at, is_token[None, :] & (at + column < num_inputs)[:, None], 0.0)
        summed = tl.dot(weight.load([first_output, at]), rows, summed, input_precision=precision)
    return summed


@triton.jit  # type: ignore[untyped-decorator]
def _joined(  # type: ignore[no-untyped-def]
    summed, sums, arrived, place, first, last, num_tokens, tokens: tl.constexpr, outputs: tl.constexpr
):
    """All parts ``first`` to ``last`` of a tile added in order, and whether this program is the last of them."""
    is_token = (tl.arange(0, tokens) < num_tokens)[None, :]
    at = tl.arange(0, outputs)[:, None] * tokens + tl.arange(0, tokens)[None, :]
    tl.store(sums + place * (outputs * tokens) + at, summed, is_token)
    tl.debug_barrier()
    is_last = tl.atomic_add(arrived, 1, sem="acq_rel") == last - first
    if is_last:
        summed = tl.load(sums + first * (outputs * tokens) + at, is_token, 0.0, cache_modifier=".cg")
        for part in range(first + 1, last + 1):
            summed += tl.load(sums + part * (outputs * tokens) + at, is_token, 0.0, cache_modifier=".cg")
        tl.store(arrived, 0)
    return summed, is_last


@triton.jit  # type: ignore[untyped-decorator]
def _tile(  # type: ignore[no-untyped-def]
    x, weight, bias, out, sums, arrived, num_tokens, num_outputs, num_inputs, x_token, out_token,
    tile, begin, end, place, first, last,
    tokens: tl.constexpr, outputs: tl.constexpr, inputs: tl.constexpr, by_descriptor: tl.constexpr,
    has_bias: tl.constexpr, precision: tl.constexpr, even: tl.constexpr,
):  # fmt: skip
    """A tile's part from unit ``begin`` to ``end``; the parts of ``first`` to ``last`` make it whole."""
    a_unit: tl.constexpr = UNIT // inputs
    first_token, first_output = tl.program_id(0) * tokens, tile * outputs
    summed = _sum(
        x, weight, first_token, first_output, begin * a_unit, tl.minimum(end * a_unit, tl.cdiv(num_inputs, inputs)),
        num_tokens, num_inputs, x_token, tokens, outputs, inputs, by_descriptor, precision, even,
    )  # fmt: skip
    is_last = True
    if first < last:
        counter = arrived + tl.program_id(0) * tl.cdiv(num_outputs, outputs) + tile
        left = num_tokens - first_token
        summed, is_last = _joined(summed, sums, counter, place, first, last, left, tokens, outputs)
    if is_last:
        token, output = first_token + tl.arange(0, tokens), first_output + tl.arange(0, outputs)
        is_token, is_output = token < num_tokens, output < num_outputs
        if has_bias:
            summed += tl.load(bias + output, is_output, 0.0).to(tl.float32)[:, None]
        out_at = out + token[None, :].to(tl.int64) * out_token + output[:, None]
        tl.store(out_at, summed.to(out.dtype.element_ty), is_token[None, :] & is_output[:, None])


@triton.jit(do_not_specialize=["num_tokens", "programs", "parts"])  # type: ignore[untyped-decorator]
def _linear(  # type: ignore[no-untyped-def]
    x, weight, bias, out, sums, arrived, num_tokens, num_outputs, num_inputs, x_token, out_token, programs, parts,
    tokens: tl.constexpr, outputs: tl.constexpr, inputs: tl.constexpr, sharing: tl.constexpr,
    by_descriptor: tl.constexpr, has_bias: tl.constexpr, precision: tl.constexpr, even: tl.constexpr,
):  # fmt: skip
    # Tokens vary fastest: programs that read the same weights run side by side, and all but one find them in the L2.
    program, units = tl.program_id(1), tl.cdiv(num_inputs, UNIT)
    before = tl.program_id(0).to(tl.int64)
    if sharing == WHOLE:
        _tile(
            x, weight, bias, out, sums, arrived, num_tokens, num_outputs, num_inputs, x_token, out_token,
            program, 0, units, 0, 0, 0,
            tokens, outputs, inputs, by_descriptor, has_bias, precision, even,
        )  # fmt: skip
    elif sharing == PARTS:
        tile, part = program // parts, program % parts
        first = before * programs + tile * parts
        _tile(
            x, weight, bias, out, sums, arrived, num_tokens, num_outputs, num_inputs, x_token, out_token,
            tile, part * units // parts, (part + 1) * units // parts, first + part, first, first + parts - 1,
            tokens, outputs, inputs, by_descriptor, has_bias, precision, even,
        )  # fmt: skip
    else:
        tiles = tl.cdiv(num_outputs, outputs)
        total = (tiles * units).to(tl.int64)
        at, end = (program * total // programs).to(tl.int32), ((program + 1) * total // programs).to(tl.int32)
        while at < end:
            tile = at // units
            begin, stop = tile * units, tl.minimum((tile + 1) * units, end)
            # The programs that hold the tile's first and last unit. A (program, tile) is placed at their sum.
            first = ((begin + 1).to(tl.int64) * programs - 1) // total
            last = ((begin + units).to(tl.int64) * programs - 1) // total
            place = before * (programs + tiles) + tile
            _tile(
                x, weight, bias, out, sums, arrived, num_tokens, num_outputs, num_inputs, x_token, out_token,
                tile, at - begin, stop - begin, place + program, place + first, place + last,
                tokens, outputs, inputs, by_descriptor, has_bias, precision, even,
            )  # fmt: skip
            at = stop


_arrived: dict[tuple[torch.device, int], Tensor] = {}


def _counters(size: int, device: torch.device) -> Tensor:
    """Zeros, to which each launch comes back: programs of a tile that are done. Launches follow one another."""
    key = (device, size)
    if key not in _arrived:
        _arrived[key] = torch.zeros(size, dtype=torch.int32, device=device)
    return _arrived[key]


def few_tokens_linear(
    x: Tensor, weight: Tensor, tiling: Tiling, bias: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """``x`` [num_tokens, num_inputs] times ``weight`` [num_outputs, num_inputs] transposed, [num_tokens, num_outputs].

    ``out``: where it goes, rows apart as they like. Sums are float32, rounded once.
    """
    num_tokens, num_inputs = x.shape
    num_outputs = weight.shape[0]
    if out is None:
        out = torch.empty(num_tokens, num_outputs, dtype=x.dtype, device=x.device)
    tokens = min(max(triton.next_power_of_2(num_tokens), 16), tiling.most_tokens)
    token_tiles, tiles = triton.cdiv(num_tokens, tokens), triton.cdiv(num_outputs, tiling.outputs)
    sums, arrived, programs, sharing = out, out, tiles, WHOLE
    if tiling.programs or tiling.parts > 1:
        sharing, programs = PARTS, tiles * tiling.parts
        if tiling.programs:
            sharing, programs = WALK, min(tiling.programs, tiles * triton.cdiv(num_inputs, UNIT.value))
        places = token_tiles * (programs + (tiles if tiling.programs else 0))
        sums = torch.empty(places * tiling.outputs * tokens, dtype=torch.float32, device=x.device)
        arrived = _counters(token_tiles * tiles, x.device)
    # Fewer loads in flight where tiles are large: a Hopper's programs share 227 KiB. No bit depends on it.
    size = (tiling.outputs + tokens) * tiling.inputs * weight.element_size()
    stages = max(min(tiling.stages, _SHARED_BYTES // size), 2)
    _linear[(token_tiles, programs)](
        TensorDescriptor.from_tensor(x, [tokens, tiling.inputs]) if tiling.by_descriptor else x,
        TensorDescriptor.from_tensor(weight, [tiling.outputs, tiling.inputs]),
        out if bias is None else bias, out, sums, arrived, num_tokens, num_outputs, num_inputs, x.stride(0),
        out.stride(0), programs, tiling.parts, tokens=tokens, outputs=tiling.outputs, inputs=tiling.inputs,
        sharing=sharing.value, by_descriptor=tiling.by_descriptor, has_bias=bias is not None,
        precision="ieee" if x.dtype == torch.float32 else "tf32", even=num_inputs % tiling.inputs == 0,
        num_warps=tiling.warps, num_stages=stages,
    )  # fmt: skip
    return out
