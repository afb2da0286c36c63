"""Rotary position embedding (RoFormer, arXiv 2104.09864) in the half-split layout of Hugging Face checkpoints."""

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


def inverse_frequencies(config: Any) -> tuple[Tensor, float]:
    """Rotation speeds of a transformers config.

    Returns ``inv_freq`` ([rotary_dim / 2], float32, radians a position) and the factor that the rope type
    (linear, llama3, yarn, ...) puts on cos and sin. The scaled types are transformers' own functions.
    """
    parameters = config.rope_parameters
    rope_type = parameters.get("rope_type", "default")
    if rope_type != "default":
        with torch.device("cpu"):  # not the meta device, where networks are built
            inv_freq, factor = ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"))
        return inv_freq.float(), float(factor)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotary_dim = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
    exponent = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device="cpu") / rotary_dim
    return 1.0 / parameters["rope_theta"] ** exponent, 1.0


class Rotary:
    """Turns positions into cos and sin. Holds no parameter: it is not part of a checkpoint."""

    def __init__(self, config: Any) -> None:
        self.inv_freq, self.factor = inverse_frequencies(config)

    def speeds_on(self, device: torch.device) -> Tensor:
        """``inv_freq``, which stays on ``device``."""
        if self.inv_freq.device != device:
            self.inv_freq = self.inv_freq.to(device)
        return self.inv_freq

    def __call__(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin, each [batch, 1, num_tokens, rotary_dim], for positions [batch, num_tokens]."""
        angles = positions.unsqueeze(-1).float() * self.speeds_on(positions.device)
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
        return (angles.cos() * self.factor).to(dtype), (angles.sin() * self.factor).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE to ``x`` [batch, heads, num_tokens, head_dim], or to as much of each head as cos is wide."""
    if (rotary_dim := cos.shape[-1]) < x.shape[-1]:
        return torch.cat((rotate(x[..., :rotary_dim], cos, sin), x[..., rotary_dim:]), dim=-1)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
