"""Drafters that draft request by request, as n-grams do: a state for each."""

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from typing import Protocol

from torch import Tensor

from flashdraft.cache.paged_kv_cache import CacheRow
from flashdraft.spec_decode.drafter import Drafter, DraftShape
from flashdraft.spec_decode.tree import DraftTree


class DraftState(Protocol):
    """What a drafter knows of one request."""

    def observe(self, token_ids: list[int], features: Tensor | None) -> None:
        """Take tokens that are now in the target's cache, with their features [1, num_tokens, feature_size]."""
        ...

    def propose(self, anchor: int, shape: DraftShape) -> DraftTree:
        """Draft what may follow ``anchor``, which follows everything observed: of ``shape``, or less."""
        ...


class PerRequestDrafter(Drafter):
    """A drafter whose requests do not know of each other.

    With ``feature_layers`` it shares no prefix: the features of a found prefix are not computed again.
    """

    @property
    def shares_prefix(self) -> bool:  # type: ignore[override]
        """See :class:`flashdraft.spec_decode.drafter.Drafter`."""
        return not self.feature_layers

    @abstractmethod
    def begin(self, max_len: int) -> DraftState:
        """A fresh state for a request of at most ``max_len`` tokens."""

    def open(self, *_room: int | None) -> "OneByOne":
        """See :class:`flashdraft.spec_decode.drafter.Drafter`."""
        return OneByOne(self)


class OneByOne:
    """A state for each request."""

    def __init__(self, drafter: PerRequestDrafter) -> None:
        self.drafter = drafter
        self._states: dict[Hashable, DraftState] = {}

    def join(self, row: CacheRow, token_ids: list[int], max_len: int) -> None:
        """See :class:`flashdraft.spec_decode.drafter.Drafts`."""
        self._states[row.key] = self.drafter.begin(max_len)
        if token_ids:
            self._states[row.key].observe(token_ids, None)

    def leave(self, row: CacheRow) -> None:
        """See :class:`flashdraft.spec_decode.drafter.Drafts`."""
        self._states.pop(row.key, None)

    def observe(
        self, rows: Sequence[CacheRow], token_ids: Sequence[list[int]], features: Sequence[Tensor | None]
    ) -> None:
        """See :class:`flashdraft.spec_decode.drafter.Drafts`."""
        for row, ids, given in zip(rows, token_ids, features, strict=True):
            self._states[row.key].observe(ids, None if given is None else given.unsqueeze(0))

    def propose(
        self, rows: Sequence[CacheRow], anchors: Sequence[int], shapes: Sequence[DraftShape]
    ) -> list[DraftTree]:
        """See :class:`flashdraft.spec_decode.drafter.Drafts`."""
        asked = zip(rows, anchors, shapes, strict=True)
        return [self._states[row.key].propose(anchor, shape) for row, anchor, shape in asked]
