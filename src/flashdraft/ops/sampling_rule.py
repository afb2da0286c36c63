"""How a row's tokens are sampled, as kernels are told: numbers of 32 bits beside others of the row."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flashdraft.ops.noise import seed_halves

# Of a rule: temperature, top_p and the logarithm of min_p as bits of floats, top_k, halves of the seed.
NUM_COLUMNS = 6
GREEDY = (0,) * NUM_COLUMNS  # of a row whose likeliest tokens are taken: its temperature is 0


@dataclass(frozen=True)
class SamplingRule:
    """What of SamplingParams says how a token is sampled from its logits."""

    temperature: float  # above 0
    seed: int
    top_p: float = 1.0
    top_k: int = 0  # 0 or less: all
    min_p: float = 0.0

    @cached_property
    def told(self) -> list[int]:
        """Its columns, int32."""
        with np.errstate(divide="ignore"):
            floats = np.array([self.temperature, self.top_p, self.min_p], np.float32)
            floats[2] = np.log(floats[2])
        halves = np.array(seed_halves(self.seed), np.uint32).view(np.int32)
        return [*floats.view(np.int32).tolist(), max(min(self.top_k, 2**31 - 1), 0), *halves.tolist()]
