"""Copies of the target's embedding and head in a drafter's file: compared with the target's rows, then left out.

speculators wrote them into every DFlash checkpoint before its release 0.8, and some trainers still do. A drafter uses
the target's own, so a copy is of no use, and rows that differ would mean that it was made for another target.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from flashdraft.checkpoint.weights import WeightSource
from flashdraft.errors import CheckpointError, IncompatibleDrafterError
from flashdraft.models.dflash_config import DFlashConfig

_EMBEDDING, _HEAD, _NORM = "embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_COPIES = {_EMBEDDING: _EMBEDDING, "verifier_lm_head.weight": _HEAD, "verifier_norm.weight": _NORM}
_PIECE = 16384  # rows compared at a time

TargetRows = Callable[[str], Tensor]  # the target's tensor whose name ends so


def rows_by_name(names: Iterable[str], read: Callable[[str], Tensor]) -> TargetRows:
    """The rows of a target whose tensors are called ``names``. A head that is not there is tied to the embedding."""
    known = sorted(names)

    def rows(ending: str) -> Tensor:
        endings = (ending, _EMBEDDING) if ending == _HEAD else (ending, ending.removeprefix("model."))
        found = (name for one in endings for name in known if name.endswith(one) and ".layers." not in name)
        return read(next(found))

    return rows


class WithoutCopies:
    """``source`` less the copies (see :class:`flashdraft.checkpoint.weights.WeightSource`)."""

    def __init__(self, source: WeightSource, config: DFlashConfig) -> None:
        self.label, self._source = source.label, source
        names = _COPIES if config.draft_vocab_size is not None else _COPIES | {_HEAD: _HEAD}
        self.copies = {name: whose for name, whose in names.items() if name in source.shapes}
        self.shapes = {name: shape for name, shape in source.shapes.items() if name not in self.copies}

    def read(self, name: str) -> Tensor:
        """One tensor of the drafter's own."""
        return self._source.read(name)

    def compare(self, rows: TargetRows | None) -> None:
        """Raise IncompatibleDrafterError where a copy is not the target's, CheckpointError where none is given."""
        if not self.copies:
            return
        if rows is None:
            raise CheckpointError(
                f"drafter {self.label} brings copies of its target's tensors along ({', '.join(self.copies)}), which"
                " are left out once they were compared; expected the target beside it: give it too"
            )
        for name, whose in self.copies.items():
            copy, theirs = self._source.read(name), rows(whose)
            if copy.shape[1:] != theirs.shape[1:] or (wrong := _num_different(copy, theirs)):
                raise IncompatibleDrafterError(
                    f"drafter {self.label} has a {name} of its own, {list(copy.shape)}, of which"
                    f" {wrong if copy.shape[1:] == theirs.shape[1:] else len(copy)} rows differ from the target's"
                    f" {list(theirs.shape)}; expected a copy: give the target that it was made for"
                )


def _num_different(copy: Tensor, theirs: Tensor) -> int:
    """Rows that differ, in the coarser of both types; what one of them is padded by does not count."""
    count, wrong = min(len(copy), len(theirs)), 0
    for first in range(0, count, _PIECE):
        ours, others = (
            copy[first : min(first + _PIECE, count)],
            theirs[first : min(first + _PIECE, count)].cpu(),
        )
        same = (ours.to(others.dtype) == others) | (ours == others.to(ours.dtype))
        wrong += int((~same.flatten(1).all(1) if same.dim() > 1 else ~same).sum())
    return wrong


class FittedTables:
    """``source`` with its table t2d cut or padded to the target's ``vocab_size``, of which a drafter may be padded."""

    def __init__(self, source: WeightSource, vocab_size: int) -> None:
        self.label, self._source, self._vocab_size = source.label, source, vocab_size
        self.shapes = dict(source.shapes)
        if "t2d" in self.shapes:
            self.shapes["t2d"] = (vocab_size,)

    def read(self, name: str) -> Tensor:
        """One tensor."""
        tensor = self._source.read(name)
        if name != "t2d":
            return tensor
        missing = max(self._vocab_size - len(tensor), 0)
        return torch.nn.functional.pad(tensor[: self._vocab_size], (0, missing))
