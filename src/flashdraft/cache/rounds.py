"""Rounds that the host does not wait for: what it tells of each row, and what it hears a step later."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from flashdraft.cache.paged_kv_cache import CacheRow
from flashdraft.ops.host_copy import Awaited
from flashdraft.ops.sampling_rule import SamplingRule


class RoundRow(NamedTuple):
    """A request's row in a round: a draft behind its anchor, a chain of ``block - 1`` or a tree, and verified."""

    cache_row: CacheRow  # ``start``: the tokens that are committed for certain; no snapshots
    source: (
        int  # its row in the round before, which knows the anchor and where it stands; -1: what is said here
    )
    anchor: int
    num_in_flight: int  # tokens that this round before may have committed beyond ``start``
    block: int  # tokens of its longest path, anchor included
    length: int  # of these, that are accepted at most
    max_len: int  # tokens of prompt and answer, where it ends
    tree_size: int = 0  # tokens of its tree, anchor included; 0: a chain
    sampling: SamplingRule | None = None  # None: the likeliest tokens are taken
    accepted: int | None = None  # drafts accepted, whatever the target says; None: as it says
    # Plain steps of a round of several at most, the same of all rows; ``length`` of them count.
    num_steps: int = 1


class RoundEnd(NamedTuple):
    """How a round ended for one row."""

    path: list[int]  # places of what is accepted, the anchor's 0 first: of a tree token i has place i + 1
    token: int  # behind these: the next anchor; -1: the logits are no numbers
    draft_ids: list[int]
    parents: list[int]  # places that they follow
    log_probs: list[float]  # the drafter's own, of these
    decided: Sequence[int] = ()  # by plain steps before the last, in the order of the answer


class Round(Protocol):
    """A round that runs, or has run."""

    @property
    def features(self) -> Tensor | None:
        """[rows, width, feature_size], where the drafter has not taken them."""
        ...

    @property
    def is_new(self) -> bool:
        """Whether work was prepared for its shape, which takes much longer than a round."""
        ...

    def ends(self) -> list[RoundEnd]:
        """How it ended, for each row; waits for it, but not for what was queued since."""
        ...


class Rounds(Protocol):
    """Starts rounds, one after the other."""

    @property
    def can_draft(self) -> bool:
        """Whether blocks longer than one token run so."""
        ...

    def launch(self, rows: Sequence[RoundRow]) -> Round:
        """Start a round; its longest block says whether all rows draft.

        Then the drafter has observed what they committed, and observes what the round commits.
        """
        ...

    def behind(self, work: Callable[[], Tensor]) -> Awaited:
        """What ``work()`` gives, which is launched behind all rounds so far and before those that follow.

        The host does not wait until it is: a thread of its own runs ``work``, in inference mode, on the caller's
        stream.
        """
        ...

    def settle(self) -> None:
        """Returns when all rounds are launched: what the host launches from then on runs behind them."""
        ...
