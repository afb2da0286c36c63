"""How much of a draft is accepted: of one that is there, by the drafter's confidence; of the next, by the last ones.

A drafter that gives its tokens probabilities foresees which of them are accepted, far better than their positions and
the request's past do (docs/log.md). What its confidence is worth is learned from what was verified. Before anything is
drafted, a request's last drafts stand for what the next may be, and those of all requests for a new one's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, expm1, log
from typing import NamedTuple

import numpy as np

from flashdraft.control.config import DEFAULTS, ControllerConfig
from flashdraft.control.step_costs import Array
from flashdraft.spec_decode.tree import DraftTree

_ROUNDS_COUNTED = 200.0  # of all requests, for the rates by position
_MOST, _HOPELESS = 0.995, 0.01  # chances: nothing is surer; nobody asks for less
_HIT, _MISS = 0.98, 0.02  # what a known fate counts as
_MOST_CONFIDENCE = 7.0  # in log odds
_PRIOR_WEIGHT = 5.0  # of a drafter's own odds, as a few tokens of log odds 2
_REMEMBERED = 0.9995  # share of what is known of confidence that is still known a step later


@dataclass(eq=False)
class Acceptance:
    """One request's."""

    chances: Array | None = None  # [blocks, draft tokens], of its next draft by its last ones
    choose_s: float = 0.0  # host seconds that one more verified token costs this request
    drafted_at: int = 0  # the plan that it last drafted in


class Drafted(NamedTuple):
    """A draft of one request, and what came of it."""

    request: Acceptance
    block: int  # tokens that were asked for, anchor included
    draft: DraftTree  # all of it
    num_tokens: int  # its first ones, that can be verified
    num_verified: int = 0
    path: Sequence[int] = (0,)  # places of it that were accepted, the anchor's first

    @property
    def num_accepted(self) -> int:
        """Draft tokens."""
        return len(self.path) - 1

    def tried(self) -> list[tuple[int, int, bool]]:
        """Tokens whose fate is known, for those that they follow were accepted: (token, its depth, whether it was)."""
        depths = {place: depth for depth, place in enumerate(self.path, start=1)}
        parents = self.draft.parents[: self.num_verified]
        return [
            (token, depths[parent], token + 1 in depths)
            for token, parent in enumerate(parents)
            if parent in depths
        ]


class AcceptanceModel:
    """What all requests teach of drafts of ``blocks``, the longest first."""

    def __init__(self, blocks: Sequence[int], config: ControllerConfig = DEFAULTS) -> None:
        self.blocks, self.max_block, self.config = tuple(blocks), max(blocks), config
        self.foresees = False  # whether drafts come with the drafter's confidence
        # Log odds that a token is accepted, by 1 and those that the drafter gives it: at first, just these.
        self.weights: Array = np.array([0.0, 1.0])
        self._known: Array = np.diag([1.0, _PRIOR_WEIGHT])  # the information about both
        self._num_reached = np.full(self.max_block - 1, 4.0)
        self._num_accepted = config.prior_rate * self._num_reached
        depths = range(1, self.max_block)
        self.usual = self._by_block([config.prior_rate**depth for depth in depths], depths)

    @property
    def rates(self) -> Array:
        """[i]: share of draft tokens i that are accepted when those before them are."""
        return np.asarray(self._num_accepted / self._num_reached)

    def expected(self, requests: Sequence[Acceptance]) -> Array:
        """The chances of the next draft's tokens, the likeliest first, [num_blocks, num_requests, max_block - 1].

        Each is the chance that the token and all before it are accepted; 0 where a block has no such token.
        """
        every = [self.usual if request.chances is None else request.chances for request in requests]
        return np.stack(every, axis=1)

    def foresee(self, drafts: Sequence[Drafted]) -> list[list[float]]:
        """Of each draft of a step, all of one block: the chances of its tokens, falling, while there is hope.

        Drafts that come with confidence are remembered.
        """
        self.foresees = all(draft.draft.log_probs for draft in drafts)
        if not self.foresees:
            means = self.expected([draft.request for draft in drafts])[self.blocks.index(drafts[0].block)]
            return [mean[: draft.num_tokens].tolist() for mean, draft in zip(means, drafts, strict=True)]
        found = []
        offset, slope = self.weights.tolist()
        for draft in drafts:
            odds = [offset + slope * confidence(one) for one in draft.draft.log_probs]
            chances = _falling(odds, draft.draft.parents)
            self._remember(draft, chances, draft.draft.depths[: len(chances)])
            found.append(chances[: draft.num_tokens])
        return found

    def observe(self, drafts: Sequence[Drafted]) -> None:
        """Take what came of a step's drafts, all of one block."""
        known = []
        for draft in drafts:
            tried = draft.tried()
            depth = max((depth for _, depth, _ in tried), default=0)
            fade = np.minimum(1.0, _ROUNDS_COUNTED / (self._num_reached[:depth] + 1))
            self._num_reached[:depth] = fade * (self._num_reached[:depth] + 1)
            self._num_accepted[:depth] *= fade
            self._num_accepted[: draft.num_accepted] += fade[: draft.num_accepted]
            if self.foresees:
                known += [(confidence(draft.draft.log_probs[token]), hit) for token, _, hit in tried]
                continue
            fates = [_HIT**depth for depth in range(1, draft.num_accepted + 1)]
            # What was not drafted would not have been accepted.
            if draft.num_accepted < draft.num_verified or draft.num_verified == draft.num_tokens:
                fates = [*fates, _MISS * (fates[-1] if fates else 1.0)][: draft.block - 1]
            self._remember(draft, fates, range(1, len(fates) + 1))
        if known:
            self._calibrate(known)

    def _remember(self, draft: Drafted, chances: Sequence[float], depths: Sequence[int]) -> None:
        """What a block was too short for is as good as drafts usually are."""
        last = max(depths, default=0)
        chances, depths = list(chances), list(depths)
        if chances and (last == draft.block - 1 or not self.foresees):
            chance = chances[depths.index(last)]
            for depth in range(last + 1, self.max_block):
                chance *= float(self.rates[depth - 1])
                chances.append(chance)
                depths.append(depth)
        found, request, kept = self._by_block(chances, depths), draft.request, self.config.kept_draft
        before = self.usual if request.chances is None else request.chances
        request.chances = kept * before + (1 - kept) * found
        self.usual = self.config.kept_usual * self.usual + (1 - self.config.kept_usual) * found

    def _by_block(self, chances: Sequence[float], depths: Sequence[int]) -> Array:
        """What a draft would have been in each block, [num_blocks, max_block - 1]."""
        table: Array = np.zeros((len(self.blocks), self.max_block - 1))
        for row, block in zip(table, self.blocks, strict=True):
            fits = sorted(
                (one for one, depth in zip(chances, depths, strict=True) if depth < block), reverse=True
            )
            row[: len(fits)] = fits[: len(row)]
        return table

    def _calibrate(self, known: Sequence[tuple[float, bool]]) -> None:
        """A Newton step of logistic regression, on tokens' confidence and fate, beside what earlier ones taught."""
        sure, hits = np.array(known).T
        inputs = np.stack([np.ones_like(sure), sure])
        found = 1 / (1 + np.exp(-self.weights @ inputs))
        self._known = _REMEMBERED * self._known + (inputs * (found * (1 - found))) @ inputs.T
        self.weights = self.weights + np.linalg.solve(self._known, inputs @ (hits - found))


def confidence(log_prob: float) -> float:
    """Log odds of what a drafter gives ``log_prob``."""
    sure = min(log_prob, -1e-9)
    return max(min(sure - log(-expm1(sure)), _MOST_CONFIDENCE), -_MOST_CONFIDENCE)


def _falling(odds: Sequence[float], parents: Sequence[int]) -> list[float]:
    """The chances that tokens with these log odds, each behind its parent, are accepted, as long as there is hope.

    They fall: a drafter's order of tokens is its own, and what it is worth may put two the other way round.
    """
    found, chances, least = list[float](), [1.0], 1.0
    for one, parent in zip(odds, parents, strict=False):
        chance = chances[parent] * min(1 / (1 + exp(-one)), _MOST)
        chances.append(chance)
        least = min(least, chance)
        if least < _HOPELESS:
            break
        found.append(least)
    return found
