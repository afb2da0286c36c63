"""Sum, norm and a drafter's convolution along blocks in one kernel, against the PyTorch modules one by one."""

import pytest
import torch

pytest.importorskip("triton")
from flashdraft.models.dflash2 import BlockConv
from flashdraft.ops.norm import RMSNorm
from flashdraft.ops.triton.block_conv import Convolution, Written, norm_conv

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-5
# (hidden_size, taps, group_size, width): groups of a power of two and not, several pieces, rests, three taps, one
SHAPES = [
    (48, 2, 12, 4),
    (576, 2, 32, 3),
    (152, 2, 8, 2),
    (48, 3, 8, 4),
    (1280, 2, 32, 2),
    (80, 1, 80, 2),
]


def parts(hidden_size, taps, group_size, dtype):
    torch.manual_seed(hidden_size)
    convs = [BlockConv(hidden_size, taps, group_size) for _ in range(2)]
    for conv in convs:
        conv.base_kernel.data.add_(0.3 * torch.randn_like(conv.base_kernel))
        conv.kernel_projection.weight.data.normal_(std=0.05)
    norm = RMSNorm(hidden_size, EPS)
    norm.weight.data.normal_(1.0, 0.2)
    return [one.to(DEVICE, dtype).requires_grad_(False) for one in (*convs, norm)]


def weights(conv):
    return Convolution(conv.base_kernel, conv.kernel_projection.weight)


def by_modules(conv, following, norm, every, written, residual, width):
    """(what the next sublayer reads, the sum, the kernels of what it writes), all [num_tokens, ...].

    ``every``: the kernels of the sublayer before, as BlockConv.kernels has them.
    """
    blocks = written.view(-1, width, written.shape[1])
    total = residual + conv(blocks, every, 1).flatten(0, 1)
    normed = norm(total).view_as(blocks)
    kernels = following.kernels(normed, None)
    return following(normed, kernels, 0).flatten(0, 1), total, of_side_1(kernels)


def of_side_1(kernels):
    """[num_tokens, taps * groups]."""
    return kernels[:, :, :, 1].flatten(0, 2).flatten(1).contiguous()


def by_kernel(conv, following, norm, made, written, residual, width):
    wrote = Written(written, made, conv.base_kernel[1])
    return norm_conv(residual, wrote, norm.weight, EPS, weights(following), conv.num_groups, width)


def agree(found, expected, dtype):
    """In 16 bits but for a unit in the last place, where a sum's order tips a rounding."""
    unit = 4e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=unit * other.abs().max().item(), rtol=unit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("hidden_size", "taps", "group_size", "width"), SHAPES)
def test_between_two_sublayers(hidden_size, taps, group_size, width, dtype):
    """Two blocks, of which the second one alone has the same bits."""
    conv, following, norm = parts(hidden_size, taps, group_size, dtype)
    read, *given = (torch.randn(2 * width, hidden_size, device=DEVICE).to(dtype) for _ in range(3))
    every = conv.kernels(read.view(2, width, hidden_size), None)
    made = of_side_1(every)
    found = by_kernel(conv, following, norm, made, *given, width)
    agree(found, by_modules(conv, following, norm, every, *given, width), dtype)
    alone = by_kernel(conv, following, norm, *(one[width:] for one in (made, *given)), width)
    for one, other in zip(alone, found, strict=True):
        assert torch.equal(one, other[width:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_before_the_first_sublayer_and_behind_the_last(dtype):
    conv, _, norm = parts(96, 2, 32, dtype)
    x, written = (torch.randn(8, 96, device=DEVICE).to(dtype) for _ in range(2))
    read, total, kernels = norm_conv(x, None, norm.weight, EPS, weights(conv), 3, 4)
    blocks = norm(x).view(2, 4, 96)
    every = conv.kernels(blocks, None)
    agree([read], [conv(blocks, every, 0).flatten(0, 1)], dtype)
    assert torch.equal(total, x)
    last, total, nothing = norm_conv(
        x, Written(written, kernels, conv.base_kernel[1]), norm.weight, EPS, None, 3, 4
    )
    expected = x + conv(written.view(2, 4, 96), every, 1).flatten(0, 1)
    agree([last, total], [norm(expected), expected], dtype)
    assert not nothing.numel()


def test_the_identity_is_the_norm_and_the_sum_to_the_bit():
    """As training begins: what a plain drafter's kernels have between its sublayers."""
    conv, norm = BlockConv(64, 2, 16).requires_grad_(False), RMSNorm(64, EPS).requires_grad_(False)
    conv, norm = conv.to(DEVICE), norm.to(DEVICE)
    x, written = torch.randn(2, 16, 64, device=DEVICE)
    zeros = torch.zeros(16, 8, device=DEVICE)
    read, total, kernels = norm_conv(
        x, Written(written, zeros, conv.base_kernel[1]), norm.weight, EPS, weights(conv), 4, 8
    )
    alone, _, _ = norm_conv(x + written, None, norm.weight, EPS, None, 4, 8)
    assert torch.equal(total, x + written)
    assert torch.equal(read, alone)
    assert not kernels.any()
