"""RMSNorm (Zhang & Sennrich 2019): ``x / sqrt(mean(x^2) + eps) * weight``."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension of ``x`` ([..., size]) in float32 and scale it by ``weight`` ([size])."""
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


class ZeroCenteredRMSNorm(nn.Module):
    """RMSNorm whose weight is stored as its distance from 1, all of it in float32 (Qwen3-Next, Qwen3.5)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of ``x``."""
        return rms_norm(x.float(), 1.0 + self.weight.float(), self.eps).to(x.dtype)


class RMSNorm(nn.Module):
    """RMSNorm with its weight, as every model here uses it."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of ``x``."""
        return rms_norm(x, self.weight, self.eps)
