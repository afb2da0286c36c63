"""Perfect drafts: answers that are known already, drafted again. What a round costs then is the engine's alone."""

from collections.abc import Sequence

from torch import Tensor

from flashdraft.spec_decode.drafter import DraftShape
from flashdraft.spec_decode.per_request import PerRequestDrafter
from flashdraft.spec_decode.tree import DraftTree


class ReplayDrafter(PerRequestDrafter):
    """Drafts what ``known`` sequences, each a prompt with its answer, go on with; for other prompts nothing."""

    def __init__(self, max_block_size: int = 16) -> None:
        self.max_block_size = max_block_size
        self.known: Sequence[Sequence[int]] = ()

    def begin(self, max_len: int) -> "ReplayState":  # noqa: ARG002 - the protocol's argument
        """See :class:`PerRequestDrafter`."""
        return ReplayState(self)


class ReplayState:
    """How far one request has come, and along which of the known sequences."""

    def __init__(self, drafter: ReplayDrafter) -> None:
        self._candidates = list(drafter.known)
        self._num_seen = 0

    def observe(self, token_ids: list[int], features: Tensor | None) -> None:  # noqa: ARG002
        """Keep the sequences that went on so."""
        end = self._num_seen + len(token_ids)
        self._candidates = [one for one in self._candidates if list(one[self._num_seen : end]) == token_ids]
        self._num_seen = end

    def propose(self, anchor: int, shape: DraftShape) -> DraftTree:
        """What follows ``anchor`` in the first sequence that has it here."""
        start = self._num_seen
        for one in self._candidates:
            if len(one) > start and one[start] == anchor:
                return DraftTree.chain(list(one[start + 1 : start + 1 + shape.depth]))
        return DraftTree()
