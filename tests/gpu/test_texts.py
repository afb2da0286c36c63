"""Gated delta layers over whole texts, as training runs them: by the kernels that a card has, against steps."""

import pytest
import torch

from flashdraft.ops.gated_delta import DeltaInputs, gated_delta_reference, gated_delta_texts, unit_length

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_texts_are_what_steps_say(dtype):
    torch.manual_seed(0)
    rows, num_tokens, heads, dim = 2, 333, 4, 128
    q, k = (unit_length(torch.randn(rows, num_tokens, heads, dim)) for _ in range(2))
    decay = -torch.rand(rows, num_tokens, heads)
    decay[:, [0, 70, 200]] = -200.0  # where packed texts begin
    v, beta = torch.randn(rows, num_tokens, heads, dim), torch.rand(rows, num_tokens, heads)
    given = DeltaInputs(q * dim**-0.5, k, v, decay, beta)
    expected = gated_delta_reference(given, torch.zeros(rows, heads, dim, dim))[0]
    found = gated_delta_texts(DeltaInputs(*(x.cuda() for x in given.tensors)), dtype).float().cpu()
    worst = 0.02 if dtype == torch.bfloat16 else 1e-4
    assert (found - expected).abs().max() < worst * expected.abs().max()
