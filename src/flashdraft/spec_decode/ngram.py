"""Prompt lookup (n-gram) drafting: what followed the latest earlier occurrence of the last few tokens."""

from torch import Tensor

from flashdraft.spec_decode.drafter import DraftShape
from flashdraft.spec_decode.per_request import PerRequestDrafter
from flashdraft.spec_decode.tree import DraftTree


class NgramDrafter(PerRequestDrafter):
    """Needs no network and no features; the baseline every trained drafter has to beat."""

    def __init__(self, max_block_size: int = 16, max_ngram: int = 3, min_ngram: int = 1) -> None:
        self.max_block_size = max_block_size
        self.ngram_sizes = range(max_ngram, min_ngram - 1, -1)

    def begin(self, max_len: int) -> "NgramState":  # noqa: ARG002 - the protocol's argument
        """See :class:`PerRequestDrafter`."""
        return NgramState(self)


class NgramState:
    """Where each n-gram of one request was last followed by something."""

    def __init__(self, drafter: NgramDrafter) -> None:
        self.sizes = drafter.ngram_sizes
        self.token_ids: list[int] = []
        self.followed_at: dict[tuple[int, ...], int] = {}

    def observe(self, token_ids: list[int], features: Tensor | None) -> None:  # noqa: ARG002
        """Index the new tokens."""
        for token in token_ids:
            end = len(self.token_ids)
            for size in self.sizes:
                if end >= size:
                    self.followed_at[tuple(self.token_ids[end - size :])] = end
            self.token_ids.append(token)

    def propose(self, anchor: int, shape: DraftShape) -> DraftTree:
        """The continuation of the longest n-gram that ends in ``anchor`` and was seen before; may be empty."""
        recent = [*self.token_ids[-self.sizes.start :], anchor]
        for size in self.sizes:
            start = self.followed_at.get(tuple(recent[-size:])) if len(recent) >= size else None
            if start is not None:
                return DraftTree.chain(self.token_ids[start : start + shape.depth])
        return DraftTree()
