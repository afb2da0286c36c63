"""Whether a loaded target computes numbers: weights with NaN in them would answer token 0 for ever."""

import torch

from flashdraft.batch import ForwardBatch
from flashdraft.errors import CheckpointError
from flashdraft.models.base import TargetModel

_ROWS = 4096  # of the embedding, looked at together


@torch.inference_mode()
def check_finite(target: TargetModel, name: str) -> None:
    """Raise CheckpointError for an embedding, or logits after one token, that hold NaN or infinity."""
    vocab_size = int(target.config.vocab_size)
    for start in range(0, vocab_size, _ROWS):
        ids = torch.arange(start, min(start + _ROWS, vocab_size), device=target.device)
        _refuse_unless(bool(target.embed(ids).isfinite().all()), name, "its embedding")
    output = target.forward(ForwardBatch.of_row([0], 0, target.device), target.new_cache(1, 1))
    _refuse_unless(bool(target.logits(output.hidden).isfinite().all()), name, "what it computes from a token")


def _refuse_unless(is_finite: bool, name: str, what: str) -> None:
    if not is_finite:
        raise CheckpointError(
            f"{name} is no model to answer with: {what} holds NaN or infinity; expected numbers. Fetch its weights"
            " again, or take a checkpoint from before its training went wrong"
        )
