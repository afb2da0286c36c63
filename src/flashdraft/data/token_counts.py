"""How often a target says each token: what a draft vocabulary is chosen by."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor

from flashdraft.data.on_policy import Document
from flashdraft.errors import DataError

# A token of a prompt counts as this share of one of an answer: answers are what is drafted, and prompts are many.
PROMPT_WEIGHT = 0.1


def count_tokens(texts: Iterable[Sequence[int]], vocab_size: int) -> Tensor:
    """How often each id stands in ``texts``, int64 [vocab_size]. Raises DataError for an id that is none."""
    found = Counter(chain.from_iterable(texts))
    if strange := [token for token in found if not 0 <= token < vocab_size]:
        raise DataError(
            f"token id {strange[0]} was found; expected 0 to {vocab_size - 1}, the target's: give its own answers"
        )
    counts = torch.zeros(vocab_size, dtype=torch.int64)
    counts[list(found.keys())] = torch.tensor(list(found.values()), dtype=torch.int64)
    return counts


def rank_tokens(
    answers: Tensor, prompts: Tensor, always: Sequence[int], prompt_weight: float = PROMPT_WEIGHT
) -> list[int]:
    """All ids, likeliest first, by their counts in ``answers`` and ``prompts`` [vocab_size].

    Ids in ``always``, those that end an answer, come first. Between equals the lower id does: tokenizers that were
    trained by merging number common tokens first.
    """
    score = answers.double() + prompt_weight * prompts
    score[list(always)] = float("inf")
    ranked: list[int] = score.argsort(descending=True, stable=True).tolist()
    return ranked


def coverage(counts: Tensor, tokens: Sequence[int]) -> float:
    """The share of ``counts`` [vocab_size] that ``tokens`` have."""
    return float(counts[list(tokens)].sum() / counts.sum().clamp(min=1))


def divide(documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """Every tenth document, to see what the others' ranking is worth, behind those others."""
    return [doc for i, doc in enumerate(documents) if i % 10], list(documents[::10])
