"""Quantized weights read as floats, to the bit as the libraries that made them dequantize.

Seven layouts of a matrix ``x.weight`` [rows, columns]:

scaled   ``x.weight`` FP8 or int8, ``x.weight_scale_inv`` or ``x.weight_scale``, one for blocks, rows or all: the code
         times its scale. Block FP8 is computed in float32 (transformers' ``Fp8Dequantize``), compressed-tensors' in
         the scale's own type (its ``dequantize``).
packed   ``x.weight_packed`` int32, 4 or 8 bits a code; ``weight_scale`` [rows, groups], ``weight_shape``, and where it
         is asymmetric ``weight_zero_point`` (compressed-tensors, pack-quantized).
awq      ``x.qweight`` int32 [columns, rows / 8], ``x.qzeros``, ``x.scales`` [groups, rows] (AutoAWQ, version gemm).
gptq     ``x.qweight`` int32 [columns * bits / 32, rows], ``x.qzeros``, ``x.scales`` [groups, rows]; ``x.g_idx``, each
         column's group, which auto-round leaves out.
torchao  ``x._weight_qdata`` FP8 or int8, ``x._weight_scale`` float32, one for rows or blocks, ``x._weight_zero_point``:
         computed in float32, rounded to the config's dtype.
mxfp4    ``x.weight_packed`` uint8, two E2M1 a byte, ``x.weight_scale`` uint8, exponents of 32 columns each.
experts_mxfp4  ``x_blocks`` uint8 [experts, rows, columns / 32, 16] and ``x_scales`` of experts ``x`` [experts, columns,
         rows] (gpt-oss; transformers' ``convert_moe_packed_tensors``).
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from flashdraft.checkpoint.kept_codes import Kept, kept, kept_float4
from flashdraft.checkpoint.quantization import Quantization, read_quantization
from flashdraft.checkpoint.safetensors import SafetensorsWeights
from flashdraft.checkpoint.untrusted import damage_is_told, read_object
from flashdraft.checkpoint.weights import WeightSource, list_some
from flashdraft.errors import CheckpointError
from flashdraft.ops.quantized import FLOAT4

# Of activations, keys and values: nothing here is computed in their types.
_OF_ACTIVATIONS = (
    *(".input_scale", ".output_scale", ".k_scale", ".v_scale", ".q_scale", ".kv_scale", ".prob_scale"),
    *(".input_zero_point", ".input_global_scale", ".k_zero_point", ".v_zero_point", ".activation_scale"),
)
_AWQ_ORDER = (
    0,
    4,
    1,
    5,
    2,
    6,
    3,
    7,
)  # which nibble of a word holds a code: it is stored as 0, 2, 4, 6, 1, 3, 5, 7
_CODES = ("F8_E4M3", "I8")

Read = Callable[[str], Tensor]


def folder_weights(folder: Path) -> WeightSource:
    """The tensors of a Hugging Face folder in floats, whatever its config says that they are stored in."""
    how = read_quantization(read_object(folder / "config.json"), folder)
    if how is None:
        return SafetensorsWeights(folder)
    return DequantizedWeights(SafetensorsWeights(folder, any_type=True), how)


class DequantizedWeights:
    """``source`` in floats, without scales (see :class:`flashdraft.checkpoint.weights.WeightSource`).

    Raises CheckpointError for scales that are missing or do not fit, and for codes of other types.
    """

    def __init__(self, source: SafetensorsWeights, how: Quantization) -> None:
        self.label, self._source = source.label, source
        self._made: dict[str, Callable[[], Tensor]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.kept: dict[str, Kept] = {}  # what can stay in codes
        parts = _LAYOUTS[how.method]
        used: set[str] = set()
        for name in source.shapes:
            for ending in (ending for ending in parts if name.endswith(ending)):
                made = parts[ending](self, name.removesuffix(ending), ending, how)
                if made is not None:
                    whole, shape, read, names, stays = made
                    self.shapes[whole], self._made[whole] = shape, read
                    if stays is not None:
                        self.kept[whole] = stays
                    used |= names
                    break
        for name, shape in source.shapes.items():
            if name not in used and name not in self._made and not name.endswith(_OF_ACTIVATIONS):
                self.shapes[name] = shape
        left = [name for name in self.shapes if name not in self._made]
        source.check_floats(left)

    def read(self, name: str) -> Tensor:
        """One tensor, as floats."""
        if name not in self._made:
            return self._source.read(name)
        with damage_is_told(f"{self.label}: {name}"):  # an order of columns that there are not, and the like
            return self._made[name]()

    def scaled(self, name: str, ending: str, how: Quantization) -> "_Made | None":
        """``name`` and its scale beside it: in blocks, by rows or one for all; None where it is a plain float."""
        whole = name + ending
        scale = next((s for s in (f"{whole}_scale_inv", f"{whole}_scale") if s in self._source.shapes), None)
        if scale is None:
            return None
        shape, of_scale = self._source.shapes[whole], self._source.shapes[scale]
        if self._source.dtypes[whole] not in _CODES:
            raise CheckpointError(
                f"{self.label}: {whole} is {self._source.dtypes[whole]} beside a scale; expected {' or '.join(_CODES)}"
            )
        sizes = [1, 1] if len(of_scale) < 2 else list(of_scale)
        blocks = [
            _block_len(self, scale, n, count, how, i)
            for i, (n, count) in enumerate(zip(shape[-2:], sizes[-2:], strict=False))
        ]
        zero = f"{whole}_zero_point" if f"{whole}_zero_point" in self._source.shapes else None
        in_float32 = scale.endswith("_inv")

        def read() -> Tensor:
            codes, factors = self._source.read(whole), _exponents(self._source.read(scale))
            kind = torch.float32 if in_float32 else factors.dtype
            factors = _spread(factors.to(kind), blocks, shape)
            values = codes.to(kind)
            if zero is not None:
                values = values - _spread(self._source.read(zero).to(kind), blocks, shape)
            return values * factors

        def parts() -> tuple[Tensor, Tensor, None]:
            for_rows = (*shape[:-1], sizes[-1])
            factors = _spread(_exponents(self._source.read(scale)), [blocks[0], 1], for_rows)
            return self._source.read(whole).flatten(0, -2), factors.expand(for_rows).flatten(0, -2).T, None

        stays = None
        if zero is None and self._source.dtypes[whole] == "F8_E4M3":
            stored = self._source.dtypes[scale]
            stays = kept(shape, False, sizes[-1], "F32" if in_float32 else stored, False, parts, stored)
        return whole, shape, read, {whole, scale} | ({zero} if zero else set()), stays

    def packed(self, name: str, _ending: str, _how: Quantization) -> "_Made | None":
        """compressed-tensors' int32 words of 4 or 8 bits."""
        words, scale = f"{name}.weight_packed", f"{name}.weight_scale"
        told, zero, order = f"{name}.weight_shape", f"{name}.weight_zero_point", f"{name}.weight_g_idx"
        self._expect(words, "I32", scale, told)
        rows, columns = (int(size) for size in self._source.read(told).tolist())
        num_words = self._source.shapes[words][-1]
        bits = next((b for b in (4, 8) if num_words == -(-columns * b // 32)), 0)
        groups = self._source.shapes[scale][-1]
        if not bits or self._source.shapes[words][0] != rows or groups < 1 or columns % groups:
            raise CheckpointError(
                f"{self.label}: {words} is {list(self._source.shapes[words])} with {groups} scales a row for a matrix"
                f" [{rows}, {columns}]; expected 4 or 8 bits a code, and groups of equal size"
            )

        def read() -> Tensor:
            factors = self._source.read(scale)
            codes = _unpack(self._source.read(words), bits)[:, :columns] - (1 << bits - 1)
            group = torch.arange(columns) // (columns // groups)
            if order in self._source.shapes and int(self._source.read(order).min()) >= 0:
                group = self._source.read(order).long()
            values = codes.to(factors.dtype)
            if zero in self._source.shapes:
                zeros = _unpack(self._source.read(zero).T, bits).T[:rows] - (1 << bits - 1)
                values = values - zeros.to(factors.dtype)[:, group]
            return values * factors[:, group]

        has_zeros, is_sorted = zero in self._source.shapes, order not in self._source.shapes

        def parts() -> tuple[Tensor, Tensor, Tensor | None]:
            codes = _unpack(self._source.read(words), bits)[:, :columns]
            zeros = _unpack(self._source.read(zero).T, bits)[:, :rows] if has_zeros else None
            return codes, self._source.read(scale).T, zeros

        stays = None
        if bits == 4 and is_sorted:
            stays = kept((rows, columns), True, groups, self._source.dtypes[scale], has_zeros, parts)
        return f"{name}.weight", (rows, columns), read, {words, scale, told, zero, order}, stays

    def mxfp4(self, name: str, _ending: str, _how: Quantization) -> "_Made | None":
        """Two E2M1 codes a byte, an exponent for 32 columns."""
        packed, scale = f"{name}.weight_packed", f"{name}.weight_scale"
        self._expect(packed, "U8", scale)
        *rows, half = self._source.shapes[packed]
        if self._source.shapes[scale] != (*rows, half // 16) or half % 16:
            raise CheckpointError(
                f"{self.label}: {scale} is {list(self._source.shapes[scale])} for {2 * half} columns; expected one for"
                " 32 of them"
            )

        def read() -> Tensor:
            return _of_e2m1(self._source.read(packed).view(*rows, -1, 16), self._source.read(scale))

        return f"{name}.weight", (*rows, 2 * half), read, {packed, scale}, None

    def experts_mxfp4(self, name: str, _ending: str, _how: Quantization) -> "_Made | None":
        """gpt-oss: an expert's columns come in blocks of 32."""
        blocks, scales = f"{name}_blocks", f"{name}_scales"
        self._expect(blocks, "U8", scales)
        shape = self._source.shapes[blocks]
        if len(shape) != 4 or shape[3] != 16 or self._source.shapes[scales] != shape[:3]:
            raise CheckpointError(
                f"{self.label}: {blocks} is {list(shape)} with scales {list(self._source.shapes[scales])}; expected"
                " [experts, rows, columns / 32, 16] and the same less the last: fetch it again"
            )

        def read() -> Tensor:
            stored, exponents = self._source.read(blocks), self._source.read(scales)
            made = torch.empty(
                shape[0], shape[2] * 32, shape[1], dtype=torch.bfloat16
            )  # which holds them exactly
            for expert, one in enumerate(made):
                one.copy_(_of_e2m1(stored[expert], exponents[expert]).T)
            return made

        def parts() -> Iterator[tuple[Tensor, Tensor]]:
            for stored, exponents in zip(self._source.read(blocks), self._source.read(scales), strict=True):
                yield _nibbles(stored).flatten(-2), exponents

        stays = kept_float4((shape[0], shape[1], shape[2] * 32), parts)
        return name, (shape[0], shape[2] * 32, shape[1]), read, {blocks, scales}, stays

    def awq(self, name: str, _ending: str, _how: Quantization) -> "_Made | None":
        """AutoAWQ's words, whose nibbles lie in an order of their own."""
        words, zeros, scales = (f"{name}.{part}" for part in ("qweight", "qzeros", "scales"))
        self._expect(words, "I32", zeros, scales)
        columns, eighth = self._source.shapes[words]
        rows, groups = 8 * eighth, self._source.shapes[scales][0]
        if self._source.shapes[scales] != (groups, rows) or self._source.shapes[zeros] != (groups, eighth):
            raise self._misfit(name)
        if not groups or columns % groups:
            raise self._misfit(name)

        def read() -> Tensor:
            codes, offsets = (_in_order(_unpack(self._source.read(one), 4)) for one in (words, zeros))
            factors = self._source.read(scales)
            spread = (one.repeat_interleave(columns // groups, dim=0) for one in (offsets, factors))
            offset, factor = spread
            return ((codes - offset).to(factor.dtype) * factor).T.contiguous()

        def parts() -> tuple[Tensor, Tensor, Tensor]:
            codes, offsets = (_in_order(_unpack(self._source.read(one), 4)) for one in (words, zeros))
            return codes.T, self._source.read(scales), offsets

        stays = kept((rows, columns), True, groups, self._source.dtypes[scales], True, parts)
        return f"{name}.weight", (rows, columns), read, {words, zeros, scales}, stays

    def gptq(self, name: str, _ending: str, how: Quantization) -> "_Made | None":
        """GPTQ's words, packed along the columns; zero points along the rows."""
        words, zeros, scales, order = (f"{name}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx"))
        self._expect(words, "I32", zeros, scales)
        num_words, rows = self._source.shapes[words]
        is_ordered, groups = order in self._source.shapes, self._source.shapes[scales][0]
        columns = self._source.shapes[order][0] if is_ordered else num_words * 32 // how.bits
        bits = next((b for b in (2, 4, 8) if num_words * 32 == columns * b), 0)
        if not bits or not groups or (columns % groups and not is_ordered):
            raise self._misfit(name)
        if self._source.shapes[scales] != (groups, rows):
            raise self._misfit(name)
        if self._source.shapes[zeros] != (groups, -(-rows * bits // 32)):
            raise self._misfit(name)

        def read() -> Tensor:
            codes = _unpack(self._source.read(words).T, bits).T
            offsets = _unpack(self._source.read(zeros), bits)[:, :rows] + how.stored_zero_offset
            factors = self._source.read(scales)
            in_turn = torch.arange(columns) // max(columns // groups, 1)
            group = self._source.read(order).long() if is_ordered else in_turn
            return ((codes - offsets[group]).to(factors.dtype) * factors[group]).T.contiguous()

        def parts() -> tuple[Tensor, Tensor, Tensor]:
            codes = _unpack(self._source.read(words).T, bits)
            offsets = _unpack(self._source.read(zeros), bits)[:, :rows] + how.stored_zero_offset
            return codes, self._source.read(scales), offsets

        stays, group = None, columns // groups
        if bits == 4 and columns % groups == 0 and (not is_ordered or self._is_in_turn(order, group)):
            stays = kept((rows, columns), True, groups, self._source.dtypes[scales], True, parts)
        return f"{name}.weight", (rows, columns), read, {words, zeros, scales, order}, stays

    def _is_in_turn(self, order: str, group: int) -> bool:
        """Whether columns of one group stand side by side, as they do but where GPTQ sorted them."""
        found = self._source.read(order)
        return torch.equal(found.long(), torch.arange(len(found)) // group)

    def torchao(self, name: str, _ending: str, how: Quantization) -> "_Made | None":
        """torchao's tensors by their parts, as its safetensors support names them."""
        codes, scale, zero = (f"{name}._weight_{part}" for part in ("qdata", "scale", "zero_point"))
        self._expect(codes, ("I8", "F8_E4M3"), scale)
        shape, of_scale = self._source.shapes[codes], self._source.shapes[scale]
        if len(of_scale) != len(shape) or any(not n or m % n for m, n in zip(shape, of_scale, strict=True)):
            raise CheckpointError(
                f"{self.label}: {scale} is {list(of_scale)} for {list(shape)} codes; expected as many dimensions, and"
                " blocks of equal size: fetch it again"
            )
        blocks = [m // n for m, n in zip(shape[-2:], of_scale[-2:], strict=True)]

        def read() -> Tensor:
            values = self._source.read(codes).float()
            if zero in self._source.shapes:
                values = values - _spread(self._source.read(zero).float(), blocks, shape)
            values = values * _spread(self._source.read(scale), blocks, shape)
            return values if how.dtype is None else values.to(how.dtype)

        return f"{name}.weight", shape, read, {codes, scale, zero}, None

    def _expect(self, words: str, dtype: str | tuple[str, ...], *others: str) -> None:
        missing = [one for one in others if one not in self._source.shapes]
        known = (dtype,) if isinstance(dtype, str) else dtype
        if missing or self._source.dtypes[words] not in known:
            found = (
                f"lacks {list_some(missing)}" if missing else f"has {words} as {self._source.dtypes[words]}"
            )
            raise CheckpointError(
                f"{self.label} {found}; expected {words} in {' or '.join(known)} with its scales: fetch it again"
            )

    def _misfit(self, name: str) -> CheckpointError:
        parts = ("qweight", "qzeros", "scales", "g_idx")
        shapes = {
            part: list(self._source.shapes[f"{name}.{part}"])
            for part in parts
            if f"{name}.{part}" in self._source.shapes
        }
        return CheckpointError(
            f"{self.label}: the parts of {name} do not fit one another ({shapes}); fetch them again"
        )


_Made = tuple[str, tuple[int, ...], Callable[[], Tensor], set[str], Kept | None]
_LAYOUTS: dict[str, dict[str, Callable[..., "_Made | None"]]] = {
    "scaled": dict.fromkeys((".weight", "_proj"), DequantizedWeights.scaled),
    "packed": {".weight_packed": DequantizedWeights.packed},
    "mxfp4": {".weight_packed": DequantizedWeights.mxfp4},
    "experts_mxfp4": {"_blocks": DequantizedWeights.experts_mxfp4},
    "awq": {".qweight": DequantizedWeights.awq},
    "gptq": {".qweight": DequantizedWeights.gptq},
    "torchao": {"._weight_qdata": DequantizedWeights.torchao},
}


def _block_len(
    self: DequantizedWeights, scale: str, size: int, count: int, how: Quantization, place: int
) -> int:
    """Of ``size`` rows or columns, how many share one of ``count`` scales. Raises CheckpointError where none fits."""
    told = (how.block or (None, how.group_size))[place]
    if told and count == -(-size // told):
        return told
    if told or count < 1 or size % count:
        raise CheckpointError(
            f"{self.label}: {scale} has {count} scales for {size} rows or columns, in blocks of {told}; fetch it again"
        )
    return size // count


def _exponents(scales: Tensor) -> Tensor:
    """Scales in bytes are powers of two, 2 ** (byte - 127) (OCP Microscaling, E8M0)."""
    if scales.dtype == torch.uint8:
        return (scales.float() - 127.0).exp2()
    return scales.float() if scales.element_size() == 1 else scales


def _of_e2m1(stored: Tensor, exponents: Tensor) -> Tensor:
    """[..., 32 groups] of bytes [..., groups, 16], two codes each, the first in its lowest bits."""
    values = torch.tensor(FLOAT4)[_nibbles(stored).int()] * _exponents(exponents).unsqueeze(-1)
    return values.flatten(-2)


def _nibbles(stored: Tensor) -> Tensor:
    """Codes [..., 2 n] of bytes [..., n], the first in a byte's lowest bits."""
    return torch.stack((stored & 15, stored >> 4), dim=-1).flatten(-2)


def _spread(factors: Tensor, blocks: list[int], shape: tuple[int, ...]) -> Tensor:
    """``factors`` of blocks for each value of ``shape``; one for all stays one."""
    if factors.numel() == 1:
        return factors.reshape(())
    if factors.dim() < 2:
        factors = factors.unsqueeze(-1)
    rows, columns = shape[-2:]
    factors = factors.repeat_interleave(blocks[0], dim=-2)[..., :rows, :]
    return factors.repeat_interleave(blocks[1], dim=-1)[..., :columns]


def _unpack(words: Tensor, bits: int) -> Tensor:
    """Codes [n, 32 / bits * m] of int32 words [n, m], lowest bits first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).flatten(-2)


def _in_order(codes: Tensor) -> Tensor:
    return codes.view(*codes.shape[:-1], -1, 8)[..., list(_AWQ_ORDER)].flatten(-2)
