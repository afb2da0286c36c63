"""How likely the draft tokens of a request are to be accepted: by position, as everybody's, and by its own luck.

A request's tokens are easier or harder to draft than others', all positions alike, and that changes as its text goes
on: one number a request, log odds that a Kalman filter follows. It predicts better than rates by position of a
request's own, of which a round shows one failure at most (docs/log.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np

from flashdraft.spec_decode.step_costs import Array

_PRIOR_RATE = 0.7
_PRIOR_WEIGHT, _ALL_WEIGHT = 4.0, 200.0  # rounds that the prior counts for, and that are remembered
_KEPT = 0.97  # of a request's lead, from one round to the next
_SPREAD = 1.0  # of the leads of all requests, as a variance
_MOST_LEAD = 4.0
_MOST = 0.995
# What a drafter of whole blocks loses in a shorter one, in log odds at a vanishing block: measured on the embedded pair
# (benchmarks/short_blocks.py). Not learned: a request that keeps to one block cannot tell its own luck from this.
SHORT_BLOCK_LOG_ODDS = -0.25


@dataclass(eq=False)
class Acceptance:
    """One request's."""

    lead: float = 0.0  # log odds of its draft tokens beyond those of all requests, when it last drafted
    variance: float = _SPREAD
    choose_s: float = 0.0  # host seconds that one more verified token costs this request
    num_plain: int = 0  # rounds since it last drafted
    patience: int = 8  # plain rounds before its next probe


class AcceptanceModel:
    """The odds of all requests by position, and how much a draft of a shorter block loses (``short_log_odds``).

    [i] stands for draft token i, given that those before it were accepted. Lists, since a round touches a few numbers
    in the middle of a step, where calls into numpy find cold caches.
    """

    def __init__(self, max_block: int, short_log_odds: float = 0.0) -> None:
        self.log_odds = [log_odds(_PRIOR_RATE)] * (max_block - 1)
        self.weights = [_PRIOR_WEIGHT] * (max_block - 1)
        self.max_block, self.short_log_odds = max_block, short_log_odds

    @property
    def rates(self) -> list[float]:
        """Of a request like any other, for a draft of the whole block."""
        return [_chance(one) for one in self.log_odds]

    def survival(self, requests: Sequence[Acceptance], blocks: Sequence[int]) -> Array:
        """[num_blocks, num_requests, max_block - 1]: the chance that draft tokens 0 .. i of such a block are accepted.

        Nothing is accepted beyond a block's own end.
        """
        leads: Array = np.array([request.lead * _KEPT**request.num_plain for request in requests])
        shifts: Array = np.array([self._shift(block) for block in blocks])
        odds = shifts[:, None, None] + leads[:, None] + np.array(self.log_odds)
        chances = np.cumprod(np.minimum(1 / (1 + np.exp(-odds)), _MOST), axis=2)
        for of_block, block in zip(chances, blocks, strict=True):
            of_block[:, block - 1 :] = 0.0
        return np.asarray(chances)

    def observe(self, request: Acceptance, block: int, num_asked: int, num_accepted: int) -> None:
        """A round verified ``num_asked`` draft tokens of a ``block``; one that was not drafted is a miss."""
        kept = _KEPT ** (request.num_plain + 1)
        lead = kept * request.lead
        variance = kept**2 * request.variance + (1 - kept**2) * _SPREAD
        surprise = information = 0.0
        shift = self._shift(block) + lead
        for idx in range(min(num_accepted + 1, num_asked)):
            chance = _chance(self.log_odds[idx] + shift)
            of_token, known = float(idx < num_accepted) - chance, chance * (1 - chance)
            surprise, information = surprise + of_token, information + known
            weight = self.weights[idx] = min(self.weights[idx] + 1, _ALL_WEIGHT)
            self.log_odds[idx] += of_token / max(known, 0.1) / weight
        request.variance = 1 / (1 / variance + information)
        request.lead = min(max(lead + request.variance * surprise, -_MOST_LEAD), _MOST_LEAD)

    def _shift(self, block: int) -> float:
        """Log odds that a draft of ``block`` tokens has beyond those of a whole one."""
        return self.short_log_odds * (1 - block / self.max_block)


def log_odds(chance: float) -> float:
    """Of a chance; even odds are 0."""
    return log(chance / (1 - chance))


def _chance(odds: float) -> float:
    return min(max(1 / (1 + exp(-odds)), 1 - _MOST), _MOST)
