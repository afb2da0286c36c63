"""What DFlash 2 adds to the drafter network: neighbours in a block that agree (PyPI dflash 0.1.0, speculators 0.9.0).

Two parts, each of them optional: a short convolution around attention and MLP of every layer, and a selector that
scores the likeliest tokens of a slot by the token chosen before it. Neither knows how a draft is walked or sampled.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BlockConv(nn.Module):
    """A causal convolution along a block's slots, whose kernels are its base and what it makes of the input.

    Channel c of slot i has the kernel ``base[side, tap, c] + projected[i, side, tap, c // group_size]``. Side 0 is put
    on what a sublayer reads, side 1 on what it writes. Slots before the block count as zeros.
    """

    def __init__(self, hidden_size: int, num_taps: int, group_size: int) -> None:
        super().__init__()
        self.num_taps, self.group_size, self.num_groups = num_taps, group_size, hidden_size // group_size
        self.base_kernel = nn.Parameter(torch.zeros(2, num_taps, hidden_size))
        self.kernel_projection = nn.Linear(hidden_size, 2 * num_taps * self.num_groups, bias=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """The identity, to the bit."""
        self.base_kernel.zero_()
        self.base_kernel[:, 0] = 1
        self.kernel_projection.weight.zero_()

    def kernels(self, x: Tensor, block_size: int | None) -> Tensor:
        """[batch, blocks, block_size, 2, taps, groups, 1] of ``x`` [batch, blocks * block_size, hidden_size].

        ``block_size`` None: a row is one block.
        """
        made: Tensor = self.kernel_projection(x)
        return made.view(len(x), -1, block_size or x.shape[1], 2, self.num_taps, self.num_groups, 1)

    def forward(self, y: Tensor, kernels: Tensor, side: int) -> Tensor:
        """[batch, num_tokens, hidden_size] -> the same, by the :meth:`kernels` of the sublayer's normed input."""
        slots = y.view(*kernels.shape[:3], self.num_groups, self.group_size)
        base = self.base_kernel[side].view(self.num_taps, self.num_groups, self.group_size)
        out = torch.zeros_like(slots)
        for tap in range(self.num_taps):
            before = F.pad(slots, (0, 0, 0, 0, tap, 0))[:, :, : slots.shape[2]]
            out = out + (base[tap] + kernels[:, :, :, side, tap]) * before
        return out.view_as(y)


class CandidateSelector(nn.Module):
    """Scores of a slot's candidates by the token before it: ``<A[before] * W h, B[candidate]>``.

    The codebooks A and B have a row for each token of the target's vocabulary. With ``projects_head`` they are two
    projections of the target's head, which says what a token is like: a hundredth of the weights, and what is learned
    of one token holds for those like it. It scores nothing before it is trained.
    """

    def __init__(self, hidden_size: int, vocab_size: int, rank: int, projects_head: bool = False) -> None:
        super().__init__()
        self.projects_head = projects_head
        if projects_head:
            self.predecessor_projection = nn.Parameter(torch.zeros(rank, hidden_size))
            self.successor_projection = nn.Parameter(torch.zeros(rank, hidden_size))
        else:
            self.predecessor_codebook = nn.Parameter(torch.zeros(vocab_size, rank))
            self.successor_codebook = nn.Parameter(torch.zeros(vocab_size, rank))
        self.hidden_projection = nn.Linear(hidden_size, rank, bias=False)
        self.frozen: tuple[Tensor, Tensor, Tensor] | None = (
            None  # A, B and W, once they do not change any more
        )

    @torch.no_grad()
    def begin_as(self, other: "CandidateSelector") -> None:
        """Take the values of ``other``, of this one's kind and no higher rank; ranks that it lacks add nothing."""
        for name, mine in self.named_parameters():
            along = 0 if name.endswith(("_projection", "weight")) else 1
            theirs = other.get_parameter(name)
            if name.startswith("successor"):
                mine.zero_()
            mine.narrow(along, 0, theirs.shape[along]).copy_(theirs)

    def codebooks(self, head: Tensor) -> tuple[Tensor, Tensor]:
        """A and B, [vocab_size, rank] both, beside the target's ``head`` [vocab_size, hidden_size]."""
        if not self.projects_head:
            return self.predecessor_codebook, self.successor_codebook
        return head @ self.predecessor_projection.T, head @ self.successor_projection.T

    def freeze(self, head: Tensor) -> None:
        """Keep the codebooks: the weights do not change any more. On a CPU as float32, quicker there for a few rows."""
        with torch.no_grad():
            made = *self.codebooks(head), self.hidden_projection.weight
            first, last, projection = (one.float() if one.device.type == "cpu" else one for one in made)
            self.frozen = first, last, projection

    def forward(self, hidden: Tensor, before: Tensor, candidates: Tensor, head: Tensor) -> Tensor:
        """float32 [..., num_before, num_candidates] of ``hidden`` [..., hidden_size].

        ``before`` [..., num_before] and ``candidates`` [..., num_candidates] are token ids, ``head`` the target's.
        """
        if self.frozen:
            first, last, projection = self.frozen
            predecessors, successors = F.embedding(before, first), F.embedding(candidates, last)
        else:
            projection = self.hidden_projection.weight
            predecessors, successors = self._rows(before, candidates, head)
        wanted = F.linear(hidden.to(projection.dtype), projection).unsqueeze(-2)
        scores: Tensor = (predecessors * wanted) @ successors.mT
        return scores.float()

    def on_head(self, hidden: Tensor, before: Tensor, head: Tensor) -> Tensor:
        """What a candidate's row of ``head`` is multiplied by to its score, [n, hidden_size]: of projections alone.

        ``<A[before] * W h, P row>`` is ``<P^T (A[before] * W h), row>``: no codebook is made of the vocabulary, and
        none is differentiated. ``hidden`` [n, hidden_size], ``before`` [n].
        """
        predecessors = F.embedding(before, head) @ self.predecessor_projection.T
        wanted = F.linear(hidden.to(predecessors.dtype), self.hidden_projection.weight)
        by_row: Tensor = (predecessors * wanted) @ self.successor_projection
        return by_row

    def _rows(self, before: Tensor, candidates: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the codebooks. Of projections no others are made where few are asked for."""
        if not self.projects_head:
            return F.embedding(before, self.predecessor_codebook), F.embedding(
                candidates, self.successor_codebook
            )
        return tuple(  # type: ignore[return-value]
            F.embedding(ids, head) @ projection.T
            if ids.numel() < len(head)
            else F.embedding(ids, head @ projection.T)
            for ids, projection in (
                (before, self.predecessor_projection),
                (candidates, self.successor_projection),
            )
        )
