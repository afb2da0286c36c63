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

from flashdraft.control.step_costs import Array
from flashdraft.spec_decode.tree import DraftTree

# What a verified token may cost, in tokens that the step could bring in its time. 0: what is there, whatever it costs.
PRICES: Array = np.array([0.0, 0.03, 0.07, 0.14, 0.25, 0.4, 0.6, 0.8])
_PRIOR_RATE = 0.7
_ALL_WEIGHT = 200.0  # rounds that are remembered of all requests
# Drafts are much like the one before, little like the tenth before: shares that their weights keep, from draft to
# draft, from one plain round to the next, and of other requests' first drafts.
_KEPT, _KEPT_PLAIN, _KEPT_FIRST = 0.7, 0.97, 0.9
_FIRSTS_WEIGHT = 0.45  # of those beside a request's only draft; half as much beside two
_MOST = 0.995
_HOPELESS = 0.01  # chance of a token below which nobody asks for it
_CERTAIN = 4.0  # log odds that stand for what is known
_MOST_CONFIDENCE = 7.0  # in log odds
_MOST_NEWS = 8  # drafts of a request that are noted between two plans; earlier ones weigh little by then
_MOST_TAUGHT = 8  # drafts of one step that teach what confidence is worth
# What is known of offset and slope at first, as variances, and what share of it is still known a step later.
_OFFSET_VARIANCE, _SLOPE_VARIANCE = 0.1, 0.02
_REMEMBERED = 0.9995
# What a drafter of whole blocks loses in a shorter one, in log odds at a vanishing block: measured on the embedded pair
# (benchmarks/short_blocks.py). Not learned: a request that keeps to one block cannot tell its own luck from this.
SHORT_BLOCK_LOG_ODDS = -0.25


@dataclass(eq=False)
class Acceptance:
    """One request's."""

    offers: Array | float = 0.0  # of its last drafts, the sum by weight: see :meth:`AcceptanceModel.offers`
    weight: float = 0.0  # of those together
    num_drafts: int = 0
    news: list["_Note"] = field(default_factory=list)  # drafts since then
    choose_s: float = 0.0  # host seconds that one more verified token costs this request
    num_plain: int = 0  # rounds since it last drafted
    patience: int = 8  # plain rounds before its next probe


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
    """What is kept of a draft until the next plan. Log odds are each token's own, in a whole block."""

    kept: float  # of the weight of the drafts before it
    chain: list[float]  # log odds of the likeliest token of every slot
    sides: list[tuple[int, int, float]]  # other tokens: (place that one follows, how deep it is, log odds)
    reach: int  # tokens of the chain that count: what a tree has left out is less likely than all that it has


class AcceptanceModel:
    """What all requests teach of drafts of ``blocks``, the longest first.

    ``short_log_odds``: how much a draft of a shorter block loses. ``prices``: those of :meth:`offers`, the first 0.
    """

    def __init__(self, blocks: Sequence[int], short_log_odds: float = 0.0, prices: Array = PRICES) -> None:
        self.blocks, self.max_block, self.prices = tuple(blocks), max(blocks), prices
        self.shifts = [short_log_odds * (1 - block / self.max_block) for block in blocks]
        self.foresees = False  # whether drafts come with the drafter's confidence
        # Log odds that a token is accepted: offset + slope * those that the drafter gives it.
        self.offset, self.slope = 0.0, 0.8
        # The information about both: of the offset, of both together, of the slope.
        self._known = 1 / _OFFSET_VARIANCE, 0.0, 1 / _SLOPE_VARIANCE
        prior: Array = np.full((1, self.max_block - 1), log(_PRIOR_RATE / (1 - _PRIOR_RATE)))
        self._usual, self._usual_weight = prior[0].copy(), 4.0  # log odds of all drafts' tokens, by position
        self._firsts: Array = self._offered(prior)[0]
        self._firsts_weight = 1.0
        self._num_reached, self._num_accepted = [4.0] * prior.size, [4.0 * _PRIOR_RATE] * prior.size

    @property
    def rates(self) -> list[float]:
        """[i]: share of draft tokens i that are accepted when those before them are."""
        counts = zip(self._num_accepted, self._num_reached, strict=True)
        return [accepted / reached for accepted, reached in counts]

    def offers(self, requests: Sequence[Acceptance]) -> Array:
        """What the next draft of each request should bring, [num_requests, num_blocks, 2, prices, max_block - 1].

        [..., 0, k, i]: the sum, over draft tokens 0 .. i, of what the chance that a token is accepted exceeds
        ``prices[k]`` by; [..., 1, k, i]: how many of them exceed it. Of i beyond a block's end: as at its end.
        """
        self._take_news(requests)
        firsts = self._firsts / self._firsts_weight
        found: Array = np.empty((len(requests), *firsts.shape))
        for row, request in enumerate(requests):
            kept = _KEPT_PLAIN**request.num_plain
            of_firsts = _FIRSTS_WEIGHT * (1 - kept + kept / max(request.num_drafts, 1))
            total = kept * request.weight + of_firsts
            found[row] = kept / total * request.offers + of_firsts / total * firsts
        if self.foresees:
            return found
        # A draft does not tell which of them it is: what counts is the mean of its chances.
        return self._worth(mean_survival(found))

    def foresee(self, drafts: Sequence[Drafted]) -> list[list[float]]:
        """Of each draft of a step, all of one block: the chances that tokens 0 .. i are accepted, while there is hope.

        Drafts that come with confidence are remembered.
        """
        self.foresees = all(draft.draft.log_probs for draft in drafts)
        if not self.foresees:
            where = self.blocks.index(drafts[0].block)
            means = mean_survival(self.offers([draft.request for draft in drafts]))[:, where]
            return [mean[: draft.num_tokens] for mean, draft in zip(means.tolist(), drafts, strict=True)]
        found = []
        for draft in drafts:
            odds = [self.offset + self.slope * confidence(one) for one in draft.draft.log_probs]
            self._remember(draft, odds)
            found.append(_survival(odds[: draft.num_tokens], draft.draft.parents))
        return found

    def observe(self, drafts: Sequence[Drafted]) -> None:
        """Take what came of a step's drafts, all of one block."""
        tried = [draft.tried() for draft in drafts]
        for draft, known in zip(drafts, tried, strict=True):
            for depth in {depth for _, depth, _ in known}:
                fade = min(1.0, _ALL_WEIGHT / (self._num_reached[depth - 1] + 1))
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
            odds = self._usual[: draft.block - 1].tolist()
            odds[: draft.num_accepted] = [_CERTAIN] * draft.num_accepted
            # What was not drafted would not have been accepted.
            if draft.num_accepted < draft.num_verified or draft.num_verified == draft.num_tokens:
                odds[draft.num_accepted : draft.num_accepted + 1] = [-_CERTAIN]
            odds = odds[: draft.block - 1]
            self._remember(draft._replace(draft=DraftTree.chain([0] * len(odds))), odds)

    def _remember(self, draft: Drafted, odds: list[float]) -> None:
        """``odds`` of its tokens, each given those before it. For now they are noted: steps are short."""
        request, shift = draft.request, self.shifts[self.blocks.index(draft.block)]
        chain, sides = list[float](), list[tuple[int, int, float]]()
        last, where, depths = (
            0,
            [0],
            [0],
        )  # of the chain; of each token: where it is noted, and how deep it is
        for place, (one, parent) in enumerate(zip(odds, draft.draft.parents, strict=True), start=1):
            depths.append(depths[parent] + 1)
            if parent == last:  # the first to follow the likeliest so far
                chain.append(one - shift)
                last = place
                where.append(len(chain))
            else:
                sides.append((where[parent], depths[place], one - shift))
                where.append(self.max_block - 1 + len(sides))
        is_whole = not sides or len(chain) == draft.block - 1
        reach = self.max_block - 1 if is_whole else len(chain)
        if missing := self._usual[len(chain) :].tolist():  # what it lacks is as good as what it has
            usual = self._usual[: len(chain)].tolist()
            ahead = (sum(chain) - sum(usual)) / len(chain)
            chain += [one + ahead for one in missing]
        note = _Note(_KEPT * _KEPT_PLAIN**request.num_plain, chain, sides, reach)
        request.news = [*request.news[1 - _MOST_NEWS :], note]
        request.num_plain = 0

    def _take_news(self, requests: Sequence[Acceptance]) -> None:
        news = [(request, note) for request in requests for note in request.news]
        if not news:
            return
        odds: Array = np.array([note.chain for _, note in news])
        weight = self._usual_weight = min(self._usual_weight + len(odds), _ALL_WEIGHT)
        self._usual += (odds - self._usual).sum(axis=0) / weight
        every = self._offered(odds, [note for _, note in news])
        for (request, note), offered in zip(news, every, strict=True):
            if not request.num_drafts:
                self._firsts = _KEPT_FIRST * self._firsts + offered
                self._firsts_weight = _KEPT_FIRST * self._firsts_weight + 1
            request.offers = note.kept * request.offers + offered
            request.weight = note.kept * request.weight + 1
            request.num_drafts += 1
            request.news = []

    def _offered(self, odds: Array, notes: Sequence[_Note] = ()) -> Array:
        """What drafts bring, of their chains' ``odds`` [num_drafts, max_block - 1]: as :meth:`offers`.

        ``notes``: of those that may be trees.
        """
        shifts: Array = np.array(self.shifts)

        def chances(odds: Array) -> Array:
            """[num_drafts, num_blocks, ...]."""
            shifted = odds[:, None] + shifts.reshape(-1, *[1] * (odds.ndim - 1))
            return np.minimum(1 / (1 + np.exp(-shifted)), _MOST)

        survival = chances(odds).cumprod(axis=2)  # [num_drafts, num_blocks, max_block - 1]
        for idx, block in enumerate(self.blocks):
            survival[:, idx, block - 1 :] = 0.0
        for row, note in enumerate(notes):
            survival[row, :, note.reach :] = 0.0
        num_sides = max((len(note.sides) for note in notes), default=0)
        if num_sides:
            num_chain, rows = survival.shape[2], np.arange(len(survival))
            every = np.ones((*survival.shape[:2], 1 + num_chain + num_sides))
            every[:, :, 1 : 1 + num_chain] = survival
            none = 0, self.max_block, 0.0
            noted: Array = np.array(
                [[*note.sides, *[none] * (num_sides - len(note.sides))] for note in notes]
            )
            parents = noted[:, :, 0].astype(np.intp)
            fits = (
                noted[:, None, :, 1] < np.array(self.blocks)[:, None]
            )  # [num_drafts, num_blocks, num_sides]
            given = chances(noted[:, :, 2]) * fits
            for side in range(num_sides):
                every[:, :, 1 + num_chain + side] = every[rows, :, parents[:, side]] * given[:, :, side]
            survival = -np.sort(-every[:, :, 1:], axis=2)[:, :, :num_chain]
        return self._worth(survival)

    def _worth(self, survival: Array) -> Array:
        """What is worth each price of ``survival`` [num_drafts, num_blocks, num_tokens]: as :meth:`offers`."""
        above = survival[:, :, None] - self.prices[:, None]
        both = np.stack((np.maximum(above, 0.0), above > 0), axis=2)
        offered: Array = both.cumsum(axis=4)
        return offered

    def _calibrate(self, known: Sequence[tuple[float, bool]]) -> None:
        """A Newton step of logistic regression, on tokens' confidence and fate, beside what earlier ones taught."""
        of_offset, of_both, of_slope = (_REMEMBERED * one for one in self._known)
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


def mean_survival(offers: Array) -> Array:
    """Of :meth:`AcceptanceModel.offers`: the chances that tokens are accepted, [num_requests, num_blocks, tokens]."""
    return np.diff(offers[:, :, 0, 0], axis=2, prepend=0.0)


def confidence(log_prob: float) -> float:
    """Log odds of what a drafter gives ``log_prob``."""
    sure = min(log_prob, -1e-9)
    return max(min(sure - log(-expm1(sure)), _MOST_CONFIDENCE), -_MOST_CONFIDENCE)


def _survival(odds: Sequence[float], parents: Sequence[int]) -> list[float]:
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
