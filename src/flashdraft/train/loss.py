"""Cross-entropy through the frozen head, in chunks: neither logits nor their gradients are ever kept."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

CHUNK_ROWS = 8192


def decay_weights(block_size: int, gamma: float, device: torch.device) -> Tensor:
    """``w_k = exp(-(k - 1) / gamma)`` for slot k >= 1 and 0 for the anchor's (paper, A.1). Float32 [block_size]."""
    slots = torch.arange(block_size, device=device)
    weights: Tensor = torch.exp(-(slots - 1).float() / gamma)
    weights[0] = 0
    return weights


class HeadCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of ``hidden @ head.T`` against labels; gradient for ``hidden`` alone.

    The gradient is formed chunk by chunk in the forward pass, while the logits are there.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
        """``hidden`` [n, hidden_size], ``head`` [vocab_size, hidden_size], ``labels`` [n]. Returns a float32 scalar."""
        gradient = torch.empty_like(hidden)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        kernel = _kernel(hidden.device.type)
        for start in range(0, len(hidden), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            loss, logits_gradient = kernel(hidden[part] @ head.T, labels[part])
            total += loss
            torch.mm(logits_gradient, head, out=gradient[part])
        ctx.save_for_backward(gradient)
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        """Scale the gradient that forward left."""
        (gradient,) = ctx.saved_tensors
        return gradient * (grad_output / len(gradient)), None, None


def _loss_and_gradient(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Summed loss of a chunk, and softmax minus one-hot in the logits' type."""
    scores = logits.float()
    normaliser = scores.logsumexp(-1, keepdim=True)
    picked = scores.gather(1, labels.unsqueeze(1))
    is_label = torch.arange(logits.shape[-1], device=logits.device) == labels.unsqueeze(1)
    gradient = (scores - normaliser).exp() - is_label.float()
    return (normaliser - picked).sum(), gradient.to(logits.dtype)


@cache
def _kernel(device_type: str) -> Any:
    # On CUDA one fused pass instead of five over [chunk, vocab]; elsewhere compiling costs more than it gives.
    return torch.compile(_loss_and_gradient, dynamic=False) if device_type == "cuda" else _loss_and_gradient
