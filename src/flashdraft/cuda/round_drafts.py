"""The drafts of a round, chains or trees: what the target is told of them, which part it takes, what the host hears."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashdraft.cache.rounds import RoundEnd
from flashdraft.ops.triton.trees import Trees, followed


@dataclass(frozen=True)
class ChainDraft:
    """A chain of each row."""

    token_ids: Tensor  # int64 [rows, width], the anchor first
    log_probs: Tensor  # float32 [rows, width - 1]
    tree: tuple[()] = ()  # what CudaTarget.forward is told of a tree

    @property
    def depths(self) -> Tensor:
        """Int64 [width]: of each token from the anchor."""
        return torch.arange(self.token_ids.shape[1], device=self.token_ids.device)

    def followed(self, wanted: Tensor, most: Tensor, given: Tensor) -> tuple[Tensor, Tensor, None]:
        """Of each row the number of drafts accepted, and the target's own token behind them, int64 [rows] both.

        ``wanted`` [rows, width]: its choices; ``most`` [rows]: how many may be accepted; ``given`` [rows]: how many
        are, whatever it says, or -1.
        """
        same = (self.token_ids[:, 1:] == wanted[:, :-1]).long().cumprod(1).sum(1)
        accepted = torch.minimum(torch.where(given < 0, same, given), most)
        return accepted, wanted.gather(1, accepted.unsqueeze(1)).squeeze(1), None

    def told(self, counts: Tensor, following: Tensor, path: Tensor | None) -> Tensor:  # noqa: ARG002
        """Int32 [rows, 2 * width]: tokens committed, the next anchor, drafts, bits of their log-probabilities."""
        ended = torch.stack((counts, following), 1)
        return torch.cat([ended.int(), self.token_ids[:, 1:].int(), self.log_probs.view(torch.int32)], 1)

    @staticmethod
    def ends(told: Tensor, blocks: Sequence[int]) -> list[RoundEnd]:
        """What :meth:`told` told, of rows with ``blocks`` tokens."""
        numbers, num_drafted = told.tolist(), told.shape[1] // 2 - 1
        log_probs = told[:, 2 + num_drafted :].view(torch.float32).tolist()
        found = []
        for (count, following, *drafts), values, block in zip(numbers, log_probs, blocks, strict=False):
            own = min(block - 1, num_drafted)
            found.append(RoundEnd([*range(count)], following, drafts[:own], [*range(own)], values[:own]))
        return found


@dataclass(frozen=True)
class TreeDraft:
    """A tree of each row, or chains as trees of one path."""

    trees: Trees
    block: int  # tokens of the longest path, anchor included

    @property
    def token_ids(self) -> Tensor:
        """Int64 [rows, width], the anchor first."""
        return self.trees.token_ids

    @property
    def depths(self) -> Tensor:
        """Int64 [rows, width]: of each token from the anchor."""
        return self.trees.depths

    @property
    def tree(self) -> tuple[Tensor, Tensor]:
        """What CudaTarget.forward is told of it."""
        return self.trees.depths, self.trees.paths

    def followed(self, wanted: Tensor, most: Tensor, given: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG002
        """As of chains, and the path of each [rows, block]: see ops/triton/trees.followed. None is ``given``."""
        path, accepted, following = followed(self.trees, wanted, most, self.block)
        return accepted, following, path

    def told(self, counts: Tensor, following: Tensor, path: Tensor | None) -> Tensor:
        """Int32 [rows, 3 * width]: tokens committed, the next anchor, the last place; of drafts ids, parents, bits."""
        assert path is not None
        last = path.gather(1, (counts - 1).clamp(min=0).unsqueeze(1))
        ended = torch.cat((torch.stack((counts, following), 1), last), 1)
        bits = self.trees.log_probs[:, 1:].view(torch.int32)
        return torch.cat([ended.int(), self.token_ids[:, 1:].int(), self.trees.parents[:, 1:], bits], 1)

    @staticmethod
    def ends(told: Tensor, blocks: Sequence[int]) -> list[RoundEnd]:
        """What :meth:`told` told, of as many rows as there are ``blocks``."""
        num_drafted, found = told.shape[1] // 3 - 1, []
        log_probs = told[:, 3 + 2 * num_drafted :].view(torch.float32).tolist()
        for (_, following, last, *rest), values, _block in zip(
            told.tolist(), log_probs, blocks, strict=False
        ):
            parents = [parent for parent in rest[num_drafted : 2 * num_drafted] if parent >= 0]
            path = [last]
            while path[0]:
                path.insert(0, parents[path[0] - 1])
            found.append(RoundEnd(path, following, rest[: len(parents)], parents, values[: len(parents)]))
        return found


Draft = ChainDraft | TreeDraft


def plain_ends(told: Tensor, blocks: Sequence[int]) -> list[RoundEnd]:
    """What several plain steps told, int32 [rows, 1 + steps]: how many of a row count, and their tokens."""
    said, nothing = told[: len(blocks), 1:], list[Any]()
    counts = told[: len(blocks), 0]
    is_none = (said < 0) & (torch.arange(said.shape[1]) < counts.unsqueeze(1))
    last = torch.where(is_none.any(1), is_none.int().argmax(1), counts - 1)
    return [
        RoundEnd([0], tokens[at], nothing, nothing, nothing, tokens[:at])
        for tokens, at in zip(said.tolist(), last.tolist(), strict=True)
    ]
