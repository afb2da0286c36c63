"""Acceptance length without serving: teacher-forced drafts at every anchor, then the walk that serving takes.

On greedy answers this is what serving would measure (up to floating-point ties), at the price of one training
forward: the next anchor is ``anchor + num_accepted + 1``.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flashdraft.data.loader import PackedRows
from flashdraft.models.base import TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.ops.block_mask import blocks_per_tile
from flashdraft.spec_decode.candidates import candidates_of, likeliest_token
from flashdraft.train.anchors import Blocks, blocks_at
from flashdraft.train.forward import Network, block_hidden, context_entries, target_features


@dataclass
class Walk:
    """The rounds that serving would take."""

    num_tokens: int = 0  # tokens gained after each answer's first
    num_accepted: list[int] = field(default_factory=list)  # by round, delivered ones
    num_right: list[int] = field(
        default_factory=list
    )  # by round, also what an answer's end leaves undelivered

    @property
    def acceptance_length(self) -> float:
        """Tokens gained a round; 1.0 without rounds."""
        return self.num_tokens / len(self.num_accepted) if self.num_accepted else 1.0

    def accepted_by_position(self, block_size: int) -> list[float]:
        """Share of the rounds that accepted the draft token at each place of a block, the first after the anchor on."""
        rounds = max(len(self.num_accepted), 1)
        return [sum(count >= place for count in self.num_accepted) / rounds for place in range(1, block_size)]

    def add(self, other: "Walk") -> None:
        """Take ``other``'s rounds too."""
        self.num_tokens += other.num_tokens
        self.num_accepted += other.num_accepted
        self.num_right += other.num_right


@torch.no_grad()
def accepted_at_anchors(
    target: TargetModel, drafter: Network, rows: PackedRows, block_size: int, blocks_per_forward: int
) -> Tensor:
    """Draft tokens that a block at each anchor gets accepted, int64 [num_rows, seq_len]; -1 where is no anchor."""
    features = target_features(target, rows, drafter.config.target_layer_ids)
    context = context_entries(target, drafter, rows, features)
    accepted = torch.full_like(rows.token_ids, -1)
    # Anchors first, in order; the rest of a row repeats its last place and is marked as not new.
    counts = rows.is_anchor.cumsum(-1)
    most = int(counts.max())
    # A block's logits are a row of the vocabulary for each of its tokens; masks want whole tiles.
    whole = blocks_per_tile(block_size)
    size = min(blocks_per_forward, -(-most // whole) * whole)
    for first in range(0, most, size or 1):
        rank = torch.arange(first, first + size, device=counts.device).expand(len(counts), -1)
        is_valid = rank < counts[:, -1:]
        places = torch.searchsorted(counts, rank.contiguous() + 1).clamp(max=counts.shape[1] - 1)
        blocks = blocks_at(rows, places, is_valid, block_size)
        hidden = block_hidden(target, drafter, rows, features, blocks, context)
        for row, row_hidden in enumerate(hidden):
            valid = is_valid[row]
            accepted[row, places[row, valid]] = _num_accepted(target, drafter, row_hidden, blocks, row)[valid]
    return accepted


def _num_accepted(target: TargetModel, drafter: Network, hidden: Tensor, blocks: Blocks, row: int) -> Tensor:
    """Draft tokens that each block of a row gets accepted, int64 [num_blocks]; ``hidden`` is the row's."""
    labels, hidden = blocks.labels[row], hidden[:, 1:].contiguous()
    if isinstance(drafter, DFlashModel) and drafter.candidate_selector:
        drafted = candidates_of(drafter, target, hidden, labels[:, 0], 1).walk().token_ids.squeeze(-1)
    else:
        drafted = likeliest_token(drafter, target, hidden)
    agrees = (drafted == labels[:, 1:]) & blocks.has_label[row, :, 1:]
    return agrees.long().cumprod(-1).sum(-1)


@torch.no_grad()
def walk_side_by_side(target: TargetModel, drafter: Network, row: PackedRows, block_size: int) -> list[Walk]:
    """The rounds of each document of one row, drafted only where a round starts.

    What :func:`walk` finds in all anchors of the row, for as many times fewer blocks as tokens are gained a round. It
    takes a forward for every round of the longest walk: for a device that small forwards suit.
    """
    features = target_features(target, row, drafter.config.target_layer_ids)
    context = context_entries(target, drafter, row, features)
    runs = list(answers_of(row.is_anchor[0].tolist()))
    walks = [Walk(end - begin) for begin, end in runs]
    at = {index: begin for index, (begin, _) in enumerate(runs)}  # where the next round of each starts
    while at:
        anchors = torch.tensor([list(at.values())], device=row.token_ids.device)
        blocks = blocks_at(row, anchors, torch.ones_like(anchors, dtype=torch.bool), block_size)
        hidden = block_hidden(target, drafter, row, features, blocks, context)
        counts = _num_accepted(target, drafter, hidden[0], blocks, 0).tolist()
        for index, count in zip(list(at), counts, strict=True):
            num_accepted = min(count, runs[index][1] - at[index] - 1)  # as in walk
            walks[index].num_accepted.append(num_accepted)
            walks[index].num_right.append(count)
            at[index] += num_accepted + 1
            if at[index] >= runs[index][1]:
                del at[index]
    return walks


def walk(rows: PackedRows, accepted: Tensor) -> Walk:
    """Take the rounds of serving through every document of ``rows``."""
    result = Walk()
    for anchors, values in zip(rows.is_anchor.tolist(), accepted.tolist(), strict=True):
        for begin, end in answers_of(anchors):
            anchor = begin
            while anchor < end:
                # The last round delivers no more than is left of the answer, one token of it not from the draft.
                num_accepted = min(values[anchor], end - anchor - 1)
                result.num_accepted.append(num_accepted)
                result.num_right.append(values[anchor])
                anchor += num_accepted + 1
            result.num_tokens += end - begin
    return result


def simulate(
    target: TargetModel,
    drafter: Network,
    rows: PackedRows,
    block_size: int,
    rows_per_forward: int,
    blocks_per_forward: int,
) -> Walk:
    """Simulated serving of every document in ``rows``; sizes only bound memory.

    A short last group is filled up with its first row again, so that shapes stay the same.
    """
    total = Walk()
    for first in range(0, len(rows), rows_per_forward):
        index = torch.arange(first, first + rows_per_forward, device=rows.token_ids.device)
        num_real = min(rows_per_forward, len(rows) - first)
        part = rows.rows(torch.where(index < len(rows), index, first))
        accepted = accepted_at_anchors(target, drafter, part, block_size, blocks_per_forward)
        real = PackedRows(*(t[:num_real] for t in (part.token_ids, part.doc_start, part.is_anchor)))
        total.add(walk(real, accepted[:num_real]))
    return total


def answers_of(is_anchor: list[bool]) -> Iterator[tuple[int, int]]:
    """Runs of anchors: (first, one past the last). Documents lie apart, since a last token is no anchor."""
    begin = None
    for place, inside in enumerate([*is_anchor, False]):
        if inside and begin is None:
            begin = place
        elif not inside and begin is not None:
            yield begin, place
            begin = None
