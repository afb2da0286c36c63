"""Weights that stay in codes of 8 or 4 bits, with scales for groups of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UNIT = 64  # inputs whose 8-bit codes lie in 64 bytes
CHUNK = 128  # inputs whose 4-bit codes lie in 64 bytes; groups of inputs are multiples of it, or all
PAIRED_INPUTS = 2 * CHUNK  # whose two scales lie in a word
LONG_SUM = 6144  # inputs; from here on products with codes add in chains: ops/triton/long_sums.py
TILE_ROWS = 8  # outputs whose codes a warp loads at once, 64 bytes each
SYMMETRIC_ZERO = 8  # the 4-bit code of 0, where there are no zero points
EXPONENT = 120  # bfloat16's exponents are biased by so much more than float8's
LARGEST_SCALE = 128.0  # of float8's in bfloat16, which kernels multiply by 2 ** EXPONENT
SLICE = 129  # a 4-bit code at places 4 to 7 of a bfloat16 is its value times 2 ** -SLICE
LARGEST_SYMMETRIC_SCALE = 0.5  # of 4 bits in bfloat16, which kernels multiply by 2 ** SLICE
_CHECKED = 16384  # outputs whose codes are looked at together: a copy in order stands beside them
FLOAT4_GROUP = 32  # inputs that share a scale of MXFP4
# E2M1, by code.
FLOAT4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)  # fmt: skip
_MOST_FLOATS = 1 << 26  # that a GPU makes of codes in memory at once
_FLOAT_ROWS = 128  # outputs that they are multiples of
_LARGEST_EXPONENT = 252  # of MXFP4's scales: 6 times it is a number of bfloat16


@dataclass(frozen=True)
class QuantizedWeight:
    """A matrix [num_outputs, num_inputs]: ``(code - zero) * scale``, rounded to ``scale_dtype``, then to ``dtype``.

    ``codes``: uint8 [num_outputs, num_inputs], the bits of float8_e4m3fn, whose zero is 0, as :func:`arranged` has
    them; or int16 [num_outputs, num_inputs / 4], four 4-bit codes a word as :func:`packed` has them. ``scales``, and
    ``zeros`` where they are not all SYMMETRIC_ZERO, [num_groups, num_outputs], of equally many inputs each, float32
    that ``scale_dtype`` holds exactly: loads of four bytes come behind the arithmetic, those of two do not.

    ``tiled``: 64 bytes of TILE_ROWS outputs lie side by side, then the next 64 of each; see :meth:`in_tiles`.

    Of bfloat16's scales of 4 bits two groups' may lie in a word, int32 [num_groups / 2, num_outputs]: see
    :meth:`in_pairs`.

    MXFP4 (OCP Microscaling Formats): 4-bit codes of FLOAT4, without zeros; ``scales`` uint8, exponents of 2 biased by
    127, of FLOAT4_GROUP inputs each. The last ``padding`` inputs, of value 0, fill the last chunk.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    dtype: torch.dtype
    scale_dtype: torch.dtype
    padding: int = 0
    tiled: bool = False

    @property
    def is_float4(self) -> bool:
        """Whether the codes are MXFP4's."""
        return self.scales.dtype == torch.uint8

    @property
    def is_packed(self) -> bool:
        """Whether the codes have 4 bits."""
        return self.codes.dtype == torch.int16

    @property
    def shape(self) -> torch.Size:
        """[num_outputs, num_inputs]."""
        num_outputs, width = self.codes.shape
        return torch.Size((num_outputs, width * (4 if self.is_packed else 1) - self.padding))

    @property
    def is_paired(self) -> bool:
        """Whether two groups' scales lie in a word."""
        return self.scales.dtype == torch.int32

    @property
    def num_groups(self) -> int:
        """Of inputs that share a scale."""
        return len(self.scales) * (2 if self.is_paired else 1)

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return (self.shape[1] + self.padding) // self.num_groups

    @property
    def nbytes(self) -> int:
        """Of all parts."""
        return sum(part.nbytes for part in (self.codes, self.scales, self.zeros) if part is not None)

    def to(self, device: torch.device) -> "QuantizedWeight":
        """On ``device``."""
        zeros = None if self.zeros is None else self.zeros.to(device)
        codes, scales = self.codes.to(device), self.scales.to(device)
        return replace(self, codes=codes, scales=scales, zeros=zeros)

    def in_tiles(self) -> "QuantizedWeight":
        """The same values in tiles of TILE_ROWS outputs, of which there are whole ones; else as they are.

        A warp's load of a unit or chunk is then 512 bytes in a row, and not eight times 64 in as many rows.
        """
        if self.tiled or len(self) % TILE_ROWS:
            return self
        return replace(self, codes=_exchanged(self.codes, TILE_ROWS, -1), tiled=True)

    def in_rows(self) -> "QuantizedWeight":
        """The same values, each output's codes in a row."""
        return replace(self, codes=_exchanged(self.codes, -1, TILE_ROWS), tiled=False) if self.tiled else self

    def in_pairs(self) -> "QuantizedWeight":
        """The same values with half the bytes of scales, where these are bfloat16's of single chunks; else as they are.

        The first of two groups is a word's lower half. Where sums are long a chain has every fourth chunk, not two in
        a row: those stay.
        """
        num_inputs = self.shape[1]
        suits = (
            self.is_packed
            and self.zeros is None
            and self.scale_dtype == torch.bfloat16
            and not self.is_float4
        )
        if (
            not suits
            or self.is_paired
            or self.group != CHUNK
            or num_inputs % PAIRED_INPUTS
            or num_inputs >= LONG_SUM
        ):
            return self
        halves = self.scales.to(torch.bfloat16).view(torch.int16).int() & 0xFFFF
        return replace(self, scales=halves[0::2] | halves[1::2] << 16)

    def _floats_of_scales(self) -> Tensor:
        """Float32 [num_groups, num_outputs]."""
        if not self.is_paired:
            return self.scales
        halves = torch.stack((self.scales << 16, self.scales & -65536), 1)
        return halves.view(torch.float32).flatten(0, 1)

    def followed(self, fn: Callable[[Tensor], Tensor]) -> "QuantizedWeight":
        """On the device that ``fn`` brings tensors to, as nn.Module._apply calls it; types stay."""
        return self.to(fn(torch.empty(0, device=self.codes.device)).device)

    def is_finite(self) -> bool:
        """Whether every value is a finite number, and bfloat16's scales of float8 are below LARGEST_SCALE."""
        if self.is_float4:
            return int(self.scales.max()) <= _LARGEST_EXPONENT
        if not bool(self.scales.isfinite().all()):
            return False
        if (
            not self.is_packed
            and self.scale_dtype == torch.bfloat16
            and bool((self.scales.abs() >= LARGEST_SCALE).any())
        ):
            return False
        if self.is_packed:
            return True
        parts = (in_order(part).view(torch.uint8) for part in torch.split(self.codes, _CHECKED))
        return not any(bool(((part & 127) == 127).any()) for part in parts)  # float8's NaN

    def for_kernels(self) -> "QuantizedWeight":
        """The same values; with zero points where scales are too large for kernels to leave them out.

        float32's scales of float8 count as bfloat16's where they are such numbers (powers of 2 are): a product of both
        is exact in float32, so that it is rounded once in either case, and kernels have half as much to do.
        """
        scales = self.scales
        if not self.is_packed and (self.scale_dtype, self.dtype) == (torch.float32, torch.bfloat16):
            is_such = (scales == scales.bfloat16()) & (scales.abs() < LARGEST_SCALE)
            return replace(self, scale_dtype=torch.bfloat16) if bool(is_such.all()) else self
        in_bfloat16 = self.is_packed and self.zeros is None and self.scale_dtype == torch.bfloat16
        if in_bfloat16 and bool((self.scales.abs() >= LARGEST_SYMMETRIC_SCALE).any()):
            return replace(self, zeros=torch.full_like(self.scales, SYMMETRIC_ZERO))
        return self

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: slice) -> "QuantizedWeight":
        """Some of the outputs, as views; of tiles that are cut, copies."""
        start, stop, _ = rows.indices(len(self))
        if self.tiled and (start % TILE_ROWS or stop % TILE_ROWS):
            return self.in_rows()[rows]
        zeros = None if self.zeros is None else self.zeros[:, rows]
        return replace(self, codes=self.codes[rows], scales=self.scales[:, rows], zeros=zeros)

    def dequantized(self) -> Tensor:
        """[num_outputs, num_inputs] as ``dtype``, by PyTorch."""
        if self.is_float4:
            exponents = _spread(self.scales.int() - 127, self.group)
            assert exponents is not None
            values = torch.tensor(FLOAT4, device=self.codes.device)[unpacked(self.in_rows().codes)]
            return torch.ldexp(values, exponents)[:, : self.shape[1]].to(self.dtype)
        codes = self.in_rows().codes
        values = unpacked(codes) if self.is_packed else in_order(codes)
        scales, zeros = (_spread(part, self.group) for part in (self._floats_of_scales(), self.zeros))
        assert scales is not None
        values = values.float()
        if self.is_packed:
            values = values - (SYMMETRIC_ZERO if zeros is None else zeros)
        return (values * scales).to(self.scale_dtype).to(self.dtype)


class QuantizedLinear(nn.Module):
    """A linear map with a weight in codes, ``weight``; a forward of it makes floats of them."""

    def __init__(self, weight: QuantizedWeight, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    @property
    def out_features(self) -> int:
        """Outputs."""
        return len(self.weight)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.weight = self.weight.followed(fn)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call,no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """[..., num_inputs] -> [..., num_outputs]."""
        return F.linear(x, self.weight.dequantized(), self.bias)


def joined(parts: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """The outputs of ``parts`` one after the other. All have the same inputs, groups and types."""
    if len(parts) == 1:
        return parts[0]
    if not all(part.tiled for part in parts):
        parts = [part.in_rows() for part in parts]
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return replace(
        parts[0],
        codes=torch.cat([part.codes for part in parts]),
        scales=torch.cat([part.scales for part in parts], dim=1),
        zeros=torch.cat(zeros, dim=1) if zeros else None,
    )


def rows_at_once(num_outputs: int, num_inputs: int) -> int:
    """Of how many outputs a GPU makes floats together, for products of many tokens: parts of about the same size."""
    parts = -(-num_outputs * num_inputs // _MOST_FLOATS)
    rows = -(-num_outputs // parts)
    return min(-(-rows // _FLOAT_ROWS) * _FLOAT_ROWS, num_outputs)


def kind_of(weight: QuantizedWeight) -> tuple[object, ...]:
    """Weights of the same kind and number of inputs can be joined."""
    return weight.codes.dtype, weight.scale_dtype, weight.num_groups, weight.zeros is None, weight.dtype


# A matrix unit's factor of 16 inputs has inputs 2t, 2t + 1, 2t + 8 and 2t + 9 in thread t of four (PTX, mma.m16n8k16).
# 16 bytes side by side are one thread's, of as many such factors as go in: it loads them at once, and none moves.


def arranged(codes: Tensor) -> Tensor:
    """Float8 codes [num_outputs, num_inputs] in whole units as kernels read them, uint8 of the same shape.

    They lie by thread, factor and place in words of two bytes, which hold the code of the factor's first half at the
    places of a bfloat16's sign, last exponent bits and first of the mantissa: one instruction takes it out. The second
    half's is about them: sign and last four bits in the same word, bits 4 to 6 in that of the factor's neighbour.
    """
    # By unit, pair, factor, half, thread and place.
    by_factor = codes.view(torch.uint8).reshape(len(codes), -1, 2, 2, 2, 4, 2)
    first, second = by_factor.permute(4, 0, 1, 5, 2, 3, 6)
    low = (first & 15) << 4 | second & 15
    high = first & 128 | second.flip(4) & 112 | (second & 128) >> 4 | (first & 112) >> 4
    return torch.stack((low, high), -1).flatten(1)


def in_order(codes: Tensor) -> Tensor:
    """The float8 codes whose :func:`arranged` is ``codes``."""
    # By unit, thread, pair, factor, place and byte.
    low, high = codes.reshape(len(codes), -1, 4, 2, 2, 2, 2).unbind(-1)
    first = high & 128 | (high & 7) << 4 | low >> 4
    second = (high & 8) << 4 | high.flip(4) & 112 | low & 15
    by_thread = torch.stack((first, second), -1)
    return by_thread.permute(0, 1, 3, 4, 6, 2, 5).flatten(1).view(torch.float8_e4m3fn)


def packed(codes: Tensor) -> Tensor:
    """Words int16 [num_outputs, num_inputs / 4] of 4-bit codes [num_outputs, num_inputs] in whole chunks.

    They lie by thread, pair of factors and place; a word has two factors' halves, the first in its lowest bits.
    """
    by_factor = codes.int().reshape(len(codes), -1, 4, 4, 4, 2)  # chunk, pair, factor and half, thread, place
    words = by_factor.permute(0, 1, 4, 2, 5, 3) << _shifts(codes.device)
    return words.sum(-1, dtype=torch.int32).flatten(1).to(torch.int16)


def unpacked(words: Tensor) -> Tensor:
    """Codes int32 [num_outputs, num_inputs] of ``packed``'s words."""
    by_thread = words.int().reshape(len(words), -1, 4, 4, 2, 1) >> _shifts(words.device)
    return (by_thread & 15).permute(0, 1, 3, 5, 2, 4).flatten(1)


def _exchanged(codes: Tensor, first: int, second: int) -> Tensor:
    """``codes`` of tiles [``first``, ``second``, 64 bytes] as tiles [second, first, 64 bytes]; one of them is -1."""
    tiles = codes.reshape(len(codes) // TILE_ROWS, first, second, 64 // codes.element_size())
    return tiles.transpose(1, 2).reshape(codes.shape)


def _shifts(device: torch.device) -> Tensor:
    return torch.arange(0, 16, 4, device=device, dtype=torch.int32)


def _spread(part: Tensor | None, group: int) -> Tensor | None:
    """[num_groups, num_outputs] -> [num_outputs, num_inputs]."""
    return None if part is None else part.T.repeat_interleave(group, dim=1)
