"""What sampled answers are trained for: their tokens, the target's distribution, or the share of it that drafts cover.

A greedy answer's tokens are what is to be drafted, so they are labels whatever the objective. A sampled answer is one
draw of many. A draft of it is kept with the probability ``sum over x of min(p(x), q(x))`` at best, p the target's
distribution and q the drafter's, so there p itself is what is wanted.

"labels": both losses are against the tokens that were drawn. "soft": against p, which has the same expected gradient
with less noise. "accepted": the cross-entropy is against p, and the selector's loss is ``-log sum of min(p, q)`` over
its candidates, whose gradient weighed by D-PACE is that of the log of the expected length. A token's confidence in
D-PACE is ``min(1, q / p)`` then, by which a draft of it would be accepted.
Trained on a GPU: "labels" up to run i, "soft" in runs j and k, "accepted" in run l.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flashdraft.models.base import FINAL_HIDDEN
from flashdraft.models.dflash import DFlashModel
from flashdraft.train.anchors import Blocks
from flashdraft.train.forward import block_hidden, target_features, teacher_hidden
from flashdraft.train.loss import (
    CHUNK_ROWS,
    _compiled,
    candidate_scores,
    dpace_weights,
    label_log_probs,
    largest_ids,
    row_scores,
)
from flashdraft.train.trainer import Trainer

OBJECTIVES = ("labels", "soft", "accepted")
SMALLEST = 1e-4  # share that is covered at least, in the logarithm


class MixedHeadLoss(torch.autograd.Function):
    """Mean cross-entropy of ``hidden @ head.T`` against labels, or against the target's distribution, row by row."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        labels: Tensor,
        teacher: Tensor,
        is_soft: Tensor,
        candidates: Tensor,
    ) -> Tensor:
        """Float32 scalar; ``hidden`` and ``teacher`` [n, hidden_size], ``labels`` and bool ``is_soft`` [n].

        ``candidates`` int64 [n, count] takes the ids of each row's largest logits, best first.
        """
        gradient, losses = torch.empty_like(hidden), torch.empty(len(labels), 1, device=hidden.device)
        kernel = _compiled(_mixed, hidden.device.type)
        for start in range(0, len(hidden), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            places, share = labels[part].unsqueeze(1), is_soft[part].float().unsqueeze(1)
            logits = hidden[part] @ head.T
            candidates[part] = largest_ids(logits, candidates.shape[1])
            losses[part], made, at_label = kernel(logits, places, teacher[part] @ head.T, share)
            made.scatter_(1, places, at_label)
            torch.mm(made, head, out=gradient[part])
        ctx.save_for_backward(gradient)
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        """Scale the gradient that forward left."""
        (gradient,) = ctx.saved_tensors
        return (gradient * (grad_output / len(gradient))).to(gradient.dtype), None, None, None, None, None


def _mixed(
    logits: Tensor, places: Tensor, teacher_logits: Tensor, share: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    log_probs = logits.float().log_softmax(-1)
    wanted = share * teacher_logits.float().softmax(-1)
    loss = -(1 - share) * log_probs.gather(1, places) - (wanted * log_probs).sum(-1, keepdim=True)
    gradient = log_probs.exp() - wanted
    at_label = gradient.gather(1, places) - (1 - share)
    return loss, gradient.to(logits.dtype), at_label.to(logits.dtype)


def mixed_selector_loss(
    drafter: DFlashModel,
    head: Tensor,
    hidden: Tensor,
    candidates: Tensor,
    labels: Tensor,
    before: Tensor,
    p: tuple[Tensor, Tensor],
    is_soft: Tensor,
    is_accepted: bool,
) -> Tensor:
    """:func:`flashdraft.train.loss.selector_loss` of labels, and of rows that ``is_soft`` [n] against the target's p.

    ``p``: the target's final hidden states [n, hidden_size] and the logarithms [n] of their softmax's sums.
    """
    selector, ids, count = drafter.candidate_selector, candidates.clone(), candidates.shape[1]
    assert selector is not None
    is_label = ids == labels.unsqueeze(1)
    has_label = is_label.any(1)
    ids[:, -1] = torch.where(has_label | is_soft, ids[:, -1], labels)
    place = torch.where(has_label, is_label.int().argmax(1), count - 1)
    with torch.no_grad():
        theirs = (row_scores(head, ids, p[0].float()) - p[1].unsqueeze(1)).exp()
    log_q = candidate_scores(selector, head, hidden, ids, before).log_softmax(-1)
    hard = -log_q.gather(1, place.unsqueeze(1)).squeeze(1)
    if is_accepted:
        soft = -torch.minimum(log_q.exp(), theirs).sum(-1).clamp(min=SMALLEST).log()
    else:
        soft = -(theirs * log_q).sum(-1)
    return torch.where(is_soft, soft, hard).mean()


@dataclass
class Wanted:
    """What the target itself says of rows: final hidden states, and log-probabilities of each place's own token."""

    final: Tensor  # [num_rows, seq_len, hidden_size]
    log_probs: Tensor  # float32 [num_rows, seq_len]
    is_sampled: Tensor  # bool [num_rows, seq_len]


class SampledTrainer(Trainer):
    """A trainer for which places of ``is_sampled`` [num_rows, seq_len], bool, are those of sampled answers."""

    is_sampled: Tensor
    objective = "labels"

    def aim(self, is_sampled: Tensor, objective: str) -> None:
        """Train sampled answers for one of OBJECTIVES.

        Raises ValueError where the others than "labels" do not know what the trainer is set to.
        """
        config = self.config
        if objective != "labels":
            if config.weighting != "dpace":
                raise ValueError(
                    f"weighting is {config.weighting!r}; expected 'dpace' for the objective {objective!r}"
                )
            if not config.selector_rank or config.accumulate > 1:
                facts = f"selector_rank {config.selector_rank}, accumulate {config.accumulate}"
                raise ValueError(
                    f"{facts}; expected a selector and one part a step for the objective {objective!r}"
                )
        self.is_sampled, self.objective = is_sampled, objective

    def _learn(self, index: Tensor, blocks: Blocks, slots: Tensor | None, part: slice) -> Tensor:
        if self.objective == "labels":
            return super()._learn(index, blocks, slots, part)
        assert isinstance(self.drafter, DFlashModel)
        config, head = self.config, self.target.head_weight()
        hidden, wanted = self._both(index, blocks)
        is_soft = wanted.is_sampled.gather(1, blocks.anchors).unsqueeze(-1).expand_as(blocks.labels)
        slots = self._draw_slots(self._weights(hidden, blocks, wanted, is_soft))
        flat = (blocks.anchors.unsqueeze(-1) + torch.arange(config.block_size, device=hidden.device)).flatten(
            1
        )
        log_p = wanted.log_probs.gather(1, flat.clamp(max=wanted.log_probs.shape[1] - 1)).flatten()[slots]
        chosen, labels = hidden.flatten(0, 2)[slots], blocks.labels.flatten()
        teacher, soft = teacher_hidden(wanted.final, blocks)[slots], is_soft.flatten()[slots]
        candidates = slots.new_empty(len(slots), self.drafter.config.selector_top_k)
        loss: Tensor = MixedHeadLoss.apply(chosen, head, labels[slots], teacher, soft, candidates)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            at_label = (head[labels[slots]].float() * teacher.float()).sum(-1)
        loss = loss + config.selector_loss * mixed_selector_loss(
            self.drafter, head, chosen, candidates, labels[slots], labels[slots - 1],
            (teacher, at_label - log_p), soft, self.objective == "accepted",
        )  # fmt: skip
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.take_gradients()
        return loss.detach()

    def _both(self, index: Tensor, blocks: Blocks) -> tuple[Tensor, Wanted]:
        rows, layers = self.rows.rows(index), self.drafter.config.target_layer_ids
        width = len(layers) * self.target.config.hidden_size
        features = target_features(self.target, rows, (*layers, FINAL_HIDDEN))
        final = features[..., width:]
        following = F.pad(rows.token_ids[:, 1:], (0, 1))
        log_probs = label_log_probs(final.flatten(0, 1), self.target.head_weight(), following.flatten())
        log_probs = F.pad(log_probs.view_as(following)[:, :-1], (1, 0))
        hidden = block_hidden(self.target, self.drafter, rows, features[..., :width].contiguous(), blocks)
        return hidden, Wanted(final, log_probs, self.is_sampled[index])

    def _weights(self, hidden: Tensor, blocks: Blocks, wanted: Wanted, is_soft: Tensor) -> Tensor:
        labels, config = blocks.labels, self.config
        log_q = label_log_probs(hidden.detach().flatten(0, 2), self.target.head_weight(), labels.flatten())
        log_q = log_q.view_as(labels)
        if self.objective == "accepted":
            places = blocks.anchors.unsqueeze(-1) + torch.arange(config.block_size, device=hidden.device)
            log_p = wanted.log_probs.gather(1, places.clamp(max=wanted.log_probs.shape[1] - 1).flatten(1))
            log_q = torch.where(is_soft, (log_q - log_p.view_as(labels)).clamp(max=0), log_q)
        return dpace_weights(log_q, blocks.has_label, config.dpace_alpha, config.dpace_power)
