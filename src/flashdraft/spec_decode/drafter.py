"""What the decoding loop asks of a drafter. DFlash, n-gram and every later method stand behind this."""

from typing import Protocol

from torch import Tensor


class DraftState(Protocol):
    """What a drafter knows of one request."""

    def observe(self, token_ids: list[int], features: Tensor | None) -> None:
        """Take tokens that are now in the target's cache, with their features [1, num_tokens, feature_size]."""
        ...

    def propose(self, anchor: int, num_draft: int) -> list[int]:
        """Draft at most ``num_draft`` tokens to follow ``anchor``, which follows everything observed."""
        ...


class Drafter(Protocol):
    """A method of drafting; holds nothing of any request."""

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """Target layers whose outputs it wants observed; empty: none."""
        ...

    @property
    def max_block_size(self) -> int:
        """The largest block, anchor included, that it drafts."""
        ...

    def begin(self, max_len: int) -> DraftState:
        """A fresh state for a request of at most ``max_len`` tokens."""
        ...
