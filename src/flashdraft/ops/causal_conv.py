"""Depthwise causal convolution: each channel sums its last few tokens."""

import torch
from torch import Tensor


def causal_conv(
    x: Tensor, past: Tensor, weight: Tensor, positions: Tensor, ancestors: Tensor | None = None
) -> Tensor:
    """``out_t = sum_j weight[:, -1 - j] x_{t-j}`` over the tokens of the same text.

    ``x`` [rows, num_tokens, channels], ``past`` [rows, width - 1, channels] the inputs before it, ``weight``
    [channels, width]. ``positions`` [rows, num_tokens] say how many tokens a text has before each, so that texts
    packed into one row stay apart. ``ancestors`` [rows, num_tokens, width]: of trees, see TreeSlots.ancestors. One
    token's sum never depends on how many stand beside it.
    """
    width, num_tokens = weight.shape[-1], x.shape[1]
    inputs = torch.cat((past.to(x.dtype), x), dim=1)
    out = torch.zeros_like(x)
    for back in range(width):
        start = width - 1 - back
        if ancestors is None:
            own = inputs[:, start : start + num_tokens]
        else:
            own = inputs.take_along_dim((ancestors[..., back] + width - 1).unsqueeze(-1), dim=1)
        taken = own * weight[:, start]
        out = out + taken.masked_fill((positions < back).unsqueeze(-1), 0.0)
    return out
