"""Whose blocks a step serves, where several clients ask and each block makes the step longer for all.

Max-min fairness in rows of a step: beyond the tokens that cost little, no client has more rows than the one that asks
for the fewest, and prompts come in short chunks while anybody decodes. So whoever asks for one answer has it in about
twice the time that it takes alone, whatever a second client asks for. A client's own answers take turns, those that
have said least first. One client alone has all of a step.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from flashdraft.engine.request import Request

_TURN_TOKENS = 16  # that an answer grows by before another of its client has the turn
_PROMPT_TOKENS = 32  # of a step in which anybody decodes
_LATELY = 16  # steps for which a client that has left is counted: it may come back at once


class FairSteps:
    """Picks the rows of each step. ``free_tokens``: of a step's blocks that anybody may fill, as they cost little."""

    def __init__(self, free_tokens: int) -> None:
        self.free_tokens = free_tokens
        self._num_steps = 0
        self._lately: dict[
            str | None, tuple[int, int]
        ] = {}  # by client: its last step, and its requests then

    @property
    def is_shared(self) -> bool:
        """Whether several clients ask."""
        return len(self._lately) > 1

    @property
    def prompt_tokens(self) -> int:
        """Of prompts in a step, where several clients ask and anybody decodes."""
        return max(_PROMPT_TOKENS, 2 * self.free_tokens)

    def pick(self, decoding: Sequence[Request], others: Iterable[Request]) -> list[Request]:
        """Those of ``decoding`` whose blocks run now, in their order; ``others`` do not decode yet."""
        self._num_steps += 1
        counts = Counter(request.client for request in (*decoding, *others))
        self._lately |= {client: (self._num_steps, num) for client, num in counts.items()}
        oldest = self._num_steps - _LATELY
        self._lately = {client: seen for client, seen in self._lately.items() if seen[0] > oldest}
        if not self.is_shared:
            return list(decoding)
        fewest = min(num for _, num in self._lately.values())
        served: Counter[str | None] = Counter()
        picked, rest = set(), []
        for request in sorted(decoding, key=lambda request: request.num_said // _TURN_TOKENS):
            served[request.client] += 1
            if served[request.client] <= fewest:
                picked.add(request)
            else:
                rest.append(request)
        room = self.free_tokens - sum(request.block_size for request in picked)
        for request in rest:
            room -= request.block_size
            if room >= 0:
                picked.add(request)
        return [request for request in decoding if request in picked]
