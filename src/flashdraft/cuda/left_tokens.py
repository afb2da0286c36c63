"""Tokens of blocks that a round leaves to the round that follows: its gated delta layers read a state once for both.

A round prepares its tokens in as many places as there are layers and one more, and takes them in turn: layer i writes
where the round before had layer i - 1, which has been committed by then. So what is left needs no room of its own.
Where a sequence begins, and before steps of any other kind, DeviceStates.settle commits all that is left at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flashdraft.ops.host_copy import told

# Of a round, padding included. Of one row a commit of all layers at once takes 2 us a layer, and as long in each step.
MANY_ROWS = 16


@dataclass(frozen=True)
class Blocks:
    """Where the blocks of a step are prepared, and what is left to commit before them."""

    firsts: Tensor  # int64 [layers, rows]: the first token of each row's block among all that are kept
    left: tuple[Tensor, Tensor] | None = (
        None  # the same of what is left, and how many of each row, int64 [rows]
    )

    def left_of(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Of one layer's."""
        return None if self.left is None else (self.left[0][layer], self.left[1])


@dataclass(frozen=True)
class _Round:
    """A round of blocks, which has left their tokens."""

    slots: Sequence[int]  # its rows' states, padding included
    width: int
    turn: int


class LeftTokens:
    """What the last round of blocks has left to commit: the host knows of whom, the device how many."""

    def __init__(self, num_layers: int, most_kept: int, spare: int, device: torch.device) -> None:
        """``most_kept``: tokens of a round, of one layer; ``spare``: the slot of padding."""
        self.num_layers, self.most_kept, self.spare = num_layers, most_kept, spare
        # Of each row of the round; behind them none, of rows that it had not.
        self._counts = torch.zeros(most_kept + 1, dtype=torch.int64, device=device)
        self._last: _Round | None = None
        self._turn = 0

    def are_of(self, slots: Sequence[int]) -> bool:
        """Whether nothing is left of other sequences than those in ``slots``."""
        return self._last is None or set(self._last.slots) <= {*slots, self.spare}

    def told(self, slots: Sequence[int], width: int) -> Tensor:
        """What the next round of blocks is told, int64 [2 * layers + 1, rows], on the host: see :meth:`blocks`."""
        last = self._last or _Round((), 0, 0)
        places = {slot: place for place, slot in enumerate(last.slots) if slot != self.spare}
        before = np.array([places.get(slot, self.most_kept) for slot in slots])
        left = np.where(before < self.most_kept, before * last.width, 0)
        own = np.arange(len(slots)) * width
        every = [self._layers(self._next_turn) + own, self._layers(last.turn) + left, before[None]]
        return torch.from_numpy(np.concatenate(every))

    def blocks(self, told: Tensor) -> Blocks:
        """Of a round that was ``told`` so."""
        firsts, left, (before,) = torch.split(told, [self.num_layers, self.num_layers, 1])
        return Blocks(firsts, (left, self._counts[before]))

    def leave(self, counts: Tensor) -> None:
        """The round has ended, and its rows' first ``counts`` [rows] tokens are true."""
        self._counts[: len(counts)] = counts

    def launched(self, slots: Sequence[int], width: int) -> None:
        """A round that was told so has started."""
        self._turn = self._next_turn
        self._last = _Round(slots, width, self._turn)

    def taken(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """What is left, and from now on is not: firsts [layers, rows], slots and counts [rows]; None: nothing.

        Counts are to be zeros as soon as they were used.
        """
        last, self._last = self._last, None
        if last is None:
            return None
        firsts = self._layers(last.turn) + np.arange(len(last.slots)) * last.width
        device = self._counts.device
        return told(firsts, device), told(last.slots, device), self._counts[: len(last.slots)]

    @property
    def _next_turn(self) -> int:
        return (self._turn - 1) % (self.num_layers + 1)

    def _layers(self, turn: int) -> NDArray[np.int64]:
        """Where the layers' tokens begin, [layers, 1]."""
        return (np.arange(self.num_layers)[:, None] + turn) % (self.num_layers + 1) * self.most_kept
