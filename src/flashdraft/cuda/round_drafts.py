"""The drafts of a round, chains or trees: what the target is told of them, which part it takes, what the host hears."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashdraft.cache.rounds import RoundEnd
from flashdraft.ops.triton.rounds import ACCEPTED, MAX_LEN, Begun, chains_ended
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

    def ended(
        self, wanted: Tensor, rows: Begun, kept_starts: Tensor, kept_anchors: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        """Of each row how many tokens are true, int64 [rows], what the host is told of it, and no path.

        ``wanted`` [rows, width]: the target's choices. See ops/triton/rounds.chains_ended.
        """
        kept = kept_starts, kept_anchors
        return *chains_ended(self.token_ids, self.log_probs, wanted, rows, *kept), None

    @staticmethod
    def ends(told: Tensor, blocks: Sequence[int]) -> list[RoundEnd]:
        """What :meth:`ended` told, of rows with ``blocks`` tokens."""
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

    def ended(
        self, wanted: Tensor, rows: Begun, kept_starts: Tensor, kept_anchors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As of chains, and the path of each [rows, block]."""
        accepted, following, path = self.followed(wanted, rows.most, rows.columns[ACCEPTED])
        counts = torch.where(rows.columns[MAX_LEN] > 0, accepted + 1, 0)  # nothing of padding
        kept_starts[: len(counts)] = rows.starts + counts
        kept_anchors[: len(counts)] = following.clamp(min=0)  # a row whose logits are no numbers ends
        return counts, self._told(counts, following, path), path

    def followed(self, wanted: Tensor, most: Tensor, given: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG002
        """Drafts accepted, the target's own token behind them, int64 [rows] both, and the path of each [rows, block].

        See ops/triton/trees.followed. ``most`` [rows]: how many may be accepted; none is ``given``.
        """
        path, accepted, following = followed(self.trees, wanted, most, self.block)
        return accepted, following, path

    def _told(self, counts: Tensor, following: Tensor, path: Tensor) -> Tensor:
        """Int32 [rows, 3 * width]: tokens committed, the next anchor, the last place; of drafts ids, parents, bits."""
        last = path.gather(1, (counts - 1).clamp(min=0).unsqueeze(1))
        ended = torch.cat((torch.stack((counts, following), 1), last), 1)
        bits = self.trees.log_probs[:, 1:].view(torch.int32)
        return torch.cat([ended.int(), self.token_ids[:, 1:].int(), self.trees.parents[:, 1:], bits], 1)

    @staticmethod
    def ends(told: Tensor, blocks: Sequence[int]) -> list[RoundEnd]:
        """What :meth:`ended` told, of as many rows as there are ``blocks``."""
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
