"""States of gated delta layers on a GPU: one tensor for all layers, with stage and commit.

A step stages: it keeps each layer's inputs and reads the states. A step of one token a row writes them as well, for
its token is decided; a prompt's tokens are, too. Of wider blocks ``commit`` replays the accepted tokens, all layers in
one launch, by the arithmetic of the step. (SGLang's ReplaySSM; states of every token would be sixteen times as many.)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from flashdraft.cache.paged_kv_cache import CacheRow
from flashdraft.cuda.weights import apart, told
from flashdraft.models.qwen3_5 import GatedDeltaNet
from flashdraft.ops.triton.gated_delta import conv_commit, gated_delta_commit


class DeviceStates:
    """States of all gated delta layers in slots, one for each sequence, and a last one that padding may write to."""

    def __init__(self, layers: Sequence[GatedDeltaNet], num_slots: int, most_tokens: int) -> None:
        one = layers[0]
        count, weight = len(layers), one.conv1d.weight
        width, channels = one.conv_shape
        device = weight.device
        self.spare = num_slots
        self.recurrent = torch.zeros(
            count, num_slots + 1, one.heads, one.key_dim, one.value_dim, device=device
        )
        self.conv = weight.new_zeros(count, num_slots + 1, width - 1, channels)
        self.conv_weight = torch.stack([layer.conv1d.weight.squeeze(1) for layer in layers])
        self.a_log = torch.stack([layer.A_log for layer in layers]).float()
        self.dt_bias = torch.stack([layer.dt_bias for layer in layers]).float()
        self.channels, self.heads, self.z_size = channels, one.heads, one.sizes[2]
        # What a step keeps of its tokens: [qkv | z | b | a], as the layers' projections give it.
        self.staged = weight.new_zeros(count, most_tokens, channels + self.z_size + 2 * one.heads)
        self._shape = (0, 0)  # rows and width of what is staged
        self._is_written = True  # the step has written the states

    @property
    def nbytes(self) -> int:
        """Bytes of the states and of what a step stages."""
        return self.recurrent.nbytes + self.conv.nbytes + self.staged.nbytes

    def slot_of(self, row: CacheRow) -> int:
        """Where a row's states are; of one without any, the spare slot."""
        return self.spare if row.slot is None else row.slot

    def begin(self, slot: int, source: int | None) -> None:
        """A sequence starts in ``slot``: from a copy of the state in ``source``, or from none."""
        for states in (self.recurrent, self.conv):
            if source is None:
                states[:, slot] = 0.0
            else:
                states[:, slot] = states[:, source]

    def stage(self, num_rows: int, width: int) -> None:
        """The next step runs ``width`` tokens of each of ``num_rows`` rows, padding included."""
        self._shape, self._is_written = (num_rows, width), width == 1

    def after_step(self, slots: Tensor, shape: tuple[int, int]) -> None:
        """The end of a recorded step of ``shape`` (rows, width) in ``slots`` [rows]: plain steps' tokens are true."""
        if shape[1] == 1:
            one = torch.ones_like(slots)
            conv_commit(self._staged_qkv(shape), self.conv, slots, one - 1, one)

    def _staged_qkv(self, shape: tuple[int, int]) -> Tensor:
        return apart(self.staged[:, : shape[0] * shape[1], : self.channels], 1, shape)

    def parts(self, staged: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``staged`` [..., channels + z + 2 heads] taken apart: qkv, z, b, a."""
        sizes = [self.channels, self.z_size, self.heads, self.heads]
        qkv, z, b, a = torch.split(staged, sizes, dim=-1)
        return qkv, z, b, a

    def commit(self, rows: Sequence[CacheRow], counts: Sequence[int]) -> None:
        """Make the first ``counts[i]`` staged tokens of each row true; a snapshot is left at each border it passes."""
        done = [0] * len(rows)
        if self._is_written:
            assert all(count == 1 for count in counts), "a plain step's token is true"
        while done != list(counts):
            ends = []
            for row, start, count in zip(rows, done, counts, strict=True):
                ahead = [border - row.start for border, _ in row.snapshots if border > row.start + start]
                ends.append(min([count, *ahead]))
            self._commit(rows, done, [end - start for start, end in zip(done, ends, strict=True)])
            for row, start, end in zip(rows, done, ends, strict=True):
                for border, slot in row.snapshots:
                    if start < end and border == row.start + end:
                        self.begin(slot, self.slot_of(row))
            done = ends

    def _commit(self, rows: Sequence[CacheRow], starts: Sequence[int], counts: Sequence[int]) -> None:
        if self._is_written:
            return
        num_rows, width = self._shape
        padding = [0] * (num_rows - len(counts))
        own = [self.slot_of(row) for row in rows] + [self.spare] * len(padding)
        slots, first, count = told([own, [*starts, *padding], [*counts, *padding]], self.recurrent.device)
        qkv, _, b, a = self.parts(apart(self.staged[:, : num_rows * width], 1, (num_rows, width)))
        gated_delta_commit(
            qkv,
            a,
            b,
            self.conv_weight,
            self.a_log,
            self.dt_bias,
            self.conv,
            self.recurrent,
            slots,
            first,
            count,
        )
        conv_commit(qkv, self.conv, slots, first, count)
