"""Which blocks are trained on in one step, and which of their slots the loss is computed for."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flashdraft.data.loader import PackedRows


@dataclass(frozen=True)
class Blocks:
    """Blocks drawn from packed rows. Slot k of a block stands for the token at ``anchor + k``."""

    anchors: Tensor  # [num_rows, num_blocks], ascending
    doc_start: Tensor  # [num_rows, num_blocks]
    labels: Tensor  # [num_rows, num_blocks, block_size], the tokens that stand there
    has_label: Tensor  # bool, the same shape: slot >= 1, within the answer, and not a repeated block

    def rows(self, part: slice) -> "Blocks":
        """Those of some of the rows."""
        return Blocks(self.anchors[part], self.doc_start[part], self.labels[part], self.has_label[part])


def sample_anchors(is_anchor: Tensor, num_blocks: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw ``num_blocks`` anchors a row, one from each of as many equal strata of its valid places.

    ``is_anchor`` bool [num_rows, seq_len]. Returns ascending anchors and whether each is new, both
    [num_rows, num_blocks]; a row with fewer valid places repeats some, and repeats are not new. Drawn anew every
    epoch (paper, table 13: random anchors against fixed ones, 5.64 against 4.94).
    """
    counts = is_anchor.cumsum(-1)  # [num_rows, seq_len]
    total = counts[:, -1:].clamp(min=1)
    offsets = torch.rand(len(is_anchor), num_blocks, generator=generator, device=is_anchor.device)
    strata = torch.arange(num_blocks, device=is_anchor.device) + offsets
    rank = (strata * (total / num_blocks)).long().minimum(total - 1)
    anchors = torch.searchsorted(counts, rank + 1).clamp(max=is_anchor.shape[1] - 1)
    is_new = is_anchor.gather(1, anchors)
    is_new[:, 1:] &= anchors[:, 1:] != anchors[:, :-1]
    return anchors, is_new


def draw_blocks(rows: PackedRows, num_blocks: int, block_size: int, generator: torch.Generator) -> Blocks:
    """Draw blocks with their labels from ``rows``."""
    anchors, is_new = sample_anchors(rows.is_anchor, num_blocks, generator)
    return blocks_at(rows, anchors, is_new, block_size)


def blocks_at(rows: PackedRows, anchors: Tensor, is_valid: Tensor, block_size: int) -> Blocks:
    """The blocks that start at ``anchors`` [num_rows, num_blocks]."""
    seq_len = rows.token_ids.shape[1]
    places = anchors.unsqueeze(-1) + torch.arange(block_size, device=anchors.device)
    inside = places < seq_len
    flat = places.clamp(max=seq_len - 1).flatten(1)
    labels = rows.token_ids.gather(1, flat).view_as(places)
    doc_start = rows.doc_start.gather(1, anchors)
    # An anchor is an answer's token that has another one behind it: that one is a label, if the block reaches it.
    continues = rows.is_anchor.gather(1, (flat - 1).clamp(min=0)).view_as(places)
    continues[:, :, 0] = True
    has_label = inside & continues.long().cumprod(-1).bool() & is_valid.unsqueeze(-1)
    has_label[:, :, 0] = False
    return Blocks(anchors, doc_start, labels, has_label)


def sample_slots(weights: Tensor, num_slots: int, generator: torch.Generator) -> Tensor:
    """Draw ``num_slots`` indices of ``weights`` [n] (not negative), each in proportion to its weight.

    Systematic sampling: equally spaced points on the cumulated weights, so an index is drawn
    floor or ceil of ``num_slots * weight / sum`` times. The plain mean of the loss over the drawn slots then
    estimates the weighted mean over all of them without bias, at a fraction of the head's cost.
    """
    cumulated = weights.double().cumsum(0)
    offset = torch.rand(1, generator=generator, device=weights.device, dtype=torch.float64)
    points = torch.arange(num_slots, device=weights.device, dtype=torch.float64) + offset
    drawn = torch.searchsorted(cumulated, points * (cumulated[-1] / num_slots), right=True)
    return drawn.clamp(max=len(weights) - 1)
