"""The gate of attention and the convolution of prompts against PyTorch."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
from flashdraft.ops.triton.conv_prefill import conv_prefill
from flashdraft.ops.triton.fused import sigmoid_mul

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLOSE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 4e-2, "atol": 8e-2}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sigmoid_mul(dtype):
    torch.manual_seed(0)
    both = torch.randn(3, 4, 2 * 24, device=DEVICE).to(dtype)
    x, gate = torch.randn(3, 4, 24, device=DEVICE).to(dtype), both[..., 24:]
    torch.testing.assert_close(sigmoid_mul(x, gate), x * gate.sigmoid(), **CLOSE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_convolution_of_prompts_end_to_end(dtype):
    torch.manual_seed(1)
    counts, channels = [2, 1, 37], 300
    x = torch.randn(sum(counts), 512, device=DEVICE).to(dtype)[:, :channels]
    weight, past = (
        torch.randn(channels, 4, device=DEVICE).to(dtype),
        torch.randn(6, 3, channels, device=DEVICE).to(dtype),
    )
    slots = torch.tensor([4, 0, 2], device=DEVICE)
    lengths = torch.tensor(counts, device=DEVICE)
    row_of = torch.repeat_interleave(torch.arange(3, device=DEVICE), lengths)
    found = conv_prefill(x, weight, past, slots, lengths.cumsum(0) - lengths, row_of)
    for own, slot, got in zip(x.split(counts), slots, found.split(counts), strict=True):
        history = torch.cat((past[slot], own)).T.unsqueeze(0).float()
        expected = F.silu(F.conv1d(history, weight.float().unsqueeze(1), groups=channels))[0].T
        torch.testing.assert_close(
            got.float(),
            expected,
            **(CLOSE[dtype] if dtype == torch.float32 else {"rtol": 5e-2, "atol": 5e-2}),
        )
