"""Tree drafts (DDTree, arXiv 2604.12989): the likeliest continuations that a block's distributions give together.

A DFlash forward gives every slot of its block a distribution. Taken as independent, they give every continuation a
probability, and the best ones form a tree, for a token is never likelier than the one before it. The target checks
the whole tree in one forward. What is kept is the target's own choice at every token, as with a chain: lossless.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class DraftTree:
    """Tokens that may follow an anchor. The anchor is place 0; token i has place i + 1, after its parent's."""

    token_ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)  # the place that each token follows

    @classmethod
    def chain(cls, token_ids: list[int]) -> "DraftTree":
        """Each token follows the one before it."""
        return cls(token_ids, list(range(len(token_ids))))

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def is_chain(self) -> bool:
        """Whether it has a single path."""
        return self.parents == list(range(len(self)))

    @property
    def depths(self) -> list[int]:
        """How far each token is from the anchor, 1 or more."""
        depths = [0]
        for parent in self.parents:
            depths.append(depths[parent] + 1)
        return depths[1:]

    @property
    def depth(self) -> int:
        """Of the longest path."""
        return max(self.depths, default=0)

    def first(self, num_tokens: int) -> "DraftTree":
        """Its first ``num_tokens`` tokens."""
        return DraftTree(self.token_ids[:num_tokens], self.parents[:num_tokens])

    def cut(self, depth: int) -> "DraftTree":
        """Its tokens at most ``depth`` from the anchor."""
        kept = [i for i, own in enumerate(self.depths) if own <= depth]
        place = {0: 0} | {i + 1: new for new, i in enumerate(kept, start=1)}
        return DraftTree([self.token_ids[i] for i in kept], [place[self.parents[i]] for i in kept])

    def walk(self, choose: Callable[[int, list[int]], int]) -> tuple[list[int], int]:
        """Go down from the anchor as long as the target's own choice is among the children.

        ``choose(place, token_ids)``: the target's token after ``place``, which ``token_ids`` lead to. Returns the
        places of the accepted path, the anchor's 0 first, and the token that the target puts after it.
        """
        child = {key: i + 1 for i, key in enumerate(zip(self.parents, self.token_ids, strict=True))}
        path, token_ids = [0], list[int]()
        while True:
            token = choose(path[-1], token_ids)
            place = child.get((path[-1], token))
            if place is None:
                return path, token
            path.append(place)
            token_ids.append(token)


def best_first(token_ids: Tensor, log_probs: Tensor, num_tokens: int) -> list[DraftTree]:
    """The tree of the ``num_tokens`` likeliest continuations, for each row, the likeliest first.

    ``token_ids``, ``log_probs`` [rows, depth, width]: the likeliest tokens of each slot, best first; -inf: not to
    be drafted. The first n tokens of a tree are the best tree of n tokens.
    """
    rows, depth, width = log_probs.shape
    beam = log_probs.new_zeros(rows, 1)
    scores, ids, parents, first = [], [], [], 0  # by level; parents as indices into all levels' candidates
    for level in range(depth):
        reached = (beam.unsqueeze(-1) + log_probs[:, level, None]).flatten(1)
        # No more of one level than the whole tree holds.
        beam, chosen = reached.topk(min(num_tokens, reached.shape[1]))
        scores.append(beam)
        ids.append(token_ids[:, level].gather(1, chosen % width))
        parents.append(chosen // width + (first - scores[level - 1].shape[1] if level else -1))
        first += beam.shape[1]
    # Stable, levels in order: of equal scores the parent stands before its child.
    order = torch.cat(scores, 1).argsort(dim=1, descending=True, stable=True)
    place = torch.zeros_like(order).scatter(1, order, torch.arange(1, first + 1).to(order).expand_as(order))
    above = torch.cat(parents, 1)
    parent_place = torch.where(above < 0, 0, place.gather(1, above.clamp(min=0)))
    best = order[:, :num_tokens]
    listed = (values.gather(1, best).tolist() for values in (torch.cat(ids, 1), parent_place))
    counts = torch.cat(scores, 1).gather(1, best).isfinite().sum(1).tolist()
    return [DraftTree(own[:num], above[:num]) for own, above, num in zip(*listed, counts, strict=True)]
