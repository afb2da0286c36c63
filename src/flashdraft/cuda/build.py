"""The door of this package: where there is no GPU, nothing else of it is imported, and Triton need not be there."""

from typing import TYPE_CHECKING

from torch import nn

from flashdraft.models.base import TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.ops.triton import runs_on

if TYPE_CHECKING:
    from flashdraft.cuda.drafter import CudaDrafter
    from flashdraft.cuda.target import CudaTarget


def cuda_target(model: TargetModel) -> "CudaTarget | None":
    """The fast form of ``model`` on its GPU, or None where it has none; its weights are laid out anew."""
    if not runs_on(model.device):
        return None
    from flashdraft.cuda.target import CudaTarget, why_not

    return None if why_not(model) else CudaTarget(model)


def cuda_drafter(model: nn.Module, num_pages: int, page_size: int, num_rows: int) -> "CudaDrafter | None":
    """The fast form of a drafter's network, as :func:`cuda_target`, with its caches for ``num_rows`` requests."""
    if not isinstance(model, DFlashModel) or not runs_on(model.fc.weight.device):
        return None
    from flashdraft.cuda.drafter import CudaDrafter
    from flashdraft.cuda.layers import why_unsupported

    return None if why_unsupported(list(model.layers)) else CudaDrafter(model, num_pages, page_size, num_rows)
