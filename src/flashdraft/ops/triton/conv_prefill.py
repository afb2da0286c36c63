"""The depthwise causal convolution of gated delta layers and its SiLU over prompts that lie end to end."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_TOKENS, _CHANNELS = 32, 256  # of a program


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    x, weight, past, slots, firsts, row_of, out, num_tokens, channels, x_token, past_slot,
    taps: tl.constexpr, tokens: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * tokens + tl.arange(0, tokens)
    channel = tl.program_id(1) * tile + tl.arange(0, tile)
    is_token, is_channel = token < num_tokens, channel < channels
    row = tl.load(row_of + token, is_token, 0)
    own = token - tl.load(firsts + row)  # in its sequence
    slot = tl.load(slots + row)
    mask = is_token[:, None] & is_channel[None, :]
    summed = tl.zeros([tokens, tile], tl.float32)
    for back in tl.static_range(taps):
        w = tl.load(weight + channel * taps + (taps - 1 - back), is_channel, 0.0).to(tl.float32)
        is_own = (own >= back)[:, None]
        here = tl.load(
            x + (token - back).to(tl.int64)[:, None] * x_token + channel[None, :], mask & is_own, 0.0
        )
        place = taps - 1 + own - back  # among the inputs before the prompt, oldest first
        before = tl.load(
            past + slot.to(tl.int64)[:, None] * past_slot + place[:, None] * channels + channel[None, :],
            mask & ~is_own, 0.0,
        )  # fmt: skip
        taken = tl.where(is_own, here, before).to(tl.float32) * w[None, :]
        # Rounded where ops/causal_conv.py rounds.
        rounded = taken.to(out.dtype.element_ty).to(tl.float32)
        summed = (summed + rounded).to(out.dtype.element_ty).to(tl.float32)
    gated = summed / (1.0 + tl.exp(-summed))
    at = token.to(tl.int64)[:, None] * channels + channel[None, :]
    tl.store(out + at, gated.to(out.dtype.element_ty), mask)


def conv_prefill(
    x: Tensor, weight: Tensor, past: Tensor, slots: Tensor, starts: Tensor, row_of: Tensor
) -> Tensor:
    """``silu`` of the causal convolution of ``x`` [num_tokens, channels]: of sequences end to end.

    ``weight`` [channels, taps]; ``past`` [num_slots, taps - 1, channels] at ``slots`` [rows]: each sequence's inputs
    before these, oldest first. ``starts`` [rows]: its first token; ``row_of`` [num_tokens]: whose a token is.
    """
    num_tokens, channels = x.shape
    out = torch.empty(num_tokens, channels, dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(num_tokens, _TOKENS), triton.cdiv(channels, _CHANNELS))
    _kernel[grid](
        x, weight, past, slots, starts, row_of, out, num_tokens, channels, x.stride(0), past.stride(0),
        taps=weight.shape[1], tokens=_TOKENS, tile=_CHANNELS, num_warps=4,
    )  # fmt: skip
    return out
