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

from flashdraft.ops.quantized import QuantizedWeight
from flashdraft.ops.triton.dequantized import descriptors, settings, weights_tile

_SHARED_BYTES = 208 * 1024
_MOST_TOKENS = 64  # of a tile


@dataclass(frozen=True)
class Tiling:
    """How a product is cut: outputs and inputs of a tile, loads in flight, warps. No bit depends on it."""

    outputs: int
    inputs: int
    stages: int
    warps: int


@triton.jit(do_not_specialize=["num_tokens"])  # type: ignore[untyped-decorator]
def _linear(  # type: ignore[no-untyped-def]
    x, codes, scales, zeros, group, bias, out, num_tokens, num_outputs, num_inputs, x_token, out_token,
    tokens: tl.constexpr, outputs: tl.constexpr, inputs: tl.constexpr,
    has_bias: tl.constexpr, precision: tl.constexpr, even: tl.constexpr,
    kind: tl.constexpr, has_zeros: tl.constexpr, by_ptx: tl.constexpr,
):  # fmt: skip
    # Tokens vary fastest: programs that read the same weights run side by side, and all but one find them in the L2.
    token = tl.program_id(0) * tokens + tl.arange(0, tokens)
    first = tl.program_id(1) * outputs
    output, column = first + tl.arange(0, outputs), tl.arange(0, inputs)
    is_token, is_output = token < num_tokens, output < num_outputs
    x_at = x + token[None, :].to(tl.int64) * x_token + column[:, None]
    summed = tl.zeros([outputs, tokens], tl.float32)
    for at in range(0, num_inputs, inputs):
        if even:
            rows = tl.load(x_at + at, is_token[None, :], 0.0)
        else:
            rows = tl.load(x_at + at, is_token[None, :] & (at + column < num_inputs)[:, None], 0.0)
        weights = weights_tile(
            codes,
            scales,
            zeros,
            first,
            at,
            group,
            outputs,
            inputs,
            kind,
            has_zeros,
            by_ptx,
            out.dtype.element_ty,
        )
        summed = tl.dot(weights, rows, summed, input_precision=precision)
    if has_bias:
        summed += tl.load(bias + output, is_output, 0.0).to(tl.float32)[:, None]
    out_at = out + token[None, :].to(tl.int64) * out_token + output[:, None]
    tl.store(out_at, summed.to(out.dtype.element_ty), is_token[None, :] & is_output[:, None])


def few_tokens_linear(
    x: Tensor,
    weight: Tensor | QuantizedWeight,
    tiling: Tiling,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``x`` [num_tokens, num_inputs] times ``weight`` [num_outputs, num_inputs] transposed, [num_tokens, num_outputs].

    ``out``: where it goes, rows apart as they like. Sums are float32, rounded once.
    """
    num_tokens, num_inputs = x.shape
    num_outputs = weight.shape[0]
    if out is None:
        out = torch.empty(num_tokens, num_outputs, dtype=x.dtype, device=x.device)
    tokens = min(max(triton.next_power_of_2(num_tokens), 16), _MOST_TOKENS)
    # Fewer loads in flight where tiles are large: a Hopper's programs share 227 KiB.
    a_row = weight.nbytes * tiling.inputs // (num_outputs * num_inputs)
    size = tiling.outputs * a_row + tokens * tiling.inputs * x.element_size()
    stages = max(min(tiling.stages, _SHARED_BYTES // size), 2)
    _linear[(triton.cdiv(num_tokens, tokens), triton.cdiv(num_outputs, tiling.outputs))](
        x, **descriptors(weight, tiling.outputs, tiling.inputs), bias=out if bias is None else bias, out=out,
        num_tokens=num_tokens, num_outputs=num_outputs, num_inputs=num_inputs, x_token=x.stride(0),
        out_token=out.stride(0), tokens=tokens, outputs=tiling.outputs, inputs=tiling.inputs, has_bias=bias is not None,
        precision="ieee" if x.dtype == torch.float32 else "tf32", even=num_inputs % tiling.inputs == 0,
        num_warps=tiling.warps, num_stages=stages, **settings(weight),
    )  # fmt: skip
    return out
