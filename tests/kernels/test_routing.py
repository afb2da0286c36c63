"""Routing and sorting under Triton's interpreter, against PyTorch's."""

import pytest
import torch

pytest.importorskip("triton")
from flashdraft.ops.triton.routing import route, sorted_pairs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_tokens", "num_experts", "top_k"), [(1, 9, 1), (3, 9, 9), (5, 64, 8)])
def test_the_likeliest_experts(num_tokens, num_experts, top_k, dtype, normed):
    torch.manual_seed(num_tokens)
    wide = torch.randn(num_tokens, num_experts + 3, device=DEVICE).to(dtype)
    weights, chosen = route(wide[:, 2 : num_experts + 2], top_k, normed)
    logits = wide[:, 2 : num_experts + 2]
    expected, numbers = torch.sort(logits.float().softmax(-1), descending=True, stable=True)
    expected, numbers = expected[:, :top_k], numbers[:, :top_k]
    if normed:
        expected = expected / expected.sum(-1, keepdim=True)
    assert torch.equal(chosen, numbers)
    torch.testing.assert_close(
        weights.float(), expected, atol=1e-6, rtol=0.0 if dtype == torch.float32 else 5e-3
    )


def test_of_two_alike_the_lower_number():
    assert route(torch.zeros(1, 6, device=DEVICE), 3, True)[1].tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(("num_tokens", "num_experts"), [(1, 5), (200, 5), (700, 9)])
def test_pairs_lie_by_their_experts(num_tokens, num_experts):
    """Each pair once, in a block of its expert; nobody wants the last expert."""
    torch.manual_seed(num_tokens)
    rows = 16
    chosen = torch.randint(num_experts - 1, (num_tokens, 2), device=DEVICE)
    order, blocks = sorted_pairs(chosen, num_experts, rows)
    found = {}
    for expert, begin, end in blocks.tolist():
        if expert < num_experts:
            for pair in order[begin : min(begin + rows, end)].tolist():
                assert pair not in found
                found[pair] = expert
    assert found == dict(enumerate(chosen.flatten().tolist()))
    wanted = sum(-(-count // rows) for count in chosen.flatten().bincount().tolist())
    assert (blocks[:, 0] < num_experts).sum() == wanted
    assert (blocks[wanted:, 1:] == 0).all()  # what programs without work look for
