"""The product of few tokens against PyTorch's, at awkward sizes; bits that do not depend on the neighbours."""

import pytest
import torch

pytest.importorskip("triton")
from flashdraft.ops.triton.linear import Tiling, few_tokens_linear

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHARINGS = {"whole": {}, "parts": {"parts": 3}, "few programs": {"programs": 2}, "many": {"programs": 7}}


@pytest.mark.parametrize("by_descriptor", [True, False])
@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), [(1, 64, 80), (5, 608, 64), (33, 528, 208)])
def test_equals_the_plain_product(tokens, inputs, outputs, sharing, by_descriptor):
    torch.manual_seed(tokens)
    x, weight = torch.randn(tokens, inputs, device=DEVICE), torch.randn(outputs, inputs, device=DEVICE)
    bias = torch.randn(outputs, device=DEVICE)
    tiling = Tiling(64, 64, 2, 4, 16, by_descriptor=by_descriptor, **SHARINGS[sharing])
    for _ in range(2):  # the second finds what the first left
        found = few_tokens_linear(x, weight, tiling, bias)
        torch.testing.assert_close(found, torch.nn.functional.linear(x, weight, bias), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_a_tokens_bits_are_its_own(sharing):
    torch.manual_seed(0)
    x = torch.randn(40, 600, device=DEVICE).bfloat16()
    weight = torch.randn(192, 600, device=DEVICE).bfloat16()
    whole = few_tokens_linear(x, weight, Tiling(64, 64, 3, 8, 16, **SHARINGS[sharing]))
    for count in (1, 7, 20):
        few = few_tokens_linear(x[:count], weight, Tiling(64, 64, 2, 4, 16, **SHARINGS[sharing]))
        assert torch.equal(few, whole[:count])


def test_goes_where_it_is_told():
    x, weight = torch.randn(3, 64, device=DEVICE), torch.randn(32, 64, device=DEVICE)
    buffer = torch.full((3, 50), torch.nan, device=DEVICE)
    few_tokens_linear(x, weight, Tiling(64, 64, 2, 4), out=buffer[:, 10:42])
    torch.testing.assert_close(buffer[:, 10:42], x @ weight.T, rtol=1e-5, atol=1e-5)
    assert buffer[:, :10].isnan().all()
    assert buffer[:, 42:].isnan().all()
