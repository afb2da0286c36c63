"""The state of a gated delta layer, with stage and commit.

A forward stages: the state before it stays, and the layer's inputs are kept beside it. ``commit`` replays the
accepted prefix token by token, which gives the very bits of decoding one token at a time; nothing is copied for
each token. Only the whole of a long forward (a prefill chunk) takes the state that the chunked form has found.
"""

import torch
from torch import Tensor

from flashdraft.ops.causal_conv import causal_conv
from flashdraft.ops.gated_delta import DeltaInputs, gated_delta, gated_delta_reference


class LayerState:
    """One layer's states, one row for each sequence."""

    def __init__(self, recurrent: Tensor, conv: Tensor) -> None:
        self.recurrent = recurrent  # [rows, heads, key_dim, value_dim], float32
        self.conv = conv  # [rows, width - 1, channels]: the convolution's last inputs, oldest first
        self._conv_inputs = conv[:, :0]
        self._inputs: DeltaInputs | None = None
        self._after: Tensor | None = None  # the state after all that is staged
        self._committed = [0] * len(conv)  # staged tokens that are true, by row

    @classmethod
    def zeros(
        cls, rows: int, heads: int, dims: tuple[int, int], conv: tuple[int, int], like: Tensor
    ) -> "LayerState":
        """States of sequences that have not begun; ``dims`` (key, value), ``conv`` (width, channels)."""
        recurrent = torch.zeros(rows, heads, *dims, device=like.device)
        return cls(recurrent, like.new_zeros(rows, conv[0] - 1, conv[1]))

    def stage_conv(self, x: Tensor, weight: Tensor, positions: Tensor) -> Tensor:
        """The convolution of ``x`` [rows, num_tokens, channels] after what is committed."""
        self._conv_inputs = x
        return causal_conv(x, self.conv, weight, positions)

    def stage_delta(self, inputs: DeltaInputs) -> Tensor:
        """The rule's outputs [rows, num_tokens, heads, value_dim] after what is committed."""
        outputs, self._after = gated_delta(inputs, self.recurrent)
        self._inputs, self._committed = inputs, [0] * len(self.conv)
        return outputs

    def commit(self, num_tokens: int, row: int) -> None:
        """Make the next ``num_tokens`` staged tokens of ``row`` true."""
        if not num_tokens:
            return
        assert self._inputs is not None
        assert self._after is not None
        start, end = self._committed[row], self._committed[row] + num_tokens
        staged_len = self._conv_inputs.shape[1]
        assert end <= staged_len, "more is committed than was staged"
        one = slice(row, row + 1)
        if (start, end) == (0, staged_len):
            self.recurrent[row] = self._after[row]
        else:
            inputs = self._inputs.part(one, slice(start, end))
            self.recurrent[one] = gated_delta_reference(inputs, self.recurrent[one])[1]
        history = torch.cat((self.conv[row], self._conv_inputs[row, start:end]))
        self.conv[row] = history[num_tokens:]
        self._committed[row] = end
