"""A drafter's layers with convolutions along blocks around their sublayers: as many launches as without them."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from flashdraft.cuda.layers import Layer, Norm, mixed
from flashdraft.cuda.step import Source
from flashdraft.ops.triton.block_conv import Convolution, Written, norm_conv

# Convolutions of more run in PyTorch. On one core Triton 3.9 compiles a kernel with 4 for sm_90 in 3 s, with 6 in 22 s,
# with 8 in 35 s and with 16 not in 100 s, one for each width of blocks. Published drafters have 2.
MOST_TAPS = 4


def run_convolved(layers: Sequence[Layer], last: Norm, x: Tensor, source: Source) -> Tensor:
    """Final hidden states [num_tokens, hidden_size] of ``x``, blocks of ``source.width`` tokens one after the other."""
    written, num_groups = None, 0
    for layer in layers:
        assert layer.convs is not None
        works = partial(mixed, layer.mixer, source=source), layer.feed_forward
        for norm, conv, work in zip((layer.before, layer.between), layer.convs, works, strict=True):
            num_groups = conv.num_groups
            weights = Convolution(conv.base_kernel.detach(), conv.kernel_projection.weight.detach())
            read, x, kernels = norm_conv(x, written, norm.weight, norm.eps, weights, num_groups, source.width)
            written = Written(work(read), kernels, weights.base[1])
    normed, _, _ = norm_conv(x, written, last.weight, last.eps, None, num_groups, source.width)
    return normed
