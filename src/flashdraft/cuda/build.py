"""The door of this package: where there is no GPU, nothing else of it is imported, and Triton need not be there."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flashdraft.models.dflash import DFlashModel
from flashdraft.ops.triton import runs_on

if TYPE_CHECKING:
    from flashdraft.cuda.drafter import CudaDrafter


@dataclass(frozen=True)
class RowRules:
    """How the rows of a round sample, on the device: greedy ones among them have temperature 0."""

    told: Tensor  # int32 [rows, 6]: see ops/sampling_rule.py
    first_positions: Tensor  # int64 [rows]: of the tokens behind the anchors

    @property
    def temperatures(self) -> Tensor:
        """Float32 [rows]."""
        return self.told[:, 0].contiguous().view(torch.float32)

    def noise_of(self, token_ids: Tensor) -> Tensor:
        """The noise of tokens [rows, slots, count] behind the anchors, float32."""
        from flashdraft.ops.triton.sampling import noise_of

        return noise_of(token_ids, self.told, self.first_positions)

    def choose(self, logits: Tensor, depths: Tensor) -> Tensor:
        """The tokens [rows * width] of ``logits`` [rows * width, vocab_size].

        ``depths`` [rows, width] or [width]: how far from their anchors the tokens before them are.
        """
        from flashdraft.ops.triton.sampling import sampled_tokens

        positions = self.first_positions.unsqueeze(1) + depths
        return sampled_tokens(logits, self.told, positions.flatten())


@dataclass(frozen=True)
class RoundDrafter:
    """A drafter on a GPU, as rounds want it.

    ``best``: from final hidden states [rows, slots, hidden_size] behind anchors [rows] to the draft, token ids
    [rows, slots] and their log-probabilities; rules: None where all rows take their likeliest tokens. ``branches``: to
    what trees of so many tokens grow of, as ops/triton/trees.Branches has it.
    """

    network: "CudaDrafter"
    best: Callable[[Tensor, Tensor, RowRules | None], tuple[Tensor, Tensor]]
    branches: Callable[[Tensor, Tensor, RowRules | None, int], tuple[Tensor, Tensor, Tensor | None]]


def cuda_drafter(model: nn.Module, num_pages: int, page_size: int, num_rows: int) -> "CudaDrafter | None":
    """A drafter's network on its GPU with caches for ``num_rows`` requests, or None where it has no fast form."""
    if not isinstance(model, DFlashModel) or not runs_on(model.fc.weight.device):
        return None
    from flashdraft.cuda.convolved import MOST_TAPS
    from flashdraft.cuda.drafter import CudaDrafter
    from flashdraft.cuda.layers import why_unsupported

    if why_unsupported(list(model.layers)) or model.config.conv_kernel_size > MOST_TAPS:
        return None
    return CudaDrafter(model, num_pages, page_size, num_rows)
