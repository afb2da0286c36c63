"""Gated delta layers over prompts: convolution and the rule by chunks, of sequences end to end."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from flashdraft.cache.paged_kv_cache import CacheRow
from flashdraft.cuda.chunk_lengths import CHUNK_LENGTHS, MOST_DELTA_TOKENS
from flashdraft.cuda.states import DeviceStates
from flashdraft.cuda.weights import apart
from flashdraft.ops.gated_delta import (
    DeltaInputs,
    decay_logarithm,
    gated_delta_chunked,
    takes_fla,
    unit_length,
)
from flashdraft.ops.host_copy import told
from flashdraft.ops.recorded import Recorded
from flashdraft.ops.triton.conv_prefill import conv_prefill

_MOST_SEGMENTS = 6  # of a recorded chunk, which run one after the other
_CHUNK = 64  # tokens, of flash-linear-attention


@dataclass(frozen=True)
class DeltaWeights:
    """What a gated delta layer's recurrence needs of it."""

    conv: Tensor  # [channels, width]
    a_log: Tensor  # float32 [heads]
    dt_bias: Tensor  # float32 [heads]
    key_heads: int


@dataclass(frozen=True)
class Segment:
    """Tokens ``begin`` .. ``end`` - 1 of one row's chunk, between borders where its state is to be kept."""

    row: int
    slot: int
    begin: int
    end: int
    snapshots: tuple[int, ...]  # slots that get a copy of the state behind it
    where: Tensor  # int64 [3]: its slot, its number of tokens, and the first slot of a copy or its own again


@dataclass(frozen=True)
class ChunkEnds:
    """Where sequences of ``lengths`` end that lie end to end, as flash-linear-attention wants it told."""

    lengths: Sequence[int]
    ends: Tensor  # int64 [sequences + 1], from 0 on
    chunks: Tensor  # int64 [chunks, 2]: of each 64 tokens, the sequence and the number in it

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "ChunkEnds":
        """Those of ``lengths``."""
        chunks = [[i, at] for i, length in enumerate(lengths) for at in range(-(-length // _CHUNK))]
        ends = told([sum(lengths[:i]) for i in range(len(lengths) + 1)], device)
        return cls(lengths, ends, told(chunks, device))


class Round:
    """Segments of different rows, which run together."""

    def __init__(self, segments: Sequence[Segment], firsts: Sequence[int], device: torch.device) -> None:
        self.segments = segments
        spans = [(firsts[one.row] + one.begin, firsts[one.row] + one.end) for one in segments]
        self.places = told([at for begin, end in spans for at in range(begin, end)], device)
        self.slots = told([one.slot for one in segments], device)
        self.ends = ChunkEnds.of([end - begin for begin, end in spans], device)


class PromptSegments:
    """Chunks of prompts cut where their states are to be kept; one object for all layers of a forward."""

    def __init__(self, rows: Sequence[CacheRow], counts: Sequence[int], device: torch.device) -> None:
        self.counts, self.firsts = counts, [sum(counts[:row]) for row in range(len(counts))]
        self.slots = told([row.slot for row in rows], device)
        rounds: list[list[Segment]] = []
        for idx, (row, count) in enumerate(zip(rows, counts, strict=True)):
            borders = {border - row.start for border, _ in row.snapshots if 0 < border - row.start < count}
            begin = 0
            for number, end in enumerate(sorted({*borders, count})):
                kept = tuple(slot for border, slot in row.snapshots if border == row.start + end)
                if number == len(rounds):
                    rounds.append([])
                assert row.slot is not None
                where = told([row.slot, end - begin, *(kept[:1] or [row.slot])], device)
                rounds[number].append(Segment(idx, row.slot, begin, end, kept, where))
                begin = end
        self._rounds, self._device = rounds, device
        self.segments = [segment for segments in rounds for segment in segments]
        self.is_recorded = (
            sum(counts) <= (MOST_DELTA_TOKENS if len(counts) == 1 else CHUNK_LENGTHS[-1])
            and len(self.segments) <= _MOST_SEGMENTS
            and all(len(segment.snapshots) <= 1 for segment in self.segments)
        )
        lengths = told(counts, device)
        self.starts = lengths.cumsum(0) - lengths
        self.row_of = torch.repeat_interleave(
            torch.arange(len(counts), device=device), lengths, output_size=sum(counts)
        )

    @cached_property
    def rounds(self) -> list[Round]:
        """Its segments, those together that may run together."""
        return [Round(segments, self.firsts, self._device) for segments in self._rounds]


def prefill_delta(
    states: DeviceStates, layer: int, projected: Tensor, prompts: PromptSegments, weights: DeltaWeights
) -> Tensor:
    """Outputs [num_tokens, heads, value_dim] of ``projected`` [num_tokens, qkv | z | b | a], row after row.

    Writes the rows' states and copies of them at their snapshots.
    """
    qkv, _, b, a = states.parts(projected)
    conv = states.conv[layer]
    mixed = conv_prefill(qkv, weights.conv, conv, prompts.slots, prompts.starts, prompts.row_of)
    out = torch.empty(
        len(projected), states.heads, states.recurrent.shape[-1], dtype=qkv.dtype, device=qkv.device
    )
    before = conv.index_select(0, prompts.slots)  # [rows, width - 1, channels]
    is_whole = len(prompts.rounds) == 1
    for part in prompts.rounds:
        where = slice(None) if is_whole else part.places
        states_before = states.recurrent[layer].index_select(0, part.slots)
        said, after = _rule(mixed[where], a[where], b[where], states_before, part.ends, weights)
        if is_whole:
            out = said
        else:
            out[where] = said
        states.recurrent[layer].index_copy_(0, part.slots, after)
        for one, state in zip(part.segments, after, strict=True):
            first = prompts.firsts[one.row]
            history = torch.cat((before[one.row], qkv[first : first + one.end][-before.shape[1] :]))
            kept = history[-before.shape[1] :]
            conv[one.slot] = kept
            for slot in one.snapshots:
                states.recurrent[layer, slot], conv[slot] = state, kept
    return out


class RecordedPrompt:
    """Prompts' chunks through gated delta layers, recorded: launching takes the host longer than they run.

    Segments run one after the other, each padded to one of few lengths; padding neither decays nor changes a state. All
    recordings read and write the same tensors, for each has addresses of its own otherwise.
    """

    def __init__(self, states: DeviceStates) -> None:
        self.states = states
        self._recorded = Recorded(states.recurrent.device)
        most, device = MOST_DELTA_TOKENS, states.recurrent.device
        self._projected = states.staged.new_zeros(most, states.staged.shape[-1])
        self._out = states.staged.new_zeros(most, states.heads, states.recurrent.shape[-1])
        self._where = torch.zeros(3, dtype=torch.int64, device=device)  # see Segment
        self._told: Segment | None = None  # of which it tells
        self._lengths: dict[int, ChunkEnds] = {}

    def __call__(
        self, layer: int, projected: Tensor, prompts: "PromptSegments", weights: DeltaWeights
    ) -> Tensor:
        """As :func:`prefill_delta`, of few segments."""
        out = self._out.new_empty(len(projected), *self._out.shape[1:])
        for segment in prompts.segments:
            first, count = prompts.firsts[segment.row] + segment.begin, segment.end - segment.begin
            length, own = _padded_length(count), slice(first, first + count)
            self._projected[:count] = projected[own]
            if self._told is not segment:  # all layers of a forward have the same
                self._where.copy_(segment.where)
                self._told = segment
            if length not in self._lengths:
                self._lengths[length] = ChunkEnds.of([length], self._where.device)

            def work(length: int = length) -> None:
                self._run(layer, length, weights)

            self._recorded((layer, length), work, ())
            out[own] = self._out[:count]
        return out

    def _run(self, layer: int, length: int, weights: DeltaWeights) -> None:
        states, slots, count, copies = self.states, self._where[:1], self._where[1], self._where[2:]
        qkv, _, b, a = states.parts(self._projected[:length])
        conv, recurrent = states.conv[layer], states.recurrent[layer]
        first = torch.zeros_like(slots)
        mixed = conv_prefill(qkv, weights.conv, conv, slots, first, first.expand(length).contiguous())
        is_true = torch.arange(length, device=slots.device) < count
        # A copy of its own: fla keeps what it makes of a tensor for the next call with it, and here that is recorded.
        ends = replace(self._lengths[length], ends=self._lengths[length].ends.clone())
        out, after = _rule(mixed, a, b, recurrent.index_select(0, slots), ends, weights, is_true)
        self._out[:length] = out
        history = torch.cat((conv.index_select(0, slots)[0], qkv))
        num_kept = conv.shape[1]
        kept = history.index_select(0, count + torch.arange(num_kept, device=slots.device)).unsqueeze(0)
        for where in (slots, copies):
            recurrent.index_copy_(0, where, after)
            conv.index_copy_(0, where, kept)


def _padded_length(count: int) -> int:
    """Tokens that a recorded chunk of ``count`` is padded to."""
    step = 128 if count <= 1024 else 256
    return -(-count // step) * step


def _rule(
    mixed: Tensor,
    a: Tensor,
    b: Tensor,
    before: Tensor,
    ends: ChunkEnds,
    weights: DeltaWeights,
    is_true: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs [num_tokens, heads, value_dim] and the states after each of the sequences that lie end to end.

    ``is_true`` [num_tokens]: whether a token is one, and not padding.
    """
    heads, key_dim = before.shape[1:3]
    key_size = weights.key_heads * key_dim
    q, k, v = torch.split(mixed, [key_size, key_size, mixed.shape[-1] - 2 * key_size], dim=-1)
    q, k = (apart(x, 1, (weights.key_heads, key_dim)).unsqueeze(0) for x in (q, k))
    v = apart(v, 1, (heads, -1)).unsqueeze(0)
    decay = decay_logarithm(a, weights.a_log, weights.dt_bias).unsqueeze(0)
    beta = b.float().sigmoid().unsqueeze(0)
    if is_true is not None:
        decay, beta = (torch.where(is_true.unsqueeze(-1), x, 0.0) for x in (decay, beta))
    if takes_fla(mixed.dtype, mixed.device):
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule

        out, after = chunk_gated_delta_rule(
            q.contiguous(), k.contiguous(), v.contiguous(), decay, beta, initial_state=before,
            output_final_state=True, use_qk_l2norm_in_kernel=True, cu_seqlens=ends.ends, chunk_indices=ends.chunks,
        )  # fmt: skip
        return out[0], after
    groups = heads // weights.key_heads
    q, k = (unit_length(x.float()).repeat_interleave(groups, dim=2) for x in (q, k))
    inputs = DeltaInputs(q * key_dim**-0.5, k, v.float(), decay, beta)
    outs, afters, done = [], [], 0
    for length, state in zip(ends.lengths, before, strict=True):
        chunk = inputs.part(slice(None), slice(done, done + length))
        out, after = gated_delta_chunked(chunk, state.unsqueeze(0))
        outs.append(out[0])
        afters.append(after)
        done += length
    return torch.cat(outs).to(mixed.dtype), torch.cat(afters)
