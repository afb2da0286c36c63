"""Losses through the frozen head, in chunks: neither logits nor their gradients are ever kept."""

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


def dpace_weights(log_confidence: Tensor, has_label: Tensor, alpha: float) -> Tensor:
    """D-PACE's weight of each slot (arXiv 2605.18810): what its confidence adds to the expected acceptance length.

    With ``c_k = (1 - alpha) * p_k + alpha``, p_k the drafter's probability of slot k's label, the weight of slot j is
    ``sum over k >= j of prod over i <= k of c_i``. ``log_confidence`` float32 [..., block_size] is log p,
    ``has_label`` bool of the same shape; a slot without a label breaks no product and gets weight 0.
    """
    confidence = torch.where(has_label, (1 - alpha) * log_confidence.exp() + alpha, 1.0)
    prefix = confidence.cumprod(-1) * has_label
    return prefix.flip(-1).cumsum(-1).flip(-1) * has_label


@torch.no_grad()
def label_log_probs(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Log-probabilities, float32 [n], of ``labels`` [n] after ``hidden`` [n, hidden_size]."""
    kernel = _compiled(_label_log_probs, hidden.device.type)
    parts = (slice(start, start + CHUNK_ROWS) for start in range(0, len(hidden), CHUNK_ROWS))
    return torch.cat([kernel(hidden[part] @ head.T, labels[part]) for part in parts])


class HeadLoss(torch.autograd.Function):
    """Mean cross-entropy of ``hidden @ head.T``, against labels or a mix of them and the target's distribution.

    The gradient, for ``hidden`` alone, is formed chunk by chunk in the forward pass, while the logits are there.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        labels: Tensor,
        teacher: Tensor | None,
        share: float,
        n_varies: bool,
    ) -> Tensor:
        """Returns a float32 scalar.

        ``hidden`` [n, hidden_size], ``head`` [vocab_size, hidden_size], ``labels`` [n]. ``teacher`` [n, hidden_size]:
        the target's own final hidden states at the same places, whose distribution is ``share`` of what is wanted.
        ``n_varies``: whether n is another one at every call.
        """
        gradient = torch.empty_like(hidden)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        kernel = _compiled(_loss_and_gradient, hidden.device.type, None if n_varies else False)
        for start in range(0, len(hidden), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            theirs = None if teacher is None else teacher[part] @ head.T
            loss, logits_gradient = kernel(hidden[part] @ head.T, labels[part], theirs, share)
            total += loss
            torch.mm(logits_gradient, head, out=gradient[part])
        ctx.save_for_backward(gradient)
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        """Scale the gradient that forward left."""
        (gradient,) = ctx.saved_tensors
        return gradient * (grad_output / len(gradient)), None, None, None, None, None


def _loss_and_gradient(
    logits: Tensor, labels: Tensor, teacher_logits: Tensor | None, share: float
) -> tuple[Tensor, Tensor]:
    """Summed loss of a chunk, and softmax minus what is wanted, in the logits' type."""
    scores = logits.float()
    normaliser = scores.logsumexp(-1, keepdim=True)
    wanted = (torch.arange(logits.shape[-1], device=logits.device) == labels.unsqueeze(1)).float()
    if teacher_logits is not None:
        wanted = (1 - share) * wanted + share * teacher_logits.float().softmax(-1)
    gradient = (scores - normaliser).exp() - wanted
    return (normaliser.squeeze(1) - (wanted * scores).sum(-1)).sum(), gradient.to(logits.dtype)


def _label_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    scores = logits.float()
    return scores.gather(1, labels.unsqueeze(1)).squeeze(1) - scores.logsumexp(-1)


@cache
def _compiled(function: Any, device_type: str, dynamic: bool | None = False) -> Any:
    # On CUDA one fused pass instead of five over [chunk, vocab]; elsewhere compiling costs more than it gives.
    return torch.compile(function, dynamic=dynamic) if device_type == "cuda" else function
