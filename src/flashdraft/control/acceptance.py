"""How much of a draft is accepted: of one that is there, by the drafter's confidence; of the next, by the last ones.

A drafter that gives its tokens probabilities foresees which of them are accepted, far better than their positions and
the request's past do (docs/log.md). What its confidence is worth is learned from what was verified. Before anything is
drafted, a request's last drafts, and to a small part other requests' first ones, stand for what the next may be.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
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
_MOST_NEWS = 8  # drafts of a request that are noted between two plans; earlier ones weigh little by then
_MOST_TAUGHT = 8  # drafts of one step that teach what confidence is worth


@dataclass(eq=False)
class Acceptance:
    """One request's."""

    chances: Array | float = 0.0  # [blocks, draft tokens], of its last drafts: the sum by weight
    weight: float = 0.0  # of those together
    num_drafts: int = 0
    news: list["_Note"] = field(default_factory=list)  # drafts since then
    choose_s: float = 0.0  # host seconds that one more verified token costs this request
    num_plain: int = 0  # rounds since it last drafted
    patience: int = DEFAULTS.patience  # plain rounds before its next probe


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

    @property
    def is_all_accepted(self) -> bool:
        """Whether no longer path could have been."""
        return 0 < self.num_accepted == self.draft.first(self.num_verified).depth

    def tried(self) -> list[tuple[int, int, bool]]:
        """Tokens whose fate is known, for those that they follow were accepted: (token, its depth, whether it was)."""
        depths = {place: depth for depth, place in enumerate(self.path, start=1)}
        parents = self.draft.parents[: self.num_verified]
        return [
            (token, depths[parent], token + 1 in depths)
            for token, parent in enumerate(parents)
            if parent in depths
        ]


class _Note(NamedTuple):
    """What is kept of a draft until the next plan."""

    kept: float  # of the weight of the drafts before it
    chances: list[float]  # that each token and all before it are accepted, falling
    depths: list[int]  # of those tokens


class AcceptanceModel:
    """What all requests teach of drafts of ``blocks``, the longest first."""

    def __init__(self, blocks: Sequence[int], config: ControllerConfig = DEFAULTS) -> None:
        self.blocks, self.max_block, self.config = tuple(blocks), max(blocks), config
        self.foresees = False  # whether drafts come with the drafter's confidence
        # Log odds that a token is accepted: offset + slope * those that the drafter gives it.
        self.offset, self.slope = 0.0, config.prior_slope
        # The information about both: of the offset, of both together, of the slope.
        self._known = 1 / config.offset_variance, 0.0, 1 / config.slope_variance
        num_tokens = self.max_block - 1
        self._num_reached, self._num_accepted = [4.0] * num_tokens, [4.0 * config.prior_rate] * num_tokens
        prior = [config.prior_rate**depth for depth in range(1, num_tokens + 1)]
        self._firsts = self._by_block([_Note(0.0, prior, list(range(1, num_tokens + 1)))])[0]
        self._firsts_weight = 1.0

    @property
    def rates(self) -> list[float]:
        """[i]: share of draft tokens i that are accepted when those before them are."""
        counts = zip(self._num_accepted, self._num_reached, strict=True)
        return [accepted / reached for accepted, reached in counts]

    def expected(self, requests: Sequence[Acceptance]) -> Array:
        """The chances of the next draft's tokens, the likeliest first, [num_requests, num_blocks, max_block - 1].

        Each is the chance that the token and all before it are accepted; 0 where a block has no such token.
        """
        self._take_news(requests)
        firsts = self._firsts / self._firsts_weight
        found: Array = np.empty((len(requests), *firsts.shape))
        for row, request in enumerate(requests):
            kept = self.config.kept_plain**request.num_plain
            of_firsts = self.config.first_weight * (1 - kept + kept / max(request.num_drafts, 1))
            total = kept * request.weight + of_firsts
            found[row] = kept / total * request.chances + of_firsts / total * firsts
        return found

    def foresee(self, drafts: Sequence[Drafted]) -> list[list[float]]:
        """Of each draft of a step, all of one block: the chances of its tokens, falling, while there is hope.

        Drafts that come with confidence are remembered.
        """
        self.foresees = all(draft.draft.log_probs for draft in drafts)
        if not self.foresees:
            where = self.blocks.index(drafts[0].block)
            means = self.expected([draft.request for draft in drafts])[:, where].tolist()
            return [mean[: draft.num_tokens] for mean, draft in zip(means, drafts, strict=True)]
        found = []
        for draft in drafts:
            odds = [self.offset + self.slope * confidence(one) for one in draft.draft.log_probs]
            chances = _falling(odds, draft.draft.parents)
            self._remember(draft, chances, draft.draft.depths[: len(chances)])
            found.append(chances[: draft.num_tokens])
        return found

    def observe(self, drafts: Sequence[Drafted]) -> None:
        """Take what came of a step's drafts, all of one block."""
        tried = [draft.tried() for draft in drafts]
        for draft, known in zip(drafts, tried, strict=True):
            for depth in {depth for _, depth, _ in known}:
                fade = min(1.0, _ROUNDS_COUNTED / (self._num_reached[depth - 1] + 1))
                self._num_reached[depth - 1] = fade * (self._num_reached[depth - 1] + 1)
                hit = depth <= draft.num_accepted
                self._num_accepted[depth - 1] = fade * (self._num_accepted[depth - 1] + hit)
        if self.foresees:
            every = -(-len(drafts) // _MOST_TAUGHT)
            self._calibrate(
                [
                    (confidence(draft.draft.log_probs[token]), hit)
                    for draft, known in zip(drafts[::every], tried[::every], strict=True)
                    for token, _, hit in known
                ]
            )
            return
        for draft in drafts:
            fates = [_HIT**depth for depth in range(1, draft.num_accepted + 1)]
            # What was not drafted would not have been accepted.
            if draft.num_accepted < draft.num_verified or draft.num_verified == draft.num_tokens:
                fates = [*fates, _MISS * (fates[-1] if fates else 1.0)][: draft.block - 1]
            self._remember(draft, fates, list(range(1, len(fates) + 1)))

    def _remember(self, draft: Drafted, chances: list[float], depths: list[int]) -> None:
        """For now it is noted: steps are short. What its block was too short for is as good as drafts usually are."""
        last = max(depths, default=0)
        if chances and (last == draft.block - 1 or not self.foresees):
            chance, rates = chances[depths.index(last)], self.rates
            for depth in range(last + 1, self.max_block):
                chance *= rates[depth - 1]
                chances, depths = [*chances, chance], [*depths, depth]
        request = draft.request
        kept = self.config.kept_draft * self.config.kept_plain**request.num_plain
        note = _Note(kept, chances, depths)
        request.news = [*request.news[1 - _MOST_NEWS :], note]
        request.num_plain = 0

    def _take_news(self, requests: Sequence[Acceptance]) -> None:
        news = [(request, note) for request in requests for note in request.news]
        if not news:
            return
        every = self._by_block([note for _, note in news])
        for (request, note), chances in zip(news, every, strict=True):
            if not request.num_drafts:
                self._firsts = self.config.kept_first * self._firsts + chances
                self._firsts_weight = self.config.kept_first * self._firsts_weight + 1
            request.chances = note.kept * request.chances + chances
            request.weight = note.kept * request.weight + 1
            request.num_drafts += 1
            request.news = []

    def _by_block(self, notes: Sequence[_Note]) -> Array:
        """What each draft would have been in each block, [num_notes, num_blocks, max_block - 1]."""
        most = max(self.max_block - 1, *(len(note.chances) for note in notes))
        padded: Array = np.zeros((2, len(notes), most))
        for row, note in enumerate(notes):
            padded[0, row, : len(note.chances)] = note.chances
            padded[1, row, : len(note.depths)] = note.depths
        fits = padded[1][:, None] < np.array(self.blocks)[:, None]
        chances = np.where(fits, padded[0][:, None], 0.0)
        falling: Array = -np.sort(-chances, axis=2)[:, :, : self.max_block - 1]
        return falling

    def _calibrate(self, known: Sequence[tuple[float, bool]]) -> None:
        """A Newton step of logistic regression, on tokens' confidence and fate, beside what earlier ones taught."""
        of_offset, of_both, of_slope = (self.config.remembered * one for one in self._known)
        surprise = by_slope = 0.0
        for sure, hit in known:
            chance = 1 / (1 + exp(-self.offset - self.slope * sure))
            weight, of_token = chance * (1 - chance), hit - chance
            surprise, by_slope = surprise + of_token, by_slope + sure * of_token
            of_offset += weight
            of_both += sure * weight
            of_slope += sure * sure * weight
        self._known = of_offset, of_both, of_slope
        determinant = of_offset * of_slope - of_both * of_both
        self.offset += (of_slope * surprise - of_both * by_slope) / determinant
        self.slope += (of_offset * by_slope - of_both * surprise) / determinant


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
