"""The product of few tokens against PyTorch's, at awkward sizes; bits that do not depend on the neighbours."""

import pytest
import torch

pytest.importorskip("triton")
from flashdraft.ops.triton.linear import Tiling, few_tokens_linear

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


def test_goes_where_it_is_told():
    x, weight = torch.randn(3, 64, device=DEVICE), torch.randn(32, 64, device=DEVICE)
    buffer = torch.full((3, 50), torch.nan, device=DEVICE)
    few_tokens_linear(x, weight, Tiling(64, 64, 2, 4), out=buffer[:, 10:42])
    torch.testing.assert_close(buffer[:, 10:42], x @ weight.T, rtol=1e-5, atol=1e-5)
    assert buffer[:, :10].isnan().all()
    assert buffer[:, 42:].isnan().all()
