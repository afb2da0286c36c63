"""A drafter's draft vocabulary in its folder: the few tokens that it drafts among (FR-Spec, arXiv 2502.14856).

A draft is computed through as many rows of the target's head. Which tokens they are is written as speculators does it:
``draft_vocab_size`` in config.json, the tables ``d2t`` and ``t2d`` among the weights. The rows themselves are not
stored: ``borrows_head`` says that they are the target's. Other engines do not know that, so a folder for them has all
of the target's vocabulary again, or a copy of the rows.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashdraft.checkpoint.embedded import EMBEDDED, embedded_drafter
from flashdraft.checkpoint.hub import locate
from flashdraft.checkpoint.save import check_is_new, read_notes, write_folder
from flashdraft.checkpoint.target_copies import TargetRows
from flashdraft.checkpoint.weights import WeightSource
from flashdraft.checkpoint.zlab import open_drafter, read_drafter
from flashdraft.errors import UsageError
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.dflash_config import DFlashConfig

_TABLES = ("d2t", "t2d")
PIECE = 64  # tokens: kernels compute a head in pieces, here and elsewhere


def check_size(size: int, vocab_size: int) -> None:
    """Raise UsageError for a draft vocabulary that cannot be had of ``vocab_size`` tokens."""
    if size % PIECE or not 0 < size < vocab_size:
        raise UsageError(
            f"the draft vocabulary's size is {size}; expected a multiple of {PIECE} below {vocab_size}, the target's"
        )


def give_vocabulary(
    source: str | Path,
    token_ids: Sequence[int],
    out: Path,
    target_config: Any,
    rows: TargetRows | None = None,
) -> None:
    """Write the DFlash drafter ``source`` to the new folder ``out``, to draft among ``token_ids``, else as it is.

    ``rows``: the target's, which copies of them in the file are compared with. Raises UsageError for a drafter with a
    head of its own, for a size that :func:`check_size` refuses and for a folder that is not empty, CheckpointError for
    a drafter that cannot be read, IncompatibleDrafterError for one of another target.
    """
    check_is_new(out)
    folder = embedded_drafter() if source == EMBEDDED else locate(source)
    drafter = read_drafter(folder, target_config, torch.bfloat16, torch.device("cpu"), rows)
    if drafter.lm_head is not None:
        raise UsageError(
            f"drafter {source} has a head of its own over {len(drafter.d2t)} tokens; expected one that drafts through"
            " the target's head"
        )
    chosen = torch.tensor(sorted(set(token_ids)))
    check_size(len(chosen), drafter.config.vocab_size)
    config = replace(drafter.config, draft_vocab_size=len(chosen), borrows_head=True)
    kept = torch.zeros(config.vocab_size, dtype=torch.bool).index_fill(0, chosen, True)
    tensors = {
        **_network(open_drafter(folder, drafter.config, rows)),
        "d2t": chosen - torch.arange(len(chosen)),
        "t2d": kept,
    }
    write_folder(out, config.to_dict(), tensors, None, read_notes(folder))


def without_borrowing(
    drafter: DFlashModel, own: WeightSource, head: Tensor | None
) -> tuple[DFlashConfig, dict[str, Tensor]]:
    """Config and tensors of ``drafter``, stored as ``own`` tells, which borrows its rows, for readers that cannot.

    With the target's ``head`` [vocab_size, hidden_size] its rows become a head of its own; without, it drafts among all
    tokens, as it was trained.
    """
    tensors = _network(own)
    if head is None:
        return replace(drafter.config, draft_vocab_size=None, borrows_head=False), tensors
    rows = drafter.head_rows(head).to("cpu", next(iter(tensors.values())).dtype)
    tables = {name: drafter.state_dict()[name] for name in _TABLES}
    return replace(drafter.config, borrows_head=False), {**tensors, "lm_head.weight": rows, **tables}


def _network(source: WeightSource) -> dict[str, Tensor]:
    """The stored tensors but for the tables."""
    return {name: source.read(name) for name in source.shapes if name not in _TABLES}
