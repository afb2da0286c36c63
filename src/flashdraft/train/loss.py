"""Losses through the frozen head, in chunks: neither logits nor their gradients are ever kept."""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flashdraft.models.dflash import DFlashModel
from flashdraft.models.dflash2 import CandidateSelector
from flashdraft.spec_decode.tree import largest

CHUNK_ROWS = 8192
# On a CPU a float32 value that leaves the cache costs more than its exponential does, and new memory more than both.
CPU_ROWS, CPU_VALUES = 1024, 1 << 19


def decay_weights(block_size: int, gamma: float, device: torch.device) -> Tensor:
    """``w_k = exp(-(k - 1) / gamma)`` for slot k >= 1 and 0 for the anchor's (paper, A.1). Float32 [block_size]."""
    slots = torch.arange(block_size, device=device)
    weights: Tensor = torch.exp(-(slots - 1).float() / gamma)
    weights[0] = 0
    return weights


def dpace_weights(log_confidence: Tensor, has_label: Tensor, alpha: float, power: float = 0.0) -> Tensor:
    """D-PACE's weight of each slot (arXiv 2605.18810): what its confidence adds to the expected acceptance length.

    With ``c_k = (1 - alpha) * p_k + alpha``, p_k the drafter's probability of slot k's label, the weight of slot j is
    ``sum over k >= j of prod over i <= k of c_i``. ``log_confidence`` float32 [..., block_size] is log p,
    ``has_label`` bool of the same shape; a slot without a label breaks no product and gets weight 0.

    A block's weights are divided by its expected length ``L = 1 + sum over k of prod over i <= k of p_i`` to the
    ``power``. An answer takes about ``sum of 1 / L`` over its anchors rounds, whose derivative is that of L by -L^2: so
    2 weighs what makes rounds fewer, while 0 weighs what makes the mean of L longer, most of it where L is long.
    """
    confidence = torch.where(has_label, (1 - alpha) * log_confidence.exp() + alpha, 1.0)
    prefix = confidence.cumprod(-1) * has_label
    weights = prefix.flip(-1).cumsum(-1).flip(-1) * has_label
    if power == 0:
        return weights
    accepted = torch.where(has_label, log_confidence, 0.0).cumsum(-1).exp() * has_label
    return weights / (1 + accepted.sum(-1, keepdim=True)) ** power


@torch.no_grad()
def label_log_probs(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Log-probabilities, float32 [n], of ``labels`` [n] after ``hidden`` [n, hidden_size]."""
    rows, columns = (CHUNK_ROWS, len(head)) if hidden.is_cuda else (CPU_ROWS, CPU_VALUES // CPU_ROWS)
    kernel = _compiled(_label_scores, hidden.device.type)
    made = []
    for start in range(0, len(hidden), rows):
        part = slice(start, start + rows)
        found = [
            kernel(hidden[part] @ head[first : first + columns].T, labels[part] - first)
            for first in range(0, len(head), columns)
        ]
        # A label's score was looked for in every chunk of the vocabulary, and is in one of them.
        scores, normalisers = (torch.stack(one) for one in zip(*found, strict=True))
        made.append(scores.amax(0) - normalisers.logsumexp(0))
    return torch.cat(made)


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
        counts: Tensor | None,
        teacher: Tensor | None,
        share: float,
        n_varies: bool,
        candidates: Tensor | None = None,
    ) -> Tensor:
        """Returns a float32 scalar.

        ``hidden`` [n, hidden_size], ``head`` [vocab_size, hidden_size], ``labels`` [n]. ``counts`` [n]: how often each
        row is meant; None: once. ``teacher`` [n, hidden_size]: the target's own final hidden states at the same places,
        whose distribution is ``share`` of what is wanted.
        ``n_varies``: whether n is another one at every call. ``candidates`` int64 [n, count] takes the ids of each
        row's largest logits, best first.
        """
        counts = labels.new_ones(len(labels)) if counts is None else counts
        shares = (counts / counts.sum()).unsqueeze(1)  # of each row in the mean, float32 [n, 1]
        gradient = torch.empty_like(hidden)
        losses = torch.empty_like(shares)
        kernel = _in_pieces
        if hidden.is_cuda:
            kernel = _compiled(_loss_and_gradient, hidden.device.type, None if n_varies else False)
        rows = CHUNK_ROWS if hidden.is_cuda else CPU_ROWS
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            places = labels[part].unsqueeze(1)
            theirs = None if teacher is None else teacher[part] @ head.T
            logits = hidden[part] @ head.T
            if candidates is not None:  # before the gradient takes the memory of the logits
                candidates[part] = largest_ids(logits, candidates.shape[1])
            losses[part], logits_gradient, at_label = kernel(logits, places, theirs, share)
            logits_gradient.scatter_(1, places, at_label)
            torch.mm(logits_gradient, head, out=gradient[part])
        ctx.save_for_backward(gradient, shares)
        return (losses * shares).sum()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None, None, None, None, None]:
        """Scale the gradient that forward left."""
        gradient, shares = ctx.saved_tensors
        scaled: Tensor = (gradient * (shares * grad_output)).to(gradient.dtype)
        return scaled, None, None, None, None, None, None, None


def largest_ids(logits: Tensor, count: int) -> Tensor:
    """Ids int64 [n, count] of the largest of ``logits`` [n, vocab_size], best first; of equals any."""
    if not logits.is_cuda:
        return largest(logits, count)[0]
    from flashdraft.ops.triton.largest import largest_tokens

    return largest_tokens(logits, count)


def selector_loss(
    drafter: DFlashModel,
    head: Tensor,
    hidden: Tensor,
    candidates: Tensor,
    labels: Tensor,
    before: Tensor,
    counts: Tensor | None,
    skips_missing: bool,
) -> Tensor:
    """Mean cross-entropy of ``labels`` [n] among their slots' candidates, scored by the tokens ``before`` [n] them.

    As served, but that ``before`` are the texts' own. A label that is no candidate takes the place of the last one
    (speculators' trainer), or with ``skips_missing`` its slot is left out (NeMo's). ``hidden`` [n, hidden_size],
    ``candidates`` [n, count]: the likeliest tokens after it, best first (:class:`HeadLoss` has them), ``counts`` [n]:
    how often each row is meant; None: once. Returns a float32 scalar.
    """
    selector, ids, count = drafter.candidate_selector, candidates.clone(), candidates.shape[1]
    assert selector is not None
    is_label = ids == labels.unsqueeze(1)
    has_label = is_label.any(1)
    ids[:, -1] = torch.where(has_label, ids[:, -1], labels)
    place = torch.where(has_label, is_label.int().argmax(1), count - 1)
    scores = candidate_scores(selector, head, hidden, ids, before)
    weights = torch.ones_like(place) if counts is None else counts
    if skips_missing:
        weights = weights * has_label
    losses = F.cross_entropy(scores, place, reduction="none")
    return (losses * weights).sum() / weights.sum().clamp(min=1)


def candidate_scores(
    selector: CandidateSelector, head: Tensor, hidden: Tensor, ids: Tensor, before: Tensor
) -> Tensor:
    """float32 [n, count]: logits of the tokens ``ids`` [n, count] and what ``selector`` adds behind ``before`` [n].

    ``hidden`` [n, hidden_size].
    """
    if selector.projects_head:
        return row_scores(head, ids, hidden.float() + selector.on_head(hidden, before, head).float())
    alone = torch.bmm(head[ids], hidden.unsqueeze(2)).squeeze(2).float()
    pairs: Tensor = selector(hidden, before.unsqueeze(1), ids, head).squeeze(1)
    return alone + pairs


def row_scores(head: Tensor, ids: Tensor, by_row: Tensor) -> Tensor:
    """float32 [n, count]: rows ``ids`` [n, count] of ``head`` times ``by_row``, float32 [n, hidden_size]."""
    scores: Tensor = _compiled(_row_scores, head.device.type, None)(head, ids, by_row)
    return scores


def _row_scores(head: Tensor, ids: Tensor, by_row: Tensor) -> Tensor:
    if not head.is_cuda:
        return torch.bmm(head[ids].float(), by_row.unsqueeze(2)).squeeze(2)
    return (head[ids].float() * by_row.unsqueeze(1)).sum(-1)  # compiled, the rows are never written


def _loss_and_gradient(
    logits: Tensor, places: Tensor, teacher_logits: Tensor | None, share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a chunk: each row's loss, softmax minus the teacher's part in the logits' type, and what belongs at the label.

    ``places`` [n, 1] are the labels. That one value is rounded apart, with the label's part taken off in float32.
    """
    log_probs = logits.float().log_softmax(-1)
    hard = 1.0 if teacher_logits is None else 1 - share
    loss = -hard * log_probs.gather(1, places)
    gradient = log_probs.exp()
    if teacher_logits is not None:
        wanted = share * teacher_logits.float().softmax(-1)
        loss = loss - (wanted * log_probs).sum(-1, keepdim=True)
        gradient = gradient - wanted
    at_label = gradient.gather(1, places) - hard
    return loss, gradient.to(logits.dtype), at_label.to(logits.dtype)


def _in_pieces(
    logits: Tensor, places: Tensor, teacher_logits: Tensor | None, share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`_loss_and_gradient` of a few rows at a time, the gradient in the memory of the logits."""
    rows = max(CPU_VALUES // logits.shape[-1], 1)
    losses, at_labels = [], []
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        theirs = None if teacher_logits is None else teacher_logits[part]
        loss, logits[part], at_label = _loss_and_gradient(logits[part], places[part], theirs, share)
        losses.append(loss)
        at_labels.append(at_label)
    return torch.cat(losses), logits, torch.cat(at_labels)


def _label_scores(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of a chunk of the vocabulary: each row's score of its label, or -inf, and the logsumexp."""
    scores = logits.float()
    is_here = (labels >= 0) & (labels < logits.shape[-1])
    at_label = scores.gather(1, labels.clamp(0, logits.shape[-1] - 1).unsqueeze(1)).squeeze(1)
    return torch.where(is_here, at_label, -torch.inf), scores.logsumexp(-1)


@cache
def _compiled(function: Any, device_type: str, dynamic: bool | None = False) -> Any:
    # On CUDA one fused pass instead of five over [chunk, vocab]; elsewhere compiling costs more than it gives.
    return torch.compile(function, dynamic=dynamic) if device_type == "cuda" else function
