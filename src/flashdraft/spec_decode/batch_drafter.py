"""What the engine asks of a drafter: the protocol of drafter.py for many requests at once."""

from collections.abc import Hashable, Sequence
from typing import Protocol

from torch import Tensor

from flashdraft.cache.paged_kv_cache import CacheRow
from flashdraft.spec_decode.dflash import DFlashBatch, DFlashDrafter
from flashdraft.spec_decode.drafter import Drafter, DraftState
from flashdraft.spec_decode.mtp import MTPBatch, MTPDrafter
from flashdraft.spec_decode.tree import DraftTree


class BatchDrafter(Protocol):
    """Drafts for many requests in one call. ``CacheRow.start`` is how many tokens it has observed of each."""

    @property
    def shares_prefix(self) -> bool:
        """Whether a request can start from a prefix that another one observed."""
        ...

    def join(self, row: CacheRow, token_ids: list[int], max_len: int) -> None:
        """A request of at most ``max_len`` tokens starts, or starts again; ``token_ids``: its found prefix."""
        ...

    def leave(self, row: CacheRow) -> None:
        """The request has ended or lost its pages."""
        ...

    def observe(
        self, rows: Sequence[CacheRow], token_ids: Sequence[list[int]], features: Sequence[Tensor | None]
    ) -> None:
        """Take verified tokens of each row, with their features [num_tokens, feature_size]."""
        ...

    def propose(
        self, rows: Sequence[CacheRow], anchors: Sequence[int], block_sizes: Sequence[int]
    ) -> list[DraftTree]:
        """Chains of at most ``block_sizes[i] - 1`` tokens to follow ``anchors[i]``."""
        ...


class OneByOne:
    """Any one-request drafter (n-gram) for many requests: a state for each."""

    def __init__(self, drafter: Drafter) -> None:
        self.drafter = drafter
        self.shares_prefix = not drafter.feature_layers
        self._states: dict[Hashable, DraftState] = {}

    def join(self, row: CacheRow, token_ids: list[int], max_len: int) -> None:
        """See :class:`BatchDrafter`."""
        self._states[row.key] = self.drafter.begin(max_len)
        if token_ids:
            self._states[row.key].observe(token_ids, None)

    def leave(self, row: CacheRow) -> None:
        """See :class:`BatchDrafter`."""
        self._states.pop(row.key, None)

    def observe(
        self, rows: Sequence[CacheRow], token_ids: Sequence[list[int]], features: Sequence[Tensor | None]
    ) -> None:
        """See :class:`BatchDrafter`."""
        for row, ids, given in zip(rows, token_ids, features, strict=True):
            self._states[row.key].observe(ids, None if given is None else given.unsqueeze(0))

    def propose(
        self, rows: Sequence[CacheRow], anchors: Sequence[int], block_sizes: Sequence[int]
    ) -> list[DraftTree]:
        """See :class:`BatchDrafter`."""
        asked = zip(rows, anchors, block_sizes, strict=True)
        return [
            DraftTree.chain(self._states[row.key].propose(anchor, size - 1)) for row, anchor, size in asked
        ]


def batch_drafter(drafter: Drafter, num_pages: int, page_size: int, num_rows: int) -> BatchDrafter:
    """The batched form of ``drafter`` for ``num_rows`` requests at most.

    A draft cache gets ``num_pages`` pages, numbered as the target's.
    """
    if isinstance(drafter, DFlashDrafter):
        return DFlashBatch(drafter, num_pages, page_size, num_rows)
    if isinstance(drafter, MTPDrafter):
        return MTPBatch(drafter, num_pages, page_size)
    return OneByOne(drafter)
