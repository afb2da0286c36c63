"""Products of few tokens with large weights, bound by reading the weights once.

The weights are the first factor: on Hopper a tile of 64 of their rows feeds the matrix units' widest instruction, and
tokens are its short side. Each output is one sum over the inputs in order, whatever stands beside it, so that a
token's bits do not depend on how many tokens there are.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

_SHARED_BYTES = 208 * 1024


@dataclass(frozen=True)
class Tiling:
    """How a product is cut: outputs and inputs of a tile, loads in flight, warps, and parts of the inputs."""

    outputs: int
    inputs: int
    stages: int
    warps: int
    parts: int = 1  # of the inputs, each summed by a program of its own and then added in order
    by_descriptor: bool = True  # weights through the card's copy engine
    most_tokens: int = 64  # of a tile


@triton.jit(do_not_specialize=["num_tokens"])  # type: ignore[untyped-decorator]
def _linear(  # type: ignore[no-untyped-def]
    x, weight, bias, out, num_tokens, num_outputs, num_inputs, x_token, out_token,
    tokens: tl.constexpr, outputs: tl.constexpr, inputs: tl.constexpr, parts: tl.constexpr,
    by_descriptor: tl.constexpr, has_bias: tl.constexpr, precision: tl.constexpr, even: tl.constexpr,
):  # fmt: skip
    # Tokens vary fastest: programs that read the same weights run side by side, and all but one find them in the L2.
    token = tl.program_id(0) * tokens + tl.arange(0, tokens)
    first = tl.program_id(1) * outputs
    part = tl.program_id(2)
    output = first + tl.arange(0, outputs)
    is_token, is_output = token < num_tokens, output < num_outputs
    column = tl.arange(0, inputs)
    steps = tl.cdiv(num_inputs, inputs)
    begin, end = part * steps // parts, (part + 1) * steps // parts
    x_at = x + token[None, :].to(tl.int64) * x_token + column[:, None]
    summed = tl.zeros([outputs, tokens], tl.float32)
    if not by_descriptor:
        w_at = weight + output[:, None].to(tl.int64) * num_inputs + column[None, :]
    for step in range(begin, end):
        at = step * inputs
        if even:
            rows = tl.load(x_at + at, is_token[None, :], 0.0)
        else:
            rows = tl.load(x_at + at, is_token[None, :] & (at + column < num_inputs)[:, None], 0.0)
        if by_descriptor:
            w = weight.load([first, at])
        elif even:
            w = tl.load(w_at + at, is_output[:, None], 0.0)
        else:
            w = tl.load(w_at + at, is_output[:, None] & (at + column < num_inputs)[None, :], 0.0)
        summed = tl.dot(w, rows, summed, input_precision=precision)
    if has_bias:
        summed += tl.load(bias + output, is_output, 0.0).to(tl.float32)[:, None]
    out_at = out + (part * num_tokens + token[None, :]).to(tl.int64) * out_token + output[:, None]
    tl.store(out_at, summed.to(out.dtype.element_ty), is_token[None, :] & is_output[:, None])


@triton.jit(do_not_specialize=["num_tokens"])  # type: ignore[untyped-decorator]
def _add_parts(  # type: ignore[no-untyped-def]
    parts, out, num_tokens, num_outputs, out_token, num_parts: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    output = tl.program_id(1) * tile + tl.arange(0, tile)
    is_output = output < num_outputs
    summed = tl.load(parts + token * num_outputs + output, is_output, 0.0)
    for part in range(1, num_parts):
        summed += tl.load(parts + (part * num_tokens + token) * num_outputs + output, is_output, 0.0)
    tl.store(out + token * out_token + output, summed.to(out.dtype.element_ty), is_output)


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
    target = out
    if tiling.parts > 1:
        assert bias is None, "parts are added without a bias"
        target = torch.empty(tiling.parts, num_tokens, num_outputs, dtype=torch.float32, device=x.device)
    given = weight
    if tiling.by_descriptor:
        given = TensorDescriptor.from_tensor(weight, [tiling.outputs, tiling.inputs])
    # Fewer loads in flight where tiles are large: a Hopper's programs share 227 KiB. No bit depends on it.
    size = (tiling.outputs + tokens) * tiling.inputs * weight.element_size()
    stages = max(min(tiling.stages, _SHARED_BYTES // size), 2)
    grid = (triton.cdiv(num_tokens, tokens), triton.cdiv(num_outputs, tiling.outputs), tiling.parts)
    _linear[grid](
        x, given, weight if bias is None else bias, target, num_tokens, num_outputs, num_inputs, x.stride(0),
        target.stride(-2), tokens=tokens, outputs=tiling.outputs, inputs=tiling.inputs, parts=tiling.parts,
        by_descriptor=tiling.by_descriptor, has_bias=bias is not None,
        precision="ieee" if x.dtype == torch.float32 else "tf32", even=num_inputs % tiling.inputs == 0,
        num_warps=tiling.warps, num_stages=stages,
    )  # fmt: skip
    if tiling.parts > 1:
        tile = 1024
        _add_parts[(num_tokens, triton.cdiv(num_outputs, tile))](
            target, out, num_tokens, num_outputs, out.stride(0), num_parts=tiling.parts, tile=tile
        )
    return out
