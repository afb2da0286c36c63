"""How likely the draft tokens of a request are to be accepted: by position, from its own rounds and everybody's."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flashdraft.spec_decode.step_costs import Array

_PRIOR_RATE = 0.7
_PRIOR_WEIGHT = 4.0  # rounds that the rates of all requests count for a new one
_OWN_WEIGHT, _ALL_WEIGHT = 12.0, 200.0  # rounds remembered
_STALE_WEIGHT, _STALE_DECAY = 2.0, 0.97  # what is left of a memory, and its loss in a plain round
_MOST = 0.995
# What a drafter of whole blocks loses in a shorter one: log odds at a vanishing block, measured on the embedded pair
# (benchmarks/short_blocks.py), then learned from what is accepted.
SHORT_BLOCK_LOG_ODDS = -0.45
_BIAS_WEIGHT, _BIAS_MEMORY = 10.0, 100.0


@dataclass(eq=False)
class Acceptance:
    """One request's rates: [i] is the chance that draft token i is accepted, given that those before it were."""

    rates: Array  # [max_block - 1], for a draft of the whole block
    weights: Array  # [max_block - 1], in rounds
    choose_s: float = 0.0  # host seconds that one more verified token costs this request
    num_plain: int = 0  # rounds since it last drafted
    patience: int = 8  # plain rounds before its next probe


class AcceptanceModel:
    """The rates of all requests, and how much a draft of a shorter block loses (at first ``short_log_odds``)."""

    def __init__(self, max_block: int, blocks: Sequence[int], short_log_odds: float = 0.0) -> None:
        self.rates: Array = np.full(max_block - 1, _PRIOR_RATE)
        self.weights: Array = np.full(max_block - 1, _PRIOR_WEIGHT)
        # [log odds, weight] by block drafted
        self.biases = {block: [short_log_odds * (1 - block / max_block), _BIAS_WEIGHT] for block in blocks}
        self.max_block = max_block

    def new_request(self) -> Acceptance:
        """A request of which nothing is known yet."""
        return Acceptance(self.rates.copy(), np.full_like(self.rates, _PRIOR_WEIGHT))

    def survival(self, requests: Sequence[Acceptance], block: int) -> Array:
        """[num_requests, block - 1]: the chance that draft tokens 0 .. i of such a block are all accepted."""
        rates = np.stack([request.rates[: block - 1] for request in requests])
        return np.asarray(np.cumprod(self._with_bias(rates, block), axis=1))

    def observe(self, request: Acceptance, block: int, num_asked: int, num_accepted: int) -> None:
        """A round verified ``num_asked`` draft tokens of a ``block``; one that was not drafted is a miss."""
        seen = min(num_accepted + 1, num_asked)
        outcome = (np.arange(seen) < num_accepted).astype(np.float64)
        # What is surprising beyond the loss of a shorter block is news of the request.
        own = outcome - self._with_bias(request.rates[:seen], block)
        everybody = outcome - self._with_bias(self.rates[:seen], block)
        request.weights[:] = np.maximum(request.weights * _STALE_DECAY**request.num_plain, _STALE_WEIGHT)
        _move(request.rates, request.weights, own, _OWN_WEIGHT)
        _move(self.rates, self.weights, everybody, _ALL_WEIGHT)
        if block != self.max_block:
            self._learn_bias(block, float(own.sum()), float((outcome - own) @ (1 - outcome + own)))

    def _learn_bias(self, block: int, surprise: float, information: float) -> None:
        """A step of online logistic regression; a shorter block is never better."""
        bias = self.biases[block]
        bias[1] = min(bias[1] + information, _BIAS_MEMORY)
        bias[0] = float(np.clip(bias[0] + surprise / bias[1], -3.0, 0.0))

    def _with_bias(self, rates: Array, block: int) -> Array:
        bias = self.biases[block][0] if block != self.max_block else 0.0
        if not bias:
            return rates
        odds = rates * np.exp(bias)
        return np.asarray(odds / (1 - rates + odds))


def _move(rates: Array, weights: Array, surprise: Array, memory: float) -> None:
    seen = len(surprise)
    weights[:seen] = np.minimum(weights[:seen] + 1, memory)
    rates[:seen] = np.clip(rates[:seen] + surprise / weights[:seen], 1 - _MOST, _MOST)
