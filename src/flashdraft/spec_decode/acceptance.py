"""How likely the draft tokens of a request are to be accepted: by position, from its own rounds and everybody's."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

import numpy as np

from flashdraft.spec_decode.step_costs import Array

_PRIOR_RATE = 0.7
_PRIOR_WEIGHT = 4.0  # rounds that the rates of all requests count for a new one
_OWN_WEIGHT, _ALL_WEIGHT = 12.0, 200.0  # rounds remembered
_STALE_WEIGHT, _STALE_DECAY = 2.0, 0.97  # what is left of a memory, and its loss in a plain round
_MOST = 0.995
# What a drafter of whole blocks loses in a shorter one, in log odds at a vanishing block: measured on the embedded pair
# (benchmarks/short_blocks.py). Not learned: a request that keeps to one block cannot tell its own rates from this.
SHORT_BLOCK_LOG_ODDS = -0.25


@dataclass(eq=False)
class Acceptance:
    """One request's rates: [i] is the chance that draft token i is accepted, given that those before it were."""

    rates: list[float]  # [max_block - 1], for a draft of the whole block
    weights: list[float]  # [max_block - 1], in rounds
    choose_s: float = 0.0  # host seconds that one more verified token costs this request
    num_plain: int = 0  # rounds since it last drafted
    patience: int = 8  # plain rounds before its next probe


class AcceptanceModel:
    """The rates of all requests, and how much a draft of a shorter block loses (``short_log_odds``).

    Lists, since a round touches a few numbers in the middle of a step, where calls into numpy find cold caches.
    """

    def __init__(self, max_block: int, short_log_odds: float = 0.0) -> None:
        self.rates = [_PRIOR_RATE] * (max_block - 1)
        self.weights = [_PRIOR_WEIGHT] * (max_block - 1)
        self.max_block, self.short_log_odds = max_block, short_log_odds

    def new_request(self) -> Acceptance:
        """A request of which nothing is known yet."""
        return Acceptance(list(self.rates), [_PRIOR_WEIGHT] * len(self.rates))

    def survival(self, requests: Sequence[Acceptance], blocks: Sequence[int]) -> Array:
        """[num_blocks, num_requests, max_block - 1]: the chance that draft tokens 0 .. i of such a block are accepted.

        Nothing is accepted beyond a block's own end.
        """
        rates: Array = np.array([request.rates for request in requests])
        factors: Array = np.array([self._factor(block) for block in blocks])[:, None, None]
        odds = rates * factors
        chances = np.cumprod(odds / (1 - rates + odds), axis=2)
        for of_block, block in zip(chances, blocks, strict=True):
            of_block[:, block - 1 :] = 0.0
        return np.asarray(chances)

    def observe(self, request: Acceptance, block: int, num_asked: int, num_accepted: int) -> None:
        """A round verified ``num_asked`` draft tokens of a ``block``; one that was not drafted is a miss."""
        factor = self._factor(block)
        decay = _STALE_DECAY**request.num_plain
        if decay < 1:
            request.weights[:] = [max(weight * decay, _STALE_WEIGHT) for weight in request.weights]
        for idx in range(min(num_accepted + 1, num_asked)):
            outcome = float(idx < num_accepted)
            # What is surprising beyond the loss of a shorter block is news of the request.
            _move(request, idx, outcome - _chance(request.rates[idx], factor), _OWN_WEIGHT)
            _move(self, idx, outcome - _chance(self.rates[idx], factor), _ALL_WEIGHT)

    def _factor(self, block: int) -> float:
        """What the odds of a block's draft tokens are multiplied by."""
        return exp(self.short_log_odds * (1 - block / self.max_block))


def _chance(rate: float, factor: float) -> float:
    return rate * factor / (1 - rate + rate * factor)


def _move(state: Acceptance | AcceptanceModel, idx: int, surprise: float, memory: float) -> None:
    weight = state.weights[idx] = min(state.weights[idx] + 1, memory)
    state.rates[idx] = min(max(state.rates[idx] + surprise / weight, 1 - _MOST), _MOST)
