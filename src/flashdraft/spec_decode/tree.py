"""Tree drafts (DDTree, arXiv 2604.12989): the likeliest continuations that a block's distributions give together.

A DFlash forward gives every slot of its block a distribution. Taken as independent, they give every continuation a
probability, and the best ones form a tree, for a token is never likelier than the one before it. The target checks
the whole tree in one forward. What is kept is the target's own choice at every token, as with a chain: lossless.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from torch import Tensor

_FEWEST, _MOST = 4, 16  # tokens of a slot that may enter a tree
_PIECE = 64  # of a vocabulary, in which the likeliest tokens are looked for


@dataclass(frozen=True)
class DraftTree:
    """Tokens that may follow an anchor. The anchor is place 0; token i has place i + 1, after its parent's."""

    token_ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)  # the place that each token follows
    # The drafter's own log-probability of each token in its place. Empty where it has none.
    log_probs: list[float] = field(default_factory=list)

    @classmethod
    def chain(cls, token_ids: list[int], log_probs: Sequence[float] = ()) -> "DraftTree":
        """Each token follows the one before it."""
        return cls(token_ids, list(range(len(token_ids))), list(log_probs))

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
        return len(self) if self.is_chain else max(self.depths, default=0)

    def first(self, num_tokens: int) -> "DraftTree":
        """Its first ``num_tokens`` tokens."""
        return DraftTree(self.token_ids[:num_tokens], self.parents[:num_tokens], self.log_probs[:num_tokens])

    def up_to(self, depth: int) -> "DraftTree":
        """Its tokens at most ``depth`` from the anchor."""
        if depth >= len(self):
            return self
        if self.is_chain:
            return self.first(max(depth, 0))
        kept = [i for i, own in enumerate(self.depths) if own <= depth]
        place = {0: 0} | {i + 1: new for new, i in enumerate(kept, start=1)}
        parents = [place[self.parents[i]] for i in kept]
        log_probs = [self.log_probs[i] for i in kept] if self.log_probs else []
        return DraftTree([self.token_ids[i] for i in kept], parents, log_probs)

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


def likeliest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Ids and log-probabilities of the ``count`` likeliest tokens of ``logits`` [..., vocab_size], best first."""
    ids, values = largest(logits, count)
    return ids, values - logits.logsumexp(-1, keepdim=True)


def largest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Ids and values of the ``count`` largest of ``logits`` [..., vocab_size], best first."""
    if count == 1:
        most = logits.max(-1, keepdim=True)
        return most.indices, most.values
    vocab_size = logits.shape[-1]
    if vocab_size % _PIECE or count > vocab_size // _PIECE:
        values, ids = logits.topk(min(count, vocab_size))
        return ids, values
    # The best are in the pieces of the best maxima; a CPU finds those in a fifth of the time.
    pieces = logits.view(*logits.shape[:-1], -1, _PIECE)
    chosen = pieces.amax(-1).topk(count).indices
    within = pieces.gather(-2, chosen.unsqueeze(-1).expand(*chosen.shape, _PIECE)).flatten(-2)
    values, at = within.topk(count)
    return chosen.gather(-1, at // _PIECE) * _PIECE + at % _PIECE, values


def num_ranks(num_tokens: int) -> int:
    """How many tokens of a slot are looked at for a tree of ``num_tokens``.

    Measured: of trees of 15 the fifth and later ones bring 0.2 % of what is accepted (docs/log.md).
    """
    return min(max(num_tokens // 4, _FEWEST), _MOST)


def best_first(
    token_ids: Sequence[Sequence[int]],
    log_probs: Sequence[Sequence[Sequence[float]]],
    num_tokens: int,
    places: Sequence[Sequence[Sequence[int]]] | None = None,
) -> DraftTree:
    """The tree of the ``num_tokens`` likeliest continuations, the likeliest first.

    ``token_ids[slot]``: candidates of each slot of a block. ``log_probs[slot][before]``: of the likeliest ones behind
    candidate ``before`` of the slot before it, best first, and ``places[slot][before]`` which ones they are; without
    ``places`` they are the slot's first ones, and the same behind all. The first n tokens of the tree are the best tree
    of n tokens.
    """
    tree = DraftTree()
    # (minus the log-probability of the continuation, slot, candidate before and rank of its last token, parent, minus
    # the parent's)
    waiting = [(-log_probs[0][0][0], 0, 0, 0, 0, 0.0)] if log_probs else []
    while waiting and len(tree) < num_tokens:
        cost, slot, before, rank, parent, cost_above = heappop(waiting)
        values, place = log_probs[slot][before], places[slot][before][rank] if places else rank
        tree.token_ids.append(token_ids[slot][place])
        tree.parents.append(parent)
        tree.log_probs.append(values[rank])
        # What can be next best: the next token in its place, and the best one behind it.
        if rank + 1 < len(values):
            heappush(waiting, (cost_above - values[rank + 1], slot, before, rank + 1, parent, cost_above))
        if slot + 1 < len(log_probs):
            behind = place if places else 0
            heappush(waiting, (cost - log_probs[slot + 1][behind][0], slot + 1, behind, 0, len(tree), cost))
    return tree
