"""The state of a gated delta layer, with stage and commit.

A forward stages: the states before it stay, and the layer's inputs are kept beside them. ``commit`` replays what was
accepted token by token, which gives the very bits of decoding one token at a time; nothing is copied for each token.
Tokens of trees go down every path from there; the inputs of the accepted path are brought together, and replayed.
What a forward has found behind its last token is taken as it is. A long forward (a prefill chunk) is replayed in the
chunked form that it ran in.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from flashdraft.batch import TreeSlots
from flashdraft.ops.causal_conv import causal_conv
from flashdraft.ops.gated_delta import (
    CHUNK,
    DeltaInputs,
    gated_delta,
    gated_delta_chunked,
    gated_delta_reference,
    gated_delta_trees,
)


class LayerState:
    """One layer's states in slots, one for each sequence."""

    def __init__(self, recurrent: Tensor, conv: Tensor) -> None:
        self.recurrent = recurrent  # [slots, heads, key_dim, value_dim], float32
        self.conv = conv  # [slots, width - 1, channels]: the convolution's last inputs, oldest first
        self._slots: Tensor | None = None  # of the rows of a forward; None: all
        self._conv_inputs = conv[:, :0]
        self._inputs: DeltaInputs | None = None
        self._after: Tensor | None = (
            None  # the states after all that is staged; None: of a tree, there is none
        )
        self._tree: TreeSlots | None = None  # of the tokens of a forward; None: chains
        self._committed: list[int] = []  # staged tokens that are true, by row

    @classmethod
    def zeros(
        cls, slots: int, heads: int, dims: tuple[int, int], conv: tuple[int, int], like: Tensor
    ) -> "LayerState":
        """States of sequences that have not begun; ``dims`` (key, value), ``conv`` (width, channels)."""
        recurrent = torch.zeros(slots, heads, *dims, device=like.device)
        return cls(recurrent, like.new_zeros(slots, conv[0] - 1, conv[1]))

    def use(self, slots: Tensor | None) -> None:
        """The next forwards' rows are the sequences in ``slots``, no two alike; None: in all of them."""
        self._slots = slots

    def follow(self, tree: TreeSlots | None) -> None:
        """The next forward's tokens are ``tree``; None: chains."""
        self._tree = tree

    def copy(self, source: int, slot: int) -> None:
        """Sequence ``slot`` goes on from the state in ``source``."""
        self.recurrent[slot], self.conv[slot] = self.recurrent[source], self.conv[source]

    def clear(self, slot: int) -> None:
        """Sequence ``slot`` has not begun."""
        self.recurrent[slot], self.conv[slot] = 0.0, 0.0

    def stage_conv(self, x: Tensor, weight: Tensor, positions: Tensor) -> Tensor:
        """The convolution of ``x`` [rows, num_tokens, channels] after what is committed."""
        self._conv_inputs = x
        ancestors = self._tree.ancestors(weight.shape[-1]) if self._tree else None
        return causal_conv(x, self._rows_of(self.conv), weight, positions, ancestors)

    def stage_delta(self, inputs: DeltaInputs) -> Tensor:
        """The rule's outputs [rows, num_tokens, heads, value_dim] after what is committed."""
        self._inputs, self._committed = inputs, [0] * len(inputs.v)
        before = self._rows_of(self.recurrent)
        if self._tree:
            self._after = None
            return gated_delta_trees(inputs, before, self._tree.depths, self._tree.ancestors(2)[..., 1])
        outputs, self._after = gated_delta(inputs, before)
        return outputs

    def gather_paths(self, paths: Sequence[Sequence[int]]) -> None:
        """Staged token ``paths[row][k]`` becomes number k of its row; without a path a row stays as it is."""
        assert self._inputs is not None
        device, places = self.conv.device, torch.arange(self._conv_inputs.shape[1]).repeat(len(paths), 1)
        for own, path in zip(places, paths, strict=True):
            own[: len(path)] = torch.tensor(path)
        at = torch.arange(len(paths), device=device).unsqueeze(1), places.to(device)
        self._conv_inputs = self._conv_inputs[at]
        self._inputs = DeltaInputs(*(x[at] for x in self._inputs.tensors))

    def commit(self, counts: Sequence[int]) -> None:
        """Make the next ``counts[i]`` staged tokens of each row true."""
        starts, num_staged = self._committed, self._conv_inputs.shape[1]
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        assert max(ends) <= num_staged, "more is committed than was staged"
        some = [row for row, count in enumerate(counts) if count]
        whole = [row for row in some if ends[row] == num_staged and self._after is not None]
        part = [row for row in some if row not in whole]
        if whole and self._after is not None:
            self.recurrent[self._slots_of(whole)] = self._after[whole]
        if part:
            self._replay(part, [starts[row] for row in part], [counts[row] for row in part])
        self._shift([*whole, *part], starts, counts)
        self._committed = ends

    def _replay(self, rows: list[int], starts: list[int], counts: list[int]) -> None:
        assert self._inputs is not None
        device, slots = self.conv.device, self._slots_of(rows)
        steps = torch.arange(max(counts), device=device)
        tokens = torch.tensor(starts, device=device).unsqueeze(1) + steps
        is_kept = (steps < torch.tensor(counts, device=device).unsqueeze(1)).unsqueeze(-1)
        num_staged = self._conv_inputs.shape[1]
        places = torch.tensor(rows, device=device).unsqueeze(1), tokens.clamp(max=num_staged - 1)
        q, k, v, decay, beta = (x[places] for x in self._inputs.tensors)
        # What is not kept neither fades nor writes: a state times 1, plus 0.
        inputs = DeltaInputs(q, k, v, decay * is_kept, beta * is_kept)
        is_chunked = num_staged > CHUNK and self._after is not None
        form = gated_delta_chunked if is_chunked else gated_delta_reference
        self.recurrent[slots] = form(inputs, self.recurrent[slots])[1]

    def _shift(self, rows: list[int], starts: Sequence[int], counts: Sequence[int]) -> None:
        """The convolution's last inputs: ``conv`` are those before a row's start, then come the staged ones."""
        width, device = self.conv.shape[1], self.conv.device
        slots = self._slots_of(rows)
        history = torch.cat((self.conv[slots], self._conv_inputs[rows]), dim=1)
        ends = torch.tensor([counts[row] for row in rows], device=device).unsqueeze(1)
        skipped = torch.tensor([starts[row] for row in rows], device=device).unsqueeze(1)
        places = ends + torch.arange(width, device=device)
        places = torch.where(places < width, places, places + skipped)
        self.conv[slots] = history.gather(1, places.unsqueeze(-1).expand(-1, -1, history.shape[-1]))

    def _rows_of(self, states: Tensor) -> Tensor:
        return states if self._slots is None else states[self._slots]

    def _slots_of(self, rows: list[int]) -> Tensor:
        places = torch.tensor(rows, dtype=torch.long, device=self.conv.device)
        return places if self._slots is None else self._slots[places]
