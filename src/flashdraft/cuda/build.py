"""The door of this package: where there is no GPU, nothing else of it is imported, and Triton need not be there."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from flashdraft.models.dflash import DFlashModel
from flashdraft.ops.triton import runs_on

if TYPE_CHECKING:
    from flashdraft.cuda.drafter import CudaDrafter


@dataclass(frozen=True)
class RoundDrafter:
    """A drafter on a GPU, as rounds want it.

    ``best``: from final hidden states [rows, slots, hidden_size] behind anchors [rows] to the draft, token ids
    [rows, slots] and their log-probabilities.
    """

    network: "CudaDrafter"
    best: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def cuda_drafter(model: nn.Module, num_pages: int, page_size: int, num_rows: int) -> "CudaDrafter | None":
    """A drafter's network on its GPU with caches for ``num_rows`` requests, or None where it has no fast form."""
    if not isinstance(model, DFlashModel) or not runs_on(model.fc.weight.device):
        return None
    from flashdraft.cuda.drafter import CudaDrafter
    from flashdraft.cuda.layers import why_unsupported

    return None if why_unsupported(list(model.layers)) else CudaDrafter(model, num_pages, page_size, num_rows)
