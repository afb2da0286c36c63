"""What one forward pass runs over: token ids and where they stand. It knows no request and no sampling."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class TreeSlots:
    """Where the tokens of trees lie in the cache: side by side, so that several have one position."""

    slots: Tensor  # [batch, num_tokens], the root's first, ascending without gaps
    paths: Tensor  # [batch, num_tokens, depth], slots from the root down to the token; its own fills the rest

    def mask(self, kv_len: int) -> Tensor:
        """Bool [batch, num_tokens, kv_len]: a token sees all before its root, and its own path."""
        keys = torch.arange(kv_len, device=self.slots.device)
        before = (keys < self.slots[:, :1, None]).expand(-1, self.slots.shape[1], -1)
        return before.scatter(-1, self.paths, torch.ones_like(self.paths, dtype=torch.bool))

    def key_positions(self, positions: Tensor, kv_len: int) -> Tensor:
        """The position of what lies in each slot, [batch, 1, kv_len]; ``positions`` are the tokens'."""
        keys = torch.arange(kv_len, device=self.slots.device).repeat(len(self.slots), 1)
        return keys.scatter(-1, self.slots, positions).unsqueeze(1)

    @cached_property
    def depths(self) -> Tensor:
        """Of each token from its root, [batch, num_tokens]."""
        return (self.paths < self.slots.unsqueeze(-1)).sum(-1)

    def ancestors(self, count: int) -> Tensor:
        """Places in the row of a token, of its parent and so on up its path, [batch, num_tokens, count].

        What stands before the root is counted from there: -1, -2 and so on.
        """
        depths = self.depths.unsqueeze(-1) - torch.arange(count, device=self.slots.device)
        places = self.paths.gather(-1, depths.clamp(min=0)) - self.slots[:, :1, None]
        return torch.where(depths < 0, depths, places)


@dataclass(frozen=True)
class ForwardBatch:
    """Tokens of one forward pass, one row for each sequence.

    ``ends`` [batch], on a CPU: the slot behind each row's last token, where padding begins; None: nobody says.
    ``kv_len`` is an upper bound of ``slots + 1`` kept on the host, so that no step waits for the device.
    """

    token_ids: Tensor  # [batch, num_tokens]
    positions: Tensor  # [batch, num_tokens], absolute, ascending within a row unless there is a tree
    kv_len: int
    tree: TreeSlots | None = None  # None: every token lies in the slot of its position and sees all before it
    ends: Tensor | None = None

    @property
    def slots(self) -> Tensor:
        """[batch, num_tokens]: where the cache takes the tokens' keys and values."""
        return self.positions if self.tree is None else self.tree.slots

    @classmethod
    def of_row(
        cls,
        token_ids: list[int],
        start: int,
        device: torch.device | str = "cpu",
        parents: Sequence[int] | None = None,
    ) -> "ForwardBatch":
        """One sequence's tokens at positions ``start, start + 1, ...``: a prefill chunk or a block.

        ``parents``: of a block that is a tree, as in :meth:`as_trees`.
        """
        end = start + len(token_ids)
        ids = torch.tensor([token_ids], dtype=torch.long, device=device)
        batch = cls(ids, torch.arange(start, end, device=device).unsqueeze(0), end)
        return batch if parents is None else batch.as_trees([parents])

    def as_trees(self, parents: Sequence[Sequence[int]]) -> "ForwardBatch":
        """The same tokens in the same slots as trees, one a row; itself where all are chains.

        ``parents[row]`` gives, for each token after the first, the place in the row of the one that it follows, an
        earlier one. What a row has beyond them is padding, taken as one more child of the root.
        """
        width = self.token_ids.shape[1]
        if all(list(row) == list(range(len(row))) for row in parents):
            return self
        every = [_paths(row, width) for row in parents]
        depth = max(len(path) for row in every for path in row)
        padded = [[path + path[-1:] * (depth - len(path)) for path in row] for row in every]
        root = self.positions[:, :1]
        depths = [[len(path) - 1 for path in row] for row in every]
        device = root.device
        tree = TreeSlots(self.positions, root.unsqueeze(-1) + torch.tensor(padded, device=device))
        return replace(self, positions=root + torch.tensor(depths, device=device), tree=tree)


def _paths(parents: Sequence[int], width: int) -> list[list[int]]:
    """For each of ``width`` places of a row the places from the root down to it."""
    paths = [[0]]
    for place in range(1, width):
        parent = parents[place - 1] if place <= len(parents) else 0
        paths.append([*paths[parent], place])
    return paths
