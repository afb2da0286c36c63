"""A product on the GPU by the kernel that suits its shape. Whichever that is, a token's bits are those it has alone.

The kernel for few tokens adds an output's inputs in order. So does cuBLAS where it does not split them among its
programs, which cuBLASLt can be told; on Hopper both run the same instruction on 16 inputs at a time. No bit depends on
which of the two works, then: benchmarks/gpu_linear.py compares them.
For rows that do not begin at multiples of 16 bytes cuBLAS has other kernels, which add otherwise: of 1,281 outputs, as
a router with its shared expert has them, or of a vocabulary of 151,669. Those products are the kernel's for few tokens,
however many there are.
Weights in codes are made floats on the way, for many tokens in memory: the same floats, so again the same bits. Where
their sums are long all products add in chains, ops/triton/long_sums.py, and cuBLAS has none of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from flashdraft.cuda.weights import Product, Weight
from flashdraft.ops.quantized import QuantizedWeight, rows_at_once
from flashdraft.ops.triton.dequantized import dequantize
from flashdraft.ops.triton.fused import silu_mul
from flashdraft.ops.triton.linear import few_tokens_linear, is_small
from flashdraft.ops.triton.long_sums import has_long_sums, long_sums_linear
from flashdraft.ops.triton.tiling import Tiling

_VECTOR = 16  # bytes that cuBLAS loads at once
_MORE = Tiling(64, 512, 2, 4)  # of codes in chains
_WIDE = 8192  # outputs; with more the kernel for few tokens has enough programs for 64 of them


def tiling_of(num_outputs: int, num_inputs: int, num_tokens: int) -> Tiling:
    """The fastest measured on an H200 for weights of about this shape: benchmarks/results/h200/linear.jsonl."""
    few = num_tokens <= 32
    if num_outputs <= _WIDE:
        return Tiling(64, 256, 4, 4) if num_inputs >= 1024 else Tiling(64, 128, 4, 4)
    if 32768 < num_outputs <= 65536:
        return Tiling(64, 64, 3, 4) if few else Tiling(128, 64, 3, 8)
    return Tiling(64, 128, 4, 4) if few and 16384 < num_outputs <= 32768 else Tiling(128, 128, 4, 8)


def _tiling_of_codes(num_tokens: int, weight: QuantizedWeight) -> Tiling:
    """The fastest measured on an H200, or as good: benchmarks/results/h200/chains.jsonl and older ones."""
    num_outputs, is_packed = len(weight), weight.is_packed
    if has_long_sums(weight):
        if num_tokens == 1 and is_packed:
            return Tiling(16, 1024 if weight.shape[1] > _WIDE else 512, 4, 4, 8)
        if num_tokens <= 8:
            return Tiling(16, 1024, 3, 4, 8) if is_packed else Tiling(16, 512, 4, 4, 8)
        if num_tokens <= 16:
            return Tiling(16, 512, 3, 4)
        return Tiling(64, 128, 4 if weight.shape[1] > _WIDE else 3, 4) if num_tokens <= 32 else _MORE
    if num_tokens <= 8:
        if num_outputs <= (4 * _WIDE if num_tokens == 1 and is_packed else _WIDE):
            return Tiling(16, 256, 4, 1, 8)
        if num_tokens == 1 and not is_packed and num_outputs > 4 * _WIDE:
            return Tiling(16, 128, 6, 1, 8)
        stages = 3 if is_packed == (num_outputs > 4 * _WIDE) else 4
        return Tiling(32, 256, stages, 2, 8)
    if num_outputs <= _WIDE:
        return Tiling(32, 256, 4, 2) if num_tokens <= 16 else Tiling(64, 256, 4, 4)
    if num_tokens <= 16:
        return Tiling(64, 256, 4, 4) if is_packed else Tiling(32, 256, 3, 2)
    if num_tokens <= 32:
        return Tiling(64, 256, 3, 4) if is_packed else Tiling(64, 128, 3 if num_outputs > 4 * _WIDE else 4, 4)
    return Tiling(64, 128, 4, 4)


def _tiling_of_chains(num_tokens: int) -> Tiling:
    """Of floats whose sums are in chains: tiles so small that most of a card's multiprocessors have some."""
    if num_tokens <= 128:
        return Tiling(64, 64, 6, 4, 64)
    return Tiling(64, 64, 4, 4, 128) if num_tokens <= 512 else Tiling(128, 64, 4, 8, 128)


def product(x: Tensor, by: Product, out: Tensor | None = None) -> Tensor:
    """``x`` [num_tokens, num_inputs] times the weights, [num_tokens, num_outputs]; into ``out`` where given."""
    if len(by.weights) == 1:
        return _product(x, by.weights[0], by.bias, out)
    if out is None:
        out = x.new_empty(len(x), by.num_outputs)
    left, at = list(by.weights), 0
    while left:
        weight = left.pop(0)
        beside = left.pop(0) if left and _has_beside(x, weight, left[0]) else None
        end = at + len(weight) + (0 if beside is None else len(beside))
        _product(x, weight, None if by.bias is None else by.bias[at:end], out[:, at:end], beside)
        at = end
    return out


def gated_product(x: Tensor, by: Product) -> Tensor:
    """``silu(gate) * up`` of the product, whose first half are gates: [num_tokens, num_outputs / 2]."""
    weight = by.weights[0]
    if not isinstance(weight, Tensor) and len(by.weights) == 1 and by.bias is None:
        tiling = _tiling_of_codes(len(x), weight)
        if _suits_codes(x, weight) and not has_long_sums(weight) and tiling.outputs == 16 * tiling.warps:
            return few_tokens_linear(x, weight, tiling, gated=True)
    return silu_mul(product(x, by))


def _has_beside(x: Tensor, weight: Weight, other: Weight) -> bool:
    """Whether products of ``x`` with both are one launch: small floats behind codes, as gates and routers are left."""
    if isinstance(weight, Tensor) or not isinstance(other, Tensor) or other.dtype != x.dtype:
        return False
    return _suits_codes(x, weight) and not has_long_sums(weight) and is_small(other)


def _product(
    x: Tensor, weight: Weight, bias: Tensor | None, out: Tensor | None, beside: Weight | None = None
) -> Tensor:
    if isinstance(weight, Tensor):
        return _of_floats(x, weight, bias, out)
    if not _suits_codes(x, weight):
        return _by_floats(x, weight, bias, out)
    tiling = _tiling_of_codes(len(x), weight)
    if has_long_sums(weight):
        return long_sums_linear(x, weight, tiling, bias, out)
    assert not isinstance(beside, QuantizedWeight)
    return few_tokens_linear(x, weight, tiling, bias, out, beside)


def _suits_codes(x: Tensor, weight: QuantizedWeight) -> bool:
    """Whether ``x`` is so few tokens that floats made anew for each tile cost less than floats in memory."""
    return len(x) <= (128 if len(weight) > _WIDE else 64)


def _by_floats(x: Tensor, weight: QuantizedWeight, bias: Tensor | None, out: Tensor | None) -> Tensor:
    """Some outputs after the others, so that not all of ``weight`` lies in memory as floats."""
    num_outputs, num_inputs = weight.shape
    rows = rows_at_once(num_outputs, num_inputs)
    if out is None:
        out = x.new_empty(len(x), num_outputs)
    floats = x.new_empty(rows, num_inputs)
    for at in range(0, num_outputs, rows):
        part = weight[at : at + rows]
        values = dequantize(part, floats[: len(part)])
        its_bias = None if bias is None else bias[at : at + rows]
        its_out = out[:, at : at + rows]
        if has_long_sums(weight):
            long_sums_linear(x, values, _tiling_of_chains(len(x)), its_bias, its_out)
        else:
            _of_floats(x, values, its_bias, its_out)
    return out


def _of_floats(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
    num_outputs, num_inputs = weight.shape
    few = 64 if num_outputs > _WIDE or x.dtype == torch.float32 else 32
    if num_inputs % 16 == 0 and (len(x) <= few or not _suits_cublas(x, num_outputs, bias, out)):
        return few_tokens_linear(x, weight, tiling_of(num_outputs, num_inputs, len(x)), bias, out)
    with unsplit_sums(x):
        if out is None:
            return F.linear(x, weight, bias)
        return torch.mm(x, weight.t(), out=out) if bias is None else out.copy_(F.linear(x, weight, bias))


def _suits_cublas(x: Tensor, num_outputs: int, bias: Tensor | None, out: Tensor | None) -> bool:
    """Whether cuBLAS adds in order, in 16 bits: all rows begin at multiples of 16 bytes. float32 is its in any case.

    With a bias it writes rows of ``num_outputs``, which are copied to ``out``.
    """
    if x.dtype == torch.float32:
        return True
    places = [x.data_ptr(), x.stride(0) * x.element_size()]
    if bias is not None:
        places.append(bias.data_ptr())
    if bias is not None or out is None:
        places.append(num_outputs * x.element_size())
    else:
        places += [out.data_ptr(), out.stride(0) * out.element_size()]
    return all(place % _VECTOR == 0 for place in places)


@contextmanager
def unsplit_sums(x: Tensor) -> Iterator[None]:
    """Products of ``x``, in 16 bits on a GPU, add each output's inputs in order."""
    if not x.is_cuda or x.dtype == torch.float32:
        yield
        return
    matmul, cuda = torch.backends.cuda.matmul, torch.backends.cuda
    kind = "bf16" if x.dtype == torch.bfloat16 else "fp16"
    setting = f"allow_{kind}_reduced_precision_reduction"
    before = cuda.preferred_blas_library(), (getattr(matmul, setting), getattr(matmul, f"{setting}_split_k"))
    cuda.preferred_blas_library("cublaslt")
    setattr(matmul, setting, (False, False))
    try:
        yield
    finally:
        setattr(matmul, setting, before[1])
        cuda.preferred_blas_library(before[0])
