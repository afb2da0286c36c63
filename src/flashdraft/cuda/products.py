"""A product on the GPU by the kernel that suits its shape."""

import torch
import torch.nn.functional as F
from torch import Tensor

from flashdraft.cuda.weights import Product
from flashdraft.ops.triton.linear import Tiling, few_tokens_linear

# Above as many tokens the matrix units bound a product, and cuBLAS is faster: benchmarks/gpu_linear.py.
FEW_TOKENS = 64


def tiling_of(num_outputs: int, num_inputs: int) -> Tiling:
    """The fastest measured on an H200 for weights of about this shape: benchmarks/results/h200/linear.json."""
    if num_outputs > 65536:
        return Tiling(128, 64, 3, 8)
    if num_outputs > 32768:
        return Tiling(64, 64, 3, 4)
    if num_outputs > 8192:
        return Tiling(128, 128, 4, 4)
    return Tiling(64, 256, 4, 4) if num_inputs >= 1024 else Tiling(64, 128, 4, 4)


def product(x: Tensor, by: Product, out: Tensor | None = None) -> Tensor:
    """``x`` [num_tokens, num_inputs] times the weights, [num_tokens, num_outputs]; into ``out`` where given."""
    num_tokens, (num_outputs, num_inputs) = len(x), by.weight.shape
    if num_tokens <= FEW_TOKENS and num_inputs % 16 == 0:
        return few_tokens_linear(x, by.weight, tiling_of(num_outputs, num_inputs), by.bias, out)
    if out is None:
        return F.linear(x, by.weight, by.bias)
    assert by.bias is None, "a product that is staged has no bias"
    return torch.mm(x, by.weight.t(), out=out)
