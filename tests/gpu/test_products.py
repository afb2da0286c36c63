"""A token's product has the bits that it has alone, whichever kernel runs for so many tokens."""

import pytest
import torch

pytest.importorskip("triton")
from flashdraft.cuda.products import product
from flashdraft.cuda.weights import Product

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("num_outputs", "num_inputs"),
    [(5120, 17408), (16480, 2048), (960, 576), (1281, 2048), (1, 2048), (257, 2048), (32001, 512)],
)
def test_a_tokens_bits_are_its_own(num_outputs, num_inputs, dtype, has_bias):
    torch.manual_seed(0)
    x = torch.randn(3000, num_inputs, dtype=dtype, device="cuda")
    weight = torch.randn(num_outputs, num_inputs, dtype=dtype, device="cuda") * 0.02
    by = Product((weight,), torch.randn(num_outputs, dtype=dtype, device="cuda") if has_bias else None)
    few = torch.cat([product(rows, by) for rows in x.split(16)])
    for count in (1, 7, 17, 32, 33, 48, 64, 65, 100, 128, 200, 256, 300, 512, 1000, 3000):
        assert torch.equal(product(x[:count], by), few[:count]), count


@pytest.mark.parametrize("has_bias", [True, False])
def test_parts_of_rows_that_begin_anywhere(has_bias):
    """Outputs and biases of one weight behind another's, as where some stay in codes; tokens cut out of longer rows."""
    torch.manual_seed(0)
    x = torch.randn(3000, 2051, dtype=torch.bfloat16, device="cuda")[:, 3:]
    sizes = (1025, 256)
    weights = tuple(torch.randn(size, 2048, dtype=x.dtype, device="cuda") * 0.02 for size in sizes)
    by = Product(weights, torch.randn(sum(sizes), dtype=x.dtype, device="cuda") if has_bias else None)
    few = torch.cat([product(rows, by) for rows in x.split(16)])
    for count in (33, 100, 512, 1000, 3000):
        assert torch.equal(product(x[:count], by), few[:count]), count


def test_pytorchs_own_settings_stay():
    matmul = torch.backends.cuda.matmul
    before = (
        torch.backends.cuda.preferred_blas_library(),
        matmul.allow_bf16_reduced_precision_reduction_split_k,
    )
    x, weight = (torch.randn(size, 64, dtype=torch.bfloat16, device="cuda") for size in (100, 32))
    product(x, Product((weight,)))
    after = (
        torch.backends.cuda.preferred_blas_library(),
        matmul.allow_bf16_reduced_precision_reduction_split_k,
    )
    assert after == before
