"""Weights in the tiles that the C++ part reads (linear.h), each model's in one piece of memory with large pages."""

from collections import deque
from collections.abc import Iterable
from enum import IntEnum

import torch
from torch import Tensor

from flashdraft import large_pages
from flashdraft.native.library import LinearStruct

_LANES, _BLOCK = 16, 32
_INT16_WEIGHT = 8191  # INT16_WEIGHT of activations.h
_ROWS_AT_A_TIME = 4096
_CODES = 16  # of 4 bits
_OFF_GRID = 0.1  # of a step: of two roundings of 16 steps to bfloat16, and far from what floats of no grid do


class Kind(IntEnum):
    """How weights are held; the numbers are linear.h's."""

    BF16 = 0
    INT8 = 1  # blocks of 32 along the input: w = scale * q, scale the largest / 127 (as GGUF's Q8_0)
    INT4 = 2  # blocks of 32: w = scale * q + minimum, from least to greatest (as GGUF's Q4_1)
    INT16 = 3  # rows: w = scale * q, scale the largest / 8191: within 0.00007 of it of the bfloat16
    INT7 = 4  # as INT8, scale the largest / 63: where products of bytes are the fastest so


def pack(weight: Tensor, kind: Kind) -> Tensor:
    """Tiles, uint8 [num_tiles, tile_bytes], of ``weight`` [n, k]; rows are padded with zeros to whole tiles."""
    padding = -len(weight) % _LANES
    if padding:
        weight = torch.cat((weight, weight.new_zeros(padding, weight.shape[1])))
    make = {Kind.BF16: _bf16, Kind.INT8: _int8, Kind.INT7: _int7, Kind.INT4: _int4, Kind.INT16: _int16}[kind]
    return torch.cat([make(rows) for rows in torch.split(weight, _ROWS_AT_A_TIME)])


def _bf16(weight: Tensor) -> Tensor:
    pairs = weight.bfloat16().view(-1, _LANES, weight.shape[1] // 2, 2).transpose(1, 2)
    return pairs.reshape(len(pairs), -1).view(torch.uint8)


def _int16(weight: Tensor) -> Tensor:
    weight = weight.bfloat16().float()
    scale = weight.abs().amax(-1, keepdim=True) / _INT16_WEIGHT
    q = (weight / _divisor(scale)).round().to(torch.int16)
    pairs = q.view(-1, _LANES, weight.shape[1] // 2, 2).transpose(1, 2).flatten(1).contiguous()
    return torch.cat((scale.view(-1, _LANES).view(torch.uint8), pairs.view(torch.uint8)), dim=1)


def _int8(weight: Tensor) -> Tensor:
    return _bytes(weight, 128)


def _int7(weight: Tensor) -> Tensor:
    return _bytes(weight, 64)


def _bytes(weight: Tensor, zero: int) -> Tensor:
    """Blocks of q from 1 to 2 * ``zero`` - 1, which is ``zero`` for 0."""
    blocks = _blocks(weight)
    scale = (blocks.abs().amax(-1, keepdim=True) / (zero - 1)).half()
    # A scale that float16 has few bits for may be too small.
    q = (blocks / _divisor(scale)).round().clamp(1 - zero, zero - 1) + zero
    return _tiles(_by_fours(q.to(torch.uint8)), scale, -zero * scale)


def _int4(weight: Tensor) -> Tensor:
    blocks = _blocks(weight)
    least = blocks.amin(-1, keepdim=True)
    scale = _step_of(blocks, least, blocks.amax(-1, keepdim=True) - least).half()
    least = least.half()
    q = ((blocks - least.float()) / _divisor(scale)).round().clamp(0, 15).to(torch.uint8)
    low, high = _by_fours(q).chunk(2, dim=2)
    return _tiles(low | high << 4, scale, least)


def _step_of(blocks: Tensor, least: Tensor, span: Tensor) -> Tensor:
    """The step of each block's grid of 16 values: that of a 4-bit checkpoint where its values lie on one.

    A block need not have its checkpoint's first and last code (Q4_0, AWQ, GPTQ, compressed-tensors in groups of 32 and
    more), and a 15th of its span is then another grid, whose values are wrong by up to half of a step. A step is the
    span over 8 to 15: over fewer it is one of these, halved or so.
    """
    step = span / (_CODES - 1)
    if not _fits(blocks[:1], least[:1], span[:1]).any():  # floats of no grid
        return step
    for tile in range(len(blocks)):  # one at a time: there are 8 trials of each
        part = slice(tile, tile + 1)
        fits = _fits(blocks[part], least[part], span[part])
        count = _CODES - 1 - fits.int().argmax(0, keepdim=False)
        step[part] = torch.where(fits.any(0), span[part] / count, step[part])
    return step


def _fits(blocks: Tensor, least: Tensor, span: Tensor) -> Tensor:
    """Whether all values of a block are whole steps from its least one, [8, ...]: of the span over 15, 14, ... 8."""
    counts = torch.arange(_CODES - 1, _CODES // 2 - 1, -1).view(-1, *[1] * blocks.dim())
    places = (blocks - least) / _divisor(span) * counts
    return (places - places.round()).abs().amax(-1, keepdim=True) < _OFF_GRID


def _blocks(weight: Tensor) -> Tensor:
    """Float32 [num_tiles, lanes, num_blocks, block]."""
    return weight.float().view(-1, _LANES, weight.shape[1] // _BLOCK, _BLOCK)


def _divisor(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1).float()


def _by_fours(q: Tensor) -> Tensor:
    """[num_tiles, lanes, num_blocks, 32] -> [num_tiles, num_blocks, 8, lanes, 4]."""
    return q.view(*q.shape[:-1], _BLOCK // 4, 4).permute(0, 2, 3, 1, 4)


def _tiles(q: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    """Each block's values, then its scales and minimums [num_tiles, lanes, num_blocks, 1], end to end."""
    numbers = torch.cat((scale, minimum), dim=-1).permute(0, 2, 3, 1).contiguous()
    blocks = torch.cat((q.flatten(2), numbers.view(torch.uint8).flatten(2)), dim=-1)
    return blocks.flatten(1)


class PackedWeights:
    """The packed matrices of one model, by the order given. Of each no more than its tiles is held."""

    def __init__(self, matrices: Iterable[tuple[Tensor, Kind]]) -> None:
        packed = deque((pack(weight, kind), weight.shape, kind) for weight, kind in matrices)
        self.num_bytes = sum(tiles.numel() for tiles, _, _ in packed)
        self.tiles = large_pages.zeros([self.num_bytes], torch.uint8)
        self.linears = []
        start = 0
        while packed:
            tiles, shape, kind = packed.popleft()
            place = self.tiles[start : start + tiles.numel()]
            place.copy_(tiles.flatten())
            start += tiles.numel()
            self.linears.append(LinearStruct(place.data_ptr(), *shape, kind))
