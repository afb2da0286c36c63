"""What a backend owns: a target's storage, its rows, and one step over them. Nobody else asks how a step runs."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor

from flashdraft.cache.hybrid_cache import HybridCache
from flashdraft.cache.hybrid_rows import HybridRows
from flashdraft.cache.paged_kv_cache import CacheRow, PagedKVCache, power_of_two
from flashdraft.cache.paged_rows import PagedRows
from flashdraft.cache.rounds import Rounds
from flashdraft.cuda.build import RoundDrafter
from flashdraft.models.base import TargetModel, TargetOutput
from flashdraft.ops.host_copy import told


@dataclass(frozen=True)
class Room:
    """For how much a backend's storage is."""

    num_rows: int  # requests in one step
    num_pages: int
    page_size: int  # tokens
    num_slots: int  # states, of hybrid models
    most_staged: int  # tokens that one row may stage in a step
    block_size: int  # the drafter's largest, 1 without one
    step_tokens: int  # that the blocks of a step have together, or whole blocks where they are timed
    has_trees: bool  # whether blocks may be trees
    num_window_pages: int | None = (
        None  # of layers with windows, where they have their own (cache/window_pages.py)
    )

    @property
    def num_spare(self) -> int:
        """Tokens of spare pages: what a step's rows stage beyond their own, in whole pages."""
        staged = min(self.num_rows * self.most_staged, max(self.step_tokens, self.num_rows * self.block_size))
        return staged + self.num_rows * self.page_size


@dataclass(frozen=True)
class TargetStep:
    """One forward over rows of ``width`` tokens, padding included; or, where ``counts`` says so, without padding."""

    output: TargetOutput  # [rows, width, ...], or [num_tokens, ...]
    width: int = 0
    argmax: Tensor | None = None  # of all slots, where the head ran along
    counts: Sequence[int] | None = None  # tokens of each row, which lie end to end

    def firsts(self, num_rows: int) -> list[int]:
        """The slots where rows begin, counted row by row."""
        if self.counts is None:
            return [*range(0, num_rows * self.width, self.width)]
        return [0, *accumulate(self.counts[:-1])]

    def features_of(self, num_rows: int) -> Sequence[Tensor | None]:
        """Each row's features [num_tokens, feature_size], padding behind them."""
        features = self.output.features
        if features is None:
            return [None] * num_rows
        every = features.unbind() if self.counts is None else torch.split(features, list(self.counts))
        return every[:num_rows]

    def hidden_at(self, slots: list[int]) -> Tensor:
        """Final hidden states of some slots."""
        every = self.output.hidden.flatten(0, -2)
        is_all = len(slots) == len(every) and slots == list(range(len(every)))
        return every if is_all else every.index_select(0, told(slots, every.device))


class Backend(ABC):
    """Runs one target's steps. To add one: a subclass in a file of its own, and its line in registry.py."""

    is_recorded: ClassVar[bool] = False  # whether steps come in few shapes, and are planned so
    is_ragged: ClassVar[bool] = False  # whether rows are computed without padding
    # Tokens that recorded chunks of prompts are padded to, rising.
    chunk_lengths: ClassVar[Sequence[int]] = ()
    cuts_windows: ClassVar[bool] = False  # whether layers with windows may have pages of their own

    def __init__(self, target: TargetModel, room: Room, feature_layers: Sequence[int]) -> None:
        self.target, self.room, self.feature_layers = target, room, feature_layers
        self.cache, self.states = self.new_storage(room)

    @classmethod
    @abstractmethod
    def why_not(cls, target: TargetModel) -> str | None:
        """What keeps ``target`` from running so, or None."""

    @abstractmethod
    def new_storage(self, room: Room) -> tuple[PagedKVCache, Any]:
        """Pages, and states of gated delta layers; empty or None where the target has none."""

    @abstractmethod
    def new_rows(self) -> PagedRows:
        """Rows for its steps; prompts and blocks have their own."""

    @abstractmethod
    def block_step(
        self,
        rows: PagedRows,
        placed: Sequence[CacheRow],
        token_ids: Sequence[list[int]],
        parents: Sequence[Sequence[int]] | None,
        with_head: bool,
    ) -> TargetStep:
        """The target over a block of each row, padded to one width.

        ``parents``: of blocks that are trees (ForwardBatch.as_trees). ``with_head``: whether the choice behind each
        token is wanted. Nothing of it but the features outlasts the next step.
        """

    @abstractmethod
    def prompt_step(
        self, rows: PagedRows, placed: Sequence[CacheRow], token_ids: Sequence[list[int]]
    ) -> TargetStep:
        """The same over a chunk of each row's prompt, of which few choices are wanted."""

    def record_prompts(self, rows: PagedRows) -> None:  # noqa: B027 - most record none
        """Make the recordings of :meth:`prompt_step`, if there are any, in the first pages."""

    def most_tree(self, num_rows: int) -> int:  # noqa: ARG002
        """Tokens of the largest trees that a step of ``num_rows`` verifies."""
        return self.room.most_staged

    @abstractmethod
    def begin(self, rows: PagedRows, slot: int, source: int | None) -> None:
        """A sequence starts with the state in ``slot``: a copy of the one in ``source``, or none."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits, float32 [num_tokens, vocab_size], of final hidden states [num_tokens, hidden_size]."""
        return self.target.logits(hidden)

    def argmax(self, hidden: Tensor) -> Tensor:
        """The likeliest tokens [num_tokens] after final hidden states [num_tokens, hidden_size]; -1: of no numbers."""
        return self.target.argmax(hidden)

    def new_rounds(self, drafter: RoundDrafter | None) -> Rounds | None:  # noqa: ARG002
        """Rounds that the host does not wait for, or None where there are none. ``drafter``: None: of plain steps."""
        return None


def recorded_tokens(num_rows: int, block_size: int, step_tokens: int, has_trees: bool) -> int:
    """Tokens of the largest recorded step, padding included; ``has_trees``: its blocks may be trees.

    Whole blocks, in rows and of widths that are powers of two, or trees of all that a step may verify.
    """
    blocks = power_of_two(num_rows) * power_of_two(block_size)
    return max(blocks, step_tokens) if has_trees else blocks


def paged_storage(target: TargetModel, room: Room, by_layer: bool) -> tuple[PagedKVCache, dict[int, Any]]:
    """Pages for the layers of ``target`` that attend, and the states of the others, as its own cache has them.

    ``by_layer``: see PagedKVCache.
    """
    shown = target.new_cache(room.num_slots, 1)
    states = shown.states if isinstance(shown, HybridCache) else {}
    cache = PagedKVCache(
        target.kv_shapes(),
        room.num_pages,
        room.page_size,
        target.dtype,
        target.device,
        room.num_spare,
        by_layer,
        room.num_window_pages,
    )
    return cache, states


def begin_state(rows: PagedRows, slot: int, source: int | None) -> None:
    """See :meth:`Backend.begin`, of rows that have states beside them."""
    if isinstance(rows, HybridRows):
        rows.begin(slot, source)


def padded(token_ids: Sequence[list[int]], width: int, num_rows: int, device: torch.device) -> Tensor:
    """[num_rows, width], zeros behind each row's tokens and in rows without any."""
    every = [ids + [0] * (width - len(ids)) for ids in token_ids]
    every += [[0] * width] * (num_rows - len(every))
    return torch.tensor(every, device=device)
