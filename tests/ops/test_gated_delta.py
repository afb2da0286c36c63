"""The gated delta rule: chunks against token by token, and the convolution against torch's."""

import pytest
import torch
import torch.nn.functional as F

from flashdraft.ops.causal_conv import causal_conv
from flashdraft.ops.gated_delta import (
    DeltaInputs,
    gated_delta_chunked,
    gated_delta_reference,
    gated_delta_texts,
    unit_length,
)


def delta_inputs(num_tokens: int, rows: int = 2, seed: int = 0) -> DeltaInputs:
    generator = torch.Generator().manual_seed(seed)
    q, k = (unit_length(torch.randn(rows, num_tokens, 3, 10, generator=generator)) for _ in range(2))
    v = torch.randn(rows, num_tokens, 3, 14, generator=generator)
    decay = -30 * torch.rand(rows, num_tokens, 3, generator=generator) ** 9  # few are strong
    return DeltaInputs(q, k, v, decay, torch.rand(rows, num_tokens, 3, generator=generator))


@pytest.mark.parametrize("num_tokens", [1, 2, 63, 64, 65, 200])
def test_chunks_equal_steps(num_tokens):
    inputs = delta_inputs(num_tokens)
    start = torch.randn(2, 3, 10, 14, generator=torch.Generator().manual_seed(1))
    expected, expected_state = gated_delta_reference(inputs, start)
    found, state = gated_delta_chunked(inputs, start)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(state, expected_state, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("num_tokens", [30, 150])  # one by one, and by chunks
def test_texts_begin_with_nothing(num_tokens):
    given = delta_inputs(num_tokens)
    expected = gated_delta_reference(given, torch.zeros(2, 3, 10, 14))[0]
    found = gated_delta_texts(given, torch.float32)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_a_key_is_overwritten():
    """The rule by hand: with beta 1 and no decay, what a unit key last wrote is what it reads."""
    k = torch.zeros(1, 3, 1, 2)
    k[0, :, 0] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    v = torch.tensor([5.0, 6.0, 7.0]).view(1, 3, 1, 1)
    ones = torch.ones(1, 3, 1)
    _, state = gated_delta_reference(DeltaInputs(k, k, v, 0 * ones, ones), torch.zeros(1, 1, 2, 1))
    assert state.flatten().tolist() == [7.0, 6.0]


def test_convolution_equals_torch():
    generator = torch.Generator().manual_seed(2)
    x, past, weight = (torch.randn(s, generator=generator) for s in ((2, 9, 5), (2, 3, 5), (5, 4)))
    expected = F.conv1d(torch.cat((past, x), 1).transpose(1, 2), weight.unsqueeze(1), groups=5).transpose(
        1, 2
    )
    positions = torch.arange(3, 12).expand(2, -1)
    torch.testing.assert_close(causal_conv(x, past, weight, positions), expected)
    # A text that begins within the row sees nothing before itself.
    restarted = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]] * 2)
    alone = causal_conv(x[:, 4:], torch.zeros_like(past), weight, restarted[:, 4:])
    torch.testing.assert_close(causal_conv(x, past, weight, restarted)[:, 4:], alone)
