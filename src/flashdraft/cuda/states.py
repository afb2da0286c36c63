"""States of gated delta layers on a GPU: one tensor for all layers, with stage and commit.

A step stages: it keeps each layer's inputs and reads the states. A step of one token a row writes them as well, for
its token is decided; a prompt's tokens are, too. A wider block keeps what its tokens bring to the recurrence, beside
its inputs, and ``commit`` replays the accepted ones from there, all layers in one launch, by the arithmetic of the
step; of a tree, those on the accepted path. (SGLang's ReplaySSM; states of every token would be sixteen times as many.)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from flashdraft.cache.paged_kv_cache import CacheRow
from flashdraft.cuda.weights import apart
from flashdraft.models.qwen3_5 import GatedDeltaNet
from flashdraft.ops.host_copy import told
from flashdraft.ops.triton.delta_inputs import num_scalars
from flashdraft.ops.triton.gated_delta import conv_commit, gated_delta_commit


class DeviceStates:
    """States of all gated delta layers in slots, one for each sequence, and a last one that padding may write to."""

    def __init__(
        self, layers: Sequence[GatedDeltaNet], num_slots: int, most_tokens: int, most_kept: int
    ) -> None:
        """For steps of ``most_tokens`` tokens, padding included, of wider blocks ``most_kept``."""
        one = layers[0]
        count, weight = len(layers), one.conv1d.weight
        taps, channels = one.conv_shape
        device = weight.device
        self.spare = num_slots
        self.recurrent = torch.zeros(
            count, num_slots + 1, one.heads, one.key_dim, one.value_dim, device=device
        )
        self.conv = weight.new_zeros(count, num_slots + 1, taps - 1, channels)
        self.channels, self.heads, self.z_size = channels, one.heads, one.sizes[2]
        # What a step keeps of its tokens: [qkv | z | b | a], as the layers' projections give it.
        self.staged = weight.new_zeros(count, most_tokens, channels + self.z_size + 2 * one.heads)
        # What tokens of wider blocks bring to the recurrence: nothing is kept of single ones.
        self.most_kept, scalars = most_kept, num_scalars(one.key_heads, one.heads)
        self.convolved = weight.new_zeros(count, most_kept, channels)
        self.scalars = torch.zeros(count, most_kept, scalars, device=device)
        self._one_token = torch.zeros(2, most_tokens, dtype=torch.int64, device=device)
        self._one_token[1] = 1
        self._shape = (0, 0)  # rows and width of what is staged
        self._is_written = True  # the step has written the states

    @property
    def nbytes(self) -> int:
        """Bytes of the states and of what a step keeps of its tokens."""
        kept = self.staged.nbytes + self.convolved.nbytes + self.scalars.nbytes
        return self.recurrent.nbytes + self.conv.nbytes + kept

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
            first, count = self._one_token[:, : len(slots)]
            conv_commit(self._staged_qkv(shape), self.conv, slots, first, count)

    def _staged_qkv(self, shape: tuple[int, int]) -> Tensor:
        return apart(self.staged[:, : shape[0] * shape[1], : self.channels], 1, shape)

    def prepared(self, layers: int | slice, num_rows: int, width: int) -> tuple[Tensor, Tensor]:
        """Where a block's tokens are prepared: ``convolved``, ``scalars`` [..., num_rows, width, size]."""
        convolved, scalars = (
            apart(kept[layers, ..., : num_rows * width, :], -2, (num_rows, width))
            for kept in (self.convolved, self.scalars)
        )
        return convolved, scalars

    def parts(self, staged: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``staged`` [..., channels + z + 2 heads] taken apart: qkv, z, b, a."""
        sizes = [self.channels, self.z_size, self.heads, self.heads]
        qkv, z, b, a = torch.split(staged, sizes, dim=-1)
        return qkv, z, b, a

    def commit(self, rows: Sequence[CacheRow], paths: Sequence[Sequence[int]]) -> None:
        """Make the staged tokens at ``paths[i]`` true in each row; a snapshot is left at each border that it passes."""
        counts, done, path = [len(own) for own in paths], [0] * len(rows), None
        if any(own[-1] != len(own) - 1 for own in paths):
            padding = [[0] * max(counts)] * (self._shape[0] - len(rows))
            padded = [[*own, *[0] * (max(counts) - len(own))] for own in paths]
            path = told([*padded, *padding], self.recurrent.device)
        if self._is_written:
            assert all(count == 1 for count in counts), "a plain step's token is true"
        while done != list(counts):
            ends = []
            for row, start, count in zip(rows, done, counts, strict=True):
                ahead = [border - row.start for border, _ in row.snapshots if border > row.start + start]
                ends.append(min([count, *ahead]))
            self._commit(rows, done, [end - start for start, end in zip(done, ends, strict=True)], path)
            for row, start, end in zip(rows, done, ends, strict=True):
                for border, slot in row.snapshots:
                    if start < end and border == row.start + end:
                        self.begin(slot, self.slot_of(row))
            done = ends

    def commit_counts(self, slots: Tensor, counts: Tensor, width: int, path: Tensor | None) -> None:
        """Make the first ``counts`` [rows] tokens true of a block in ``slots`` [rows]; the device alone knows them.

        ``path`` [rows, path_len]: they are those of a tree at these places; None: of chains.
        """
        self._replay(slots, torch.zeros_like(counts), counts, (len(slots), width), path)

    def _commit(
        self, rows: Sequence[CacheRow], starts: Sequence[int], counts: Sequence[int], path: Tensor | None
    ) -> None:
        if self._is_written:
            return
        padding = [0] * (self._shape[0] - len(counts))
        own = [self.slot_of(row) for row in rows] + [self.spare] * len(padding)
        slots, first, count = told([own, [*starts, *padding], [*counts, *padding]], self.recurrent.device)
        self._replay(slots, first, count, self._shape, path)

    def _replay(
        self, slots: Tensor, starts: Tensor, counts: Tensor, shape: tuple[int, int], path: Tensor | None
    ) -> None:
        prepared = self.prepared(slice(None), *shape)
        gated_delta_commit(*prepared, self.recurrent, slots, starts, counts, path)
        conv_commit(self._staged_qkv(shape), self.conv, slots, starts, counts, path)
