"""What stands between a drafter's sublayers where convolutions along blocks are around them, in one launch.

A sublayer's output is convolved along its block and added, the sum normed, the next convolution's kernels are projected
from that, and what the next sublayer reads is convolved by them: models/dflash2.BlockConv, with its roundings, but for
one: what kernels are projected from is not rounded. A program has some groups of a token's channels. The token's norm,
and those of the tokens before it, are made by all of its programs: that costs less than a launch.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 1024  # channels that a program looks at together, of a matrix 16 rows as long or as much
# Groups that it looks at together: what a power of two has beyond them is work. Of 18 groups 16 and 2 took 2.86 us on
# an H200 at 16 tokens where 32 took 3.56, 5.50 and 5.45 at 128. Eight warps: 2.85 and 6.84; fours: 3.36 and 5.10.
_CHUNK = 16
_PARTS = 8  # programs of a token, about


class Convolution(NamedTuple):
    """A :class:`~flashdraft.models.dflash2.BlockConv`'s weights."""

    base: Tensor  # [2 (what a sublayer reads, what it writes), taps, hidden_size]
    projection: Tensor  # [2 * taps * groups, hidden_size]


class Written(NamedTuple):
    """What a sublayer wrote, and how it is convolved before it is added."""

    x: Tensor  # [num_tokens, hidden_size]
    kernels: Tensor  # [num_tokens, taps * groups]: beside the base
    base: Tensor  # [taps, hidden_size]


@triton.jit
def _rounded(x, like):  # type: ignore[no-untyped-def]
    """float32 ``x`` as a tensor of the type of ``like`` has it."""
    return x.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def _convolved(  # type: ignore[no-untyped-def]
    found, weight, kernel, before, like
):
    """``found`` and one more tap, ``weight + kernel`` times ``before``."""
    return _rounded(found + _rounded(_rounded(weight + kernel, like) * before, like), like)


@triton.jit  # type: ignore[untyped-decorator]
def _summed(  # type: ignore[no-untyped-def]
    residual, written, kernels, base, token, slot, group, lane, written_token, size: tl.constexpr,
    groups: tl.constexpr, group_size: tl.constexpr, taps: tl.constexpr, has_written: tl.constexpr,
):  # fmt: skip
    """float32 sums of groups' channels, of tokens that are at ``slot`` of their block; before its first zeros."""
    channel, is_inside = group * group_size + lane, (group < groups) & (lane < group_size)
    there = is_inside & (slot >= 0)
    total = tl.load(residual + token * size + channel, there, 0.0).to(tl.float32)
    if has_written:
        found = tl.zeros_like(total)
        for tap in tl.static_range(taps):
            at = written + (token - tap) * written_token + channel
            before = tl.load(at, there & (slot >= tap), 0.0).to(tl.float32)
            taken = tl.load(base + tap * size + channel, is_inside, 0.0).to(tl.float32)
            own = (group < groups) & (slot >= 0)
            kernel = tl.load(kernels + (token * taps + tap) * groups + group, own, 0.0).to(tl.float32)
            found = _convolved(found, taken, kernel, before, residual)
        total = _rounded(total + found, residual)
    return total


@triton.jit  # type: ignore[untyped-decorator]
def _token(  # type: ignore[no-untyped-def]
    residual, written, kernels, base, token, slot, part, written_token, size: tl.constexpr, groups: tl.constexpr,
    group_size: tl.constexpr, taps: tl.constexpr, has_written: tl.constexpr, chunk: tl.constexpr, own: tl.constexpr,
    lanes: tl.constexpr,
):  # fmt: skip
    """Of a token the sums of a part's groups [own, lanes], and squares of all [chunk, lanes], to be added."""
    squares, lane = tl.zeros([chunk, lanes], tl.float32), tl.arange(0, lanes)[None, :]
    for start in tl.range(0, groups, chunk, loop_unroll_factor=2):
        wide = _summed(
            residual, written, kernels, base, token, slot, start + tl.arange(0, chunk)[:, None], lane, written_token,
            size, groups, group_size, taps, has_written,
        )  # fmt: skip
        squares += wide * wide
    wide = _summed(
        residual, written, kernels, base, token, slot, part * own + tl.arange(0, own)[:, None], lane, written_token,
        size, groups, group_size, taps, has_written,
    )  # fmt: skip
    return wide, squares


@triton.jit  # type: ignore[untyped-decorator]
def _projected(  # type: ignore[no-untyped-def]
    residual, written, kernels, base, weight, rows, is_output, token, slot, written_token, size: tl.constexpr,
    groups: tl.constexpr, group_size: tl.constexpr, taps: tl.constexpr, has_written: tl.constexpr,
    chunk: tl.constexpr, lanes: tl.constexpr, outputs: tl.constexpr,
):  # fmt: skip
    """Rows of the projection [outputs] times a token's sums and the norm's weight."""
    made = tl.zeros([outputs], tl.float32)
    rest: tl.constexpr = groups % chunk
    for start in range(0, groups - rest, chunk):
        made += _piece(
            residual, written, kernels, base, weight, rows, is_output, token, slot, written_token, start, size, groups,
            group_size, taps, has_written, chunk, lanes,
        )  # fmt: skip
    if rest:
        made += _piece(
            residual, written, kernels, base, weight, rows, is_output, token, slot, written_token, groups - rest, size,
            groups, group_size, taps, has_written, triton.next_power_of_2(rest), lanes,
        )  # fmt: skip
    return made


@triton.jit  # type: ignore[untyped-decorator]
def _piece(  # type: ignore[no-untyped-def]
    residual, written, kernels, base, weight, rows, is_output, token, slot, written_token, start,
    size: tl.constexpr, groups: tl.constexpr, group_size: tl.constexpr, taps: tl.constexpr,
    has_written: tl.constexpr, chunk: tl.constexpr, lanes: tl.constexpr,
):  # fmt: skip
    """What the groups from ``start`` on add, ``chunk`` of them."""
    flat, lane = tl.arange(0, chunk * lanes), tl.arange(0, lanes)[None, :]
    at = (start + flat // lanes) * group_size + flat % lanes
    is_input = (start + flat // lanes < groups) & (flat % lanes < group_size)
    matrix = tl.load(rows[:, None] + at[None, :], is_output[:, None] & is_input[None, :], 0.0).to(tl.float32)
    along = tl.load(weight + at, is_input, 0.0).to(tl.float32)
    wide = _summed(
        residual, written, kernels, base, token, slot, start + tl.arange(0, chunk)[:, None], lane, written_token,
        size, groups, group_size, taps, has_written,
    )  # fmt: skip
    return tl.sum(matrix * (tl.reshape(wide, [chunk * lanes]) * along)[None, :], 1)


@triton.jit  # type: ignore[untyped-decorator]
def _scale(squares, size: tl.constexpr, eps: tl.constexpr):  # type: ignore[no-untyped-def]
    """What RMSNorm multiplies with."""
    return tl.rsqrt(tl.sum(tl.ravel(squares), 0) / size + eps)


@triton.jit
def _at(values, number, at):  # type: ignore[no-untyped-def]
    """Of ``values`` along their first dimension, numbered by ``number``, those of ``at``."""
    return tl.sum(tl.where(number == at, values, 0.0), 0)


@triton.jit  # type: ignore[untyped-decorator]
def _norm_conv_kernel(  # type: ignore[no-untyped-def]
    residual, written, kernels, written_base, weight, base, projection, read, total, next_kernels,
    written_token, width: tl.constexpr,
    eps: tl.constexpr, size: tl.constexpr, groups: tl.constexpr, group_size: tl.constexpr, taps: tl.constexpr,
    has_written: tl.constexpr, has_conv: tl.constexpr, chunk: tl.constexpr,
    own: tl.constexpr, lanes: tl.constexpr, sides_taps: tl.constexpr,
):  # fmt: skip
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.zeros([1, 1], tl.int32) + tl.program_id(0) % width
    lane, own_group = tl.arange(0, lanes)[None, :], part * own + tl.arange(0, own)[:, None]
    own_channel, is_own = own_group * group_size + lane, (own_group < groups) & (lane < group_size)
    # What two tokens need comes first, for no load passes the sums' barriers.
    wide, squares = _token(
        residual, written, kernels, written_base, token, slot, part, written_token,
        size, groups, group_size, taps, has_written, chunk, own, lanes,
    )  # fmt: skip
    along = tl.load(weight + own_channel, is_own, 0.0).to(tl.float32)
    if has_conv:
        taken = tl.load(base + own_channel, is_own, 0.0).to(tl.float32)
        taken_before = tl.load(base + size + own_channel, is_own & (taps > 1), 0.0).to(tl.float32)
        before, squares_before = _token(
            residual, written, kernels, written_base, token - 1, slot - 1, part, written_token,
            size, groups, group_size, taps, has_written, chunk, own, lanes,
        )  # fmt: skip
        output = tl.arange(0, sides_taps * own)
        kind, of_group = output // own, part * own + output % own  # kind: side * taps + tap
        is_output = (kind < 2 * taps) & (of_group < groups)
        made = _projected(
            residual, written, kernels, written_base, weight, projection + (kind * groups + of_group) * size, is_output,
            token, slot, written_token, size, groups, group_size, taps, has_written, chunk, lanes, sides_taps * own,
        )  # fmt: skip
    scale = _scale(squares, size, eps)
    out = token * size + own_channel
    tl.store(total + out, wide.to(residual.dtype.element_ty), is_own)
    found = _rounded(wide * scale * along, residual)
    if has_conv:
        made = _rounded(made * scale, residual)
        at = next_kernels + (token * taps + kind - taps) * groups + of_group
        tl.store(at, made.to(residual.dtype.element_ty), is_output & (kind >= taps))
        by_kind, kinds = tl.reshape(made, [sides_taps, own]), tl.arange(0, sides_taps)[:, None]
        kernel = _at(by_kind, kinds, 0)[:, None]
        found = _convolved(tl.zeros([own, lanes], tl.float32), taken, kernel, found, residual)
        for tap in tl.static_range(1, taps):
            if tap > 1:
                before, squares_before = _token(
                    residual, written, kernels, written_base, token - tap, slot - tap, part, written_token,
                    size, groups, group_size, taps, has_written, chunk, own, lanes,
                )  # fmt: skip
                taken_before = tl.load(base + tap * size + own_channel, is_own, 0.0).to(tl.float32)
            normed = _rounded(before * _scale(squares_before, size, eps) * along, residual)
            found = _convolved(found, taken_before, _at(by_kind, kinds, tap)[:, None], normed, residual)
    tl.store(read + out, found.to(residual.dtype.element_ty), is_own)


def norm_conv(
    residual: Tensor,
    written: Written | None,
    weight: Tensor,
    eps: float,
    conv: Convolution | None,
    num_groups: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """``total = residual + written``, its RMSNorm convolved as the next sublayer reads it, and that one's kernels.

    As (read, total, kernels): [num_tokens, hidden_size] twice, and [num_tokens, taps * groups] for what the sublayer
    writes. ``residual`` [num_tokens, hidden_size], blocks of ``width`` tokens one after the other; ``written`` None:
    nothing is added. ``conv`` None: it is normed alone, without kernels.
    """
    num_tokens, size = residual.shape
    assert num_tokens % width == 0, "blocks are whole"
    assert residual.is_contiguous()
    assert written is None or (written.x.stride(1) == 1 and written.kernels.is_contiguous())
    taps = len(written.base) if written else conv.base.shape[1] if conv else 1
    group_size = size // num_groups
    read, total = torch.empty_like(residual), torch.empty_like(residual)
    kernels = residual.new_empty(num_tokens, taps * num_groups if conv else 0)
    lanes, own = triton.next_power_of_2(group_size), triton.next_power_of_2(triton.cdiv(num_groups, _PARTS))
    own = min(max(own, 4), 16)
    sides_taps, chunk = triton.next_power_of_2(2 * taps), min(triton.next_power_of_2(num_groups), _CHUNK)
    while chunk > 1 and chunk * lanes * max(sides_taps * own, 16) > 16 * _TILE:
        chunk //= 2
    anything = residual
    added = written or Written(anything, anything, anything)
    ahead = conv or Convolution(anything, anything)
    _norm_conv_kernel[(num_tokens, triton.cdiv(num_groups, own))](
        residual, added.x, added.kernels, added.base, weight, ahead.base, ahead.projection, read, total, kernels,
        added.x.stride(0), width=width,
        eps=eps, size=size, groups=num_groups, group_size=group_size, taps=taps,
        has_written=written is not None, has_conv=conv is not None,
        chunk=chunk, own=own, lanes=lanes, sides_taps=sides_taps,
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return read, total, kernels
