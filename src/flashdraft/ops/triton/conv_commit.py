"""The last inputs of convolutions over tokens, which a commit moves on, in all layers at once."""

import triton
import triton.language as tl
from torch import Tensor

CONV_TILE = 1024  # channels of a program


@triton.jit  # type: ignore[untyped-decorator]
def place_of(path, number, has_path: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where token ``number`` of a row, or of one path of its tree, stands in the row."""
    place = number
    if has_path:
        place = tl.load(path + number)
    return place


@triton.jit  # type: ignore[untyped-decorator]
def _conv_kernel(  # type: ignore[no-untyped-def]
    qkv, conv, slots, starts, counts, paths, path_len, x_layer, x_row, x_token, conv_layer, conv_slot,
    num_channels: tl.constexpr, tile: tl.constexpr, has_path: tl.constexpr,
):  # fmt: skip
    row, layer = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    start, count = tl.load(starts + row), tl.load(counts + row)
    if count > 0:
        at = tl.program_id(0) * tile + tl.arange(0, tile)
        there = at < num_channels
        past = conv + layer * conv_layer + tl.load(slots + row) * conv_slot + at
        x, path, last = qkv + layer * x_layer + row * x_row + at, paths + row * path_len, start + count - 1
        second = tl.load(past + 2 * num_channels, there)
        third = tl.load(past + num_channels, there)
        if count > 1:
            third, second = second, tl.load(x + place_of(path, last - 1, has_path) * x_token, there)
        if count > 2:
            third = tl.load(x + place_of(path, last - 2, has_path) * x_token, there)
        tl.store(past, third, there)
        tl.store(past + num_channels, second, there)
        newest = tl.load(x + place_of(path, last, has_path) * x_token, there)
        tl.store(past + 2 * num_channels, newest, there)


def told_path(path: Tensor | None, like: Tensor) -> tuple[Tensor, int]:
    """A path and its length as kernels take them; without one, whatever tensor."""
    return (like, 0) if path is None else (path, path.stride(0))


def conv_commit(
    qkv: Tensor, conv: Tensor, slots: Tensor, starts: Tensor, counts: Tensor, path: Tensor | None = None
) -> None:
    """Append inputs of tokens to ``conv`` [layers, num_slots, 3, channels], which has the last three of each sequence.

    ``qkv`` [layers, rows, width, channels]; which tokens: see ``gated_delta_commit``.
    """
    num_layers, rows, _, channels = qkv.shape
    _conv_kernel[(triton.cdiv(channels, CONV_TILE), rows, num_layers)](
        qkv, conv, slots, starts, counts, *told_path(path, starts), *qkv.stride()[:3], *conv.stride()[:2],
        num_channels=channels, tile=CONV_TILE, has_path=path is not None, num_warps=4,
    )  # fmt: skip
