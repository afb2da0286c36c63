"""Acceptance by dice instead of by the target: what a drafter of given rates would be worth here. Not lossless.

For studies of cost alone, as SGLang's simulated acceptance length and vLLM's synthetic one: all forwards run as
always, only the number of accepted draft tokens is drawn, so the text means nothing.
"""

import random
from collections.abc import Sequence

from flashdraft.errors import UsageError


class SimulatedAcceptance:
    """Stands in for ``verify``: draft token i is accepted with chance ``rates[i]`` once it is reached.

    The last rate goes on. Raises UsageError for no rates and for a rate outside of 0 to 1.
    """

    def __init__(self, rates: Sequence[float], seed: int = 0) -> None:
        if not rates or not all(0 <= rate <= 1 for rate in rates):
            raise UsageError(f"simulated acceptance rates are {list(rates)}; expected some from 0 to 1")
        self.rates, self.seed = list(rates), seed
        self.restart()

    def restart(self) -> None:
        """Draw from now on what was drawn from the beginning."""
        self._random = random.Random(self.seed)

    @classmethod
    def of_length(cls, length: float, block_size: int, seed: int = 0) -> "SimulatedAcceptance":
        """One rate for all positions, such that whole blocks have this acceptance length. Raises UsageError."""
        if not 1 <= length <= block_size:
            raise UsageError(f"simulated acceptance length is {length:g}; expected 1 to {block_size}")
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (
                (middle, high) if sum(middle**k for k in range(block_size)) < length else (low, middle)
            )
        return cls([low], seed)

    def __call__(self, draft_token_ids: list[int], target_token_ids: list[int]) -> tuple[int, int]:
        """See :func:`flashdraft.spec_decode.verify.verify`."""
        num_accepted = self.draw(len(draft_token_ids))
        return num_accepted, target_token_ids[num_accepted]

    def draw(self, num_drafted: int) -> int:
        """How many of so many draft tokens are accepted."""
        num_accepted = 0
        while num_accepted < num_drafted:
            if self._random.random() >= self.rates[min(num_accepted, len(self.rates) - 1)]:
                break
            num_accepted += 1
        return num_accepted
