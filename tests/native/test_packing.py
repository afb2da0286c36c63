"""How weights lie in memory for the C++ part."""

import pytest
import torch

from flashdraft.native.packing import Kind, pack
from quantized_files import PACKERS


def test_weights_of_a_gguf_are_kept_as_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    scale, least = torch.rand(2, 16, 2, 1, generator=generator).half().float()
    q = torch.randint(0, 16, (16, 2, 32), generator=generator)
    q[..., :2] = torch.tensor([0, 15])  # as Q4_1 makes them: its range is the block's
    blocks = pack((q * scale - least).flatten(1), Kind.INT4).view(2, 320)
    low, high = (blocks[:, :256] & 15), blocks[:, :256] >> 4
    stored = torch.cat([half.view(2, 4, 16, 4) for half in (low, high)], dim=1)  # [block, k / 4, lane, 4]
    assert torch.equal(stored.permute(2, 0, 1, 3).reshape(16, 2, 32).long(), q)
    assert torch.equal(blocks[:, 256:288].contiguous().view(torch.half).float(), scale[..., 0].T)


def unpacked(tiles: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """Values [16, num_blocks * 32] of one tile in 4 bits."""
    blocks = tiles.view(num_blocks, 320)
    low, high = (blocks[:, :256] & 15), blocks[:, :256] >> 4
    stored = torch.cat([half.view(num_blocks, 4, 16, 4) for half in (low, high)], dim=1)
    q = stored.permute(2, 0, 1, 3).reshape(16, num_blocks, 32)
    scale, least = blocks[:, 256:].contiguous().view(torch.half).float().view(num_blocks, 2, 16).unbind(1)
    return (q * scale.T.unsqueeze(-1) + least.T.unsqueeze(-1)).flatten(1)


@pytest.mark.parametrize("kind", ["w4a16", "w4a16-asymmetric", "awq", "gptq"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_of_a_4_bit_checkpoint_are_kept_as_they_are(kind: str, dtype: torch.dtype) -> None:
    """In groups of 64: a block of 32 may have neither the first nor the last code of its group."""
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(2)).bfloat16()
    dequantized = PACKERS[kind](weight, 64)[1].to(dtype).float()
    step = dequantized.abs().max() / 8
    found = unpacked(pack(dequantized, Kind.INT4), 8)
    assert (found - dequantized).abs().max() < 0.06 * step  # roundings of bfloat16, in which some dequantize
    as_floats = unpacked(pack(weight.float(), Kind.INT4), 8)
    assert (as_floats - weight.float()).abs().max() > 0.3 * step  # of no grid: half a step off at worst


@pytest.mark.parametrize(("kind", "zero"), [(Kind.INT8, 128), (Kind.INT7, 64)])
@pytest.mark.parametrize("size", [1.0, 1e-5])  # of the latter float16 has few bits for the scale
def test_bytes_are_within_half_a_step_of_the_weights(kind: Kind, zero: int, size: float) -> None:
    weight = size * torch.randn(16, 64, generator=torch.Generator().manual_seed(3))
    blocks = pack(weight, kind).view(2, 576)
    q = blocks[:, :512].view(2, 8, 16, 4).permute(2, 0, 1, 3).reshape(16, 2, 32).int()
    assert (int(q.min()), int(q.max())) == (1, 2 * zero - 1)
    scale, least = blocks[:, 512:].contiguous().view(torch.half).float().view(2, 2, 16).unbind(1)
    found = q * scale.T.unsqueeze(-1) + least.T.unsqueeze(-1)
    rounding = zero * 2**-25  # of the scale
    assert ((found - weight.view(16, 2, 32)).abs() <= 0.51 * scale.T.unsqueeze(-1) + rounding).all()


def test_numbers_of_16_bits_are_within_half_a_step_of_the_weights() -> None:
    weight = torch.randn(20, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    weight[3] = 0
    tiles = pack(weight, Kind.INT16)
    assert tiles.shape == (2, 64 + 64 * 32)
    scale = tiles[:, :64].contiguous().view(torch.float32).flatten()  # of a row each, lane by lane
    pairs = tiles[:, 64:].contiguous().view(torch.int16).view(2, 32, 16, 2)
    q = pairs.transpose(1, 2).reshape(32, 64)
    assert torch.equal(q.abs().amax(1)[:20], torch.tensor([8191] * 3 + [0] + [8191] * 16).short())
    assert not q[20:].any()
    steps = (q * scale.unsqueeze(1))[:20] - weight.float()
    assert (steps.abs() <= 0.501 * scale[:20].unsqueeze(1)).all()
