"""The greedy choice among logits, which is none where they are no numbers."""

import torch
from torch import Tensor


def greedy_tokens(logits: Tensor) -> Tensor:
    """The likeliest tokens, int64 [...], by ``logits`` [..., vocab_size]; of equal ones the first.

    -1 where the largest logit is no finite number: a NaN is larger than all. Only the chosen logits are looked at.
    """
    token_ids = logits.argmax(-1)
    largest = logits.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    return torch.where(largest.isfinite(), token_ids, -1)
