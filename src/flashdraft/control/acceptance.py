"""How much of a draft is accepted: of one that is there, by the drafter's confidence; of the next, by the last ones.

A drafter's probabilities foresee which of its tokens are accepted, far better than their positions and the request's
past do (benchmarks/confidence.py). What they are worth is learned. A new request's next draft is as all requests' were.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import exp, expm1, isnan, log
from typing import NamedTuple

import numpy as np

from flashdraft.control.config import DEFAULTS, ControllerConfig
from flashdraft.control.step_costs import Array
from flashdraft.spec_decode.tree import DraftTree


@dataclass(eq=False)
class Acceptance:
    """One request's."""

    chances: Array | None = None  # [blocks, draft tokens], of its next draft by its last ones


class Drafted(NamedTuple):
    """A draft of one request, and what came of it."""

    request: Acceptance
    block: int  # tokens that were asked for, anchor included
    draft: DraftTree  # all of it
    num_tokens: int  # its first ones, that can be verified
    num_verified: int = 0
    path: Sequence[int] = (0,)  # places of it that were accepted, the anchor's first

    def tried(self) -> list[tuple[int, bool]]:
        """Tokens whose fate is known, for those that they follow were accepted: (token, whether it was)."""
        parents = enumerate(self.draft.parents[: self.num_verified])
        return [(token, token + 1 in self.path) for token, parent in parents if parent in self.path]


class AcceptanceModel:
    """What all requests teach of drafts of ``blocks``, the longest first."""

    def __init__(self, blocks: Sequence[int], config: ControllerConfig = DEFAULTS) -> None:
        self.blocks, self.max_block, self.config = tuple(blocks), max(blocks), config
        # Log odds that a token is accepted, by 1 and those that the drafter gives it: at first, just these.
        self.weights = (0.0, 1.0)
        # The information about both: of the first, of the two together, of the second.
        self._known = self._prior = (config.prior_offset, 0.0, config.prior_weight)
        depths = range(1, self.max_block)
        self.usual = self._by_block([config.prior_rate**depth for depth in depths], depths)

    def expected(self, requests: Sequence[Acceptance]) -> Array:
        """The chances of the next draft's tokens, the likeliest first, [num_blocks, num_requests, max_block - 1].

        Each is the chance that the token and all before it are accepted; 0 where a block has no such token.
        """
        return np.stack([self.usual if one.chances is None else one.chances for one in requests], axis=1)

    def foresee(self, drafts: Sequence[Drafted]) -> list[list[float]]:
        """The chances of each draft's tokens, falling; drafts that come with confidence are remembered."""
        found, (offset, slope), most = [], self.weights, self.config.most_confidence
        for draft in drafts:
            if draft.draft.log_probs:
                odds = [offset + slope * confidence(one, most) for one in draft.draft.log_probs]
                chances = _falling(odds, draft.draft.parents)
                self._remember(draft, chances, draft.draft.depths)
            else:
                chances = self.expected([draft.request])[self.blocks.index(draft.block), 0].tolist()
            found.append(chances[: draft.num_tokens])
        return found

    def observe(self, drafts: Sequence[Drafted]) -> None:
        """Take what came of a step's drafts, all of one block."""
        known, most = [], self.config.most_confidence
        for draft in drafts:
            if log_probs := draft.draft.log_probs:
                known += [(confidence(log_probs[token], most), hit) for token, hit in draft.tried()]
                continue
            fates = [1.0] * (len(draft.path) - 1)
            # What was not drafted would not have been accepted.
            if len(fates) < draft.num_verified or draft.num_verified == draft.num_tokens:
                fates = [*fates, 0.0][: draft.block - 1]
            if fates:
                self._remember(draft, fates, range(1, len(fates) + 1))
        if known:
            self._calibrate(known)

    def _remember(self, draft: Drafted, chances: Sequence[float], depths: Sequence[int]) -> None:
        """What a block was too short for goes on as its tokens and one of the prior's did: by their geometric mean."""
        config, request, last = self.config, draft.request, max(depths)
        if last == draft.block - 1 or not draft.draft.log_probs:
            chance, rest = chances[depths.index(last)], range(last + 1, self.max_block)
            rate = (chance * config.prior_rate) ** (1 / (last + 1))
            chances, depths = [*chances, *(chance * rate ** (n - last) for n in rest)], [*depths, *rest]
        found = self._by_block(chances, depths)
        before = self.usual if request.chances is None else request.chances
        request.chances = config.kept_draft * before + (1 - config.kept_draft) * found
        self.usual = config.kept_usual * self.usual + (1 - config.kept_usual) * found

    def _by_block(self, chances: Sequence[float], depths: Sequence[int]) -> Array:
        """What a draft would have been in each block, [num_blocks, max_block - 1]."""
        table: Array = np.zeros((len(self.blocks), self.max_block - 1))
        for row, block in zip(table, self.blocks, strict=True):
            fits = [chance for chance, depth in zip(chances, depths, strict=True) if depth < block]
            row[: len(fits)] = sorted(fits, reverse=True)[: len(row)]
        return table

    def _calibrate(self, known: Sequence[tuple[float, bool]]) -> None:
        """A Newton step of logistic regression, on tokens' confidence and fate, beside what earlier ones taught.

        What is forgotten gives way to the prior: drafts that never fail teach nothing, and the first one that does is
        not to be all that is known.
        """
        # In plain floats: a dozen calls of numpy take longer behind a forward, which leaves the caches without them.
        kept, (offset, slope) = self.config.kept_calibration, self.weights
        every = zip(self._known, self._prior, strict=True)
        first, both, second = (kept * one + (1 - kept) * prior for one, prior in every)
        of_offset = of_slope = 0.0
        for sure, hit in known:
            found = 1 / (1 + exp(-offset - slope * sure))
            taught, missed = found * (1 - found), hit - found
            first, both, second = first + taught, both + taught * sure, second + taught * sure * sure
            of_offset, of_slope = of_offset + missed, of_slope + missed * sure
        self._known, area = (first, both, second), first * second - both * both
        offset += (second * of_offset - both * of_slope) / area
        slope += (first * of_slope - both * of_offset) / area
        self.weights = (offset, slope)


def confidence(log_prob: float, most: float = DEFAULTS.most_confidence) -> float:
    """Log odds of what a drafter gives ``log_prob``, from -``most`` to ``most``; of no number, the least."""
    sure = min(log_prob, -1e-9)
    return -most if isnan(sure) else max(min(sure - log(-expm1(sure)), most), -most)


def _falling(odds: Sequence[float], parents: Sequence[int]) -> list[float]:
    """The chances that tokens with these log odds, each behind its parent, are accepted.

    They fall: a drafter's order of tokens is its own, and what it is worth may put two the other way round.
    """
    chances = [1.0]
    for one, parent in zip(odds, parents, strict=True):
        chances.append(chances[parent] / (1 + exp(-one)))
    return [*accumulate(chances[1:], min)]
