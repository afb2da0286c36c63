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

from flashdraft.spec_decode.step_costs import Array

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
    # Drafts since then: what they leave of the weight of those before, and log odds of their tokens.
    news: list[tuple[float, list[float]]] = field(default_factory=list)
    choose_s: float = 0.0  # host seconds that one more verified token costs this request
    num_plain: int = 0  # rounds since it last drafted
    patience: int = 8  # plain rounds before its next probe


class Drafted(NamedTuple):
    """A draft of one request, and what came of it."""

    request: Acceptance
    block: int  # tokens that were asked for, anchor included
    log_probs: Sequence[float]  # the drafter's, of each token of such a block; empty where it has none
    num_tokens: int  # that can be verified
    num_verified: int = 0
    num_accepted: int = 0


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
        self.foresees = all(draft.log_probs for draft in drafts)
        if not self.foresees:
            where = self.blocks.index(drafts[0].block)
            means = mean_survival(self.offers([draft.request for draft in drafts]))[:, where]
            return [mean[: draft.num_tokens] for mean, draft in zip(means.tolist(), drafts, strict=True)]
        found = []
        for draft in drafts:
            odds = [self.offset + self.slope * confidence(one) for one in draft.log_probs]
            self._remember(draft, odds)
            found.append(_survival(odds[: draft.num_tokens]))
        return found

    def observe(self, drafts: Sequence[Drafted]) -> None:
        """Take what came of a step's drafts, all of one block."""
        for draft in drafts:
            for place in range(min(draft.num_accepted + 1, draft.num_verified)):
                fade = min(1.0, _ALL_WEIGHT / (self._num_reached[place] + 1))
                self._num_reached[place] = fade * (self._num_reached[place] + 1)
                hit = place < draft.num_accepted
                self._num_accepted[place] = fade * (self._num_accepted[place] + hit)
        if self.foresees:
            self._calibrate(drafts[:: -(-len(drafts) // _MOST_TAUGHT)])
            return
        for draft in drafts:
            odds = self._usual[: draft.block - 1].tolist()
            odds[: draft.num_accepted] = [_CERTAIN] * draft.num_accepted
            # What was not drafted would not have been accepted.
            if draft.num_accepted < draft.num_verified or draft.num_verified == draft.num_tokens:
                odds[draft.num_accepted : draft.num_accepted + 1] = [-_CERTAIN]
            self._remember(draft, odds[: draft.block - 1])

    def _remember(self, draft: Drafted, odds: list[float]) -> None:
        """``odds`` of the tokens of a draft, each given those before it. For now they are noted: steps are short."""
        request, shift, last = draft.request, self.shifts[self.blocks.index(draft.block)], len(odds)
        whole = [one - shift for one in odds]
        if last < self.max_block - 1:  # what a shorter block lacks is as good as what it has
            usual = self._usual.tolist()
            ahead = (sum(whole) - sum(usual[:last])) / last
            whole += [one + ahead for one in usual[last:]]
        request.news = [*request.news[1 - _MOST_NEWS :], (_KEPT * _KEPT_PLAIN**request.num_plain, whole)]
        request.num_plain = 0

    def _take_news(self, requests: Sequence[Acceptance]) -> None:
        news = [(request, kept, odds) for request in requests for kept, odds in request.news]
        if not news:
            return
        odds: Array = np.array([one for _, _, one in news])
        weight = self._usual_weight = min(self._usual_weight + len(odds), _ALL_WEIGHT)
        self._usual += (odds - self._usual).sum(axis=0) / weight
        for (request, kept, _), offered in zip(news, self._offered(odds), strict=True):
            if not request.num_drafts:
                self._firsts = _KEPT_FIRST * self._firsts + offered
                self._firsts_weight = _KEPT_FIRST * self._firsts_weight + 1
            request.offers = kept * request.offers + offered
            request.weight = kept * request.weight + 1
            request.num_drafts += 1
            request.news = []

    def _offered(self, odds: Array) -> Array:
        """What drafts of whole blocks with ``odds`` [num_drafts, max_block - 1] bring: as :meth:`offers`."""
        chances: Array = np.minimum(1 / (1 + np.exp(-odds[:, None] - np.array(self.shifts)[:, None])), _MOST)
        survival = chances.cumprod(axis=2)  # [num_drafts, num_blocks, max_block - 1]
        for idx, block in enumerate(self.blocks):
            survival[:, idx, block - 1 :] = 0.0
        return self._worth(survival)

    def _worth(self, survival: Array) -> Array:
        """What is worth each price of ``survival`` [num_drafts, num_blocks, num_tokens]: as :meth:`offers`."""
        above = survival[:, :, None] - self.prices[:, None]
        both = np.stack((np.maximum(above, 0.0), above > 0), axis=2)
        offered: Array = both.cumsum(axis=4)
        return offered

    def _calibrate(self, drafts: Sequence[Drafted]) -> None:
        """A Newton step of logistic regression on tokens whose fate is known, beside what earlier ones taught."""
        of_offset, of_both, of_slope = (_REMEMBERED * one for one in self._known)
        surprise = by_slope = 0.0
        for draft in drafts:
            for place in range(min(draft.num_accepted + 1, draft.num_verified)):
                sure = confidence(draft.log_probs[place])
                chance = 1 / (1 + exp(-self.offset - self.slope * sure))
                known, of_token = chance * (1 - chance), (place < draft.num_accepted) - chance
                surprise, by_slope = surprise + of_token, by_slope + sure * of_token
                of_offset += known
                of_both += sure * known
                of_slope += sure * sure * known
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


def _survival(odds: Sequence[float]) -> list[float]:
    """Products of the chances that log odds stand for, as long as they are not hopeless."""
    found, chance = [], 1.0
    for one in odds:
        chance *= min(1 / (1 + exp(-one)), _MOST)
        if chance < _HOPELESS:
            break
        found.append(chance)
    return found
