"""What decoding asks of a drafter, for one request or many: DFlash, MTP, n-grams and a user's own behind one door.

A drafter declares what it can do and opens :class:`Drafts`, which know requests by their rows. To write one, subclass
:class:`Drafter`; one that drafts request by request subclasses PerRequestDrafter (per_request.py).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from flashdraft.cache.paged_kv_cache import CacheRow
from flashdraft.cuda.build import RoundDrafter
from flashdraft.sampler import SharedNoise
from flashdraft.spec_decode.tree import DraftTree

_PAGE_SIZE = 16  # of a single request's pages


@dataclass(frozen=True)
class DraftSampling:
    """How the target will sample the tokens that are drafted: a drafter may choose them alike."""

    noise: SharedNoise
    temperature: float  # above 0
    first_position: int  # of the draft's first token


@dataclass(frozen=True)
class DraftShape:
    """What is asked for: a chain of ``depth`` tokens, or a tree of ``size`` tokens, at most ``depth`` deep."""

    depth: int
    size: int | None = None
    sampling: DraftSampling | None = None  # None: the target takes its likeliest tokens


class Drafts(Protocol):
    """What a drafter knows of many requests. ``CacheRow.start`` is how many tokens it has observed of each."""

    def join(self, row: CacheRow, token_ids: list[int], max_len: int) -> None:
        """A request of at most ``max_len`` tokens starts, or starts again.

        ``token_ids``: its prefix that another request observed in the same pages; only with ``shares_prefix``.
        """
        ...

    def leave(self, row: CacheRow) -> None:
        """The request has ended or lost its pages."""
        ...

    def observe(
        self, rows: Sequence[CacheRow], token_ids: Sequence[list[int]], features: Sequence[Tensor | None]
    ) -> None:
        """Take tokens of each row that are now in the target's cache, with their features [num_tokens, feature_size].

        Without ``feature_layers`` the features are None.
        """
        ...

    def propose(
        self, rows: Sequence[CacheRow], anchors: Sequence[int], shapes: Sequence[DraftShape]
    ) -> list[DraftTree]:
        """What may follow ``anchors[i]``, which follows all that was observed: of ``shapes[i]``, or less.

        A draft that comes with the drafter's log-probabilities lets the controller judge it token by token.
        """
        ...


class Drafter(ABC):
    """A method of drafting and what it can do. Holds nothing of any request."""

    feature_layers: tuple[int, ...] = ()  # target layers whose outputs it wants observed; empty: none
    max_block_size: int  # the largest block, anchor included, that it drafts
    can_branch = False  # whether it draws trees
    shares_prefix = True  # whether a request can start from a prefix that another one observed

    @property
    def windows(self) -> Sequence[int]:
        """Tokens that those of its layers see that may have pages of their own; none: all have pages in common."""
        return ()

    @abstractmethod
    def open(
        self, num_rows: int, num_pages: int, page_size: int, num_window_pages: int | None = None
    ) -> Drafts:
        """Room for ``num_rows`` requests at most, in ``num_pages`` pages numbered as the target's.

        ``num_window_pages``: of layers with ``windows`` (cache/window_pages.py); None: they have none of their own.
        """

    def in_rounds(self, drafts: Drafts) -> RoundDrafter | None:  # noqa: ARG002
        """How ``drafts``, which it opened, draft within rounds on a GPU (cache/rounds.py); None: they do not."""
        return None


class OneRequest:
    """A drafter's view of a single request of at most ``max_len`` tokens."""

    def __init__(self, drafter: Drafter, max_len: int) -> None:
        self._pages = range(-(-max_len // _PAGE_SIZE))
        self.drafts = drafter.open(1, len(self._pages), _PAGE_SIZE)
        self.num_observed = 0
        self.drafts.join(self.row, [], max_len)

    @property
    def row(self) -> CacheRow:
        """Where it stands."""
        return CacheRow("one", self._pages, self.num_observed)

    def observe(self, token_ids: list[int], features: Tensor | None) -> None:
        """See :meth:`Drafts.observe`; ``features`` [1, num_tokens, feature_size]."""
        self.drafts.observe([self.row], [token_ids], [None if features is None else features[0]])
        self.num_observed += len(token_ids)

    def propose(self, anchor: int, shape: DraftShape) -> DraftTree:
        """See :meth:`Drafts.propose`."""
        return self.drafts.propose([self.row], [anchor], [shape])[0]
