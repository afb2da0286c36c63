"""The product of few tokens against PyTorch's, at awkward sizes; bits that do not depend on the neighbours."""

import pytest
import torch

pytest.importorskip("triton")
from flashdraft.cuda import products
from flashdraft.cuda.weights import Product
from flashdraft.ops.triton.linear import few_tokens_linear
from flashdraft.ops.triton.tiling import Tiling

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), [(1, 64, 80), (5, 96, 64), (33, 208, 48)])
def test_equals_the_plain_product(tokens, inputs, outputs, has_bias):
    torch.manual_seed(tokens)
    x, weight = torch.randn(tokens, inputs, device=DEVICE), torch.randn(outputs, inputs, device=DEVICE)
    bias = torch.randn(outputs, device=DEVICE) if has_bias else None
    found = few_tokens_linear(x, weight, Tiling(64, 64, 2, 4), bias)
    torch.testing.assert_close(found, torch.nn.functional.linear(x, weight, bias), rtol=1e-5, atol=1e-4)


def test_a_tokens_bits_are_its_own():
    torch.manual_seed(0)
    x = torch.randn(40, 192, device=DEVICE).bfloat16()
    weight = torch.randn(96, 192, device=DEVICE).bfloat16()
    tiling = Tiling(64, 64, 2, 4)
    whole = few_tokens_linear(x, weight, tiling)
    for count in (1, 7, 20):
        assert torch.equal(few_tokens_linear(x[:count], weight, tiling), whole[:count])


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("sizes", "first"), [((81,), 0), ((17, 64), 0), ((80,), 3)])
def test_many_tokens_in_rows_that_begin_anywhere(sizes, first, has_bias, monkeypatch):
    """In which order a library's kernels for such rows add is not ours to say: they are not called."""

    def unwanted(x):
        pytest.fail(f"{len(x)} tokens go to the library")

    monkeypatch.setattr(products, "unsplit_sums", unwanted)
    torch.manual_seed(0)
    x = torch.randn(40, 515, device=DEVICE).bfloat16()[:, first : first + 512]
    x = x if first else x.contiguous()
    weights = tuple(torch.randn(size, 512, device=DEVICE).bfloat16() for size in sizes)
    bias = torch.randn(sum(sizes), device=DEVICE).bfloat16() if has_bias else None
    by = Product(weights, bias)
    few = torch.cat([products.product(rows, by) for rows in x.split(16)])
    assert torch.equal(products.product(x, by), few)
    with pytest.raises(pytest.fail.Exception, match="40 tokens"):
        products.product(x.contiguous(), Product((weights[-1][:16],)))


def test_goes_where_it_is_told():
    x, weight = torch.randn(3, 64, device=DEVICE), torch.randn(32, 64, device=DEVICE)
    buffer = torch.full((3, 50), torch.nan, device=DEVICE)
    few_tokens_linear(x, weight, Tiling(64, 64, 2, 4), out=buffer[:, 10:42])
    torch.testing.assert_close(buffer[:, 10:42], x @ weight.T, rtol=1e-5, atol=1e-5)
    assert buffer[:, :10].isnan().all()
    assert buffer[:, 42:].isnan().all()
