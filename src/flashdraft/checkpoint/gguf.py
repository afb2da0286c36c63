"""The GGUF container: typed fields and quantized tensors. Knows nothing of models or tokenizers.

Format: magic, version, counts, fields, tensor infos, padding, data; strings carry a 64-bit length
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). The header is read here, because the gguf
library makes an array object of every token and takes seconds over a vocabulary; tensors are dequantized by
that library.
"""

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize
from torch import Tensor

from flashdraft.checkpoint.untrusted import check_regular
from flashdraft.errors import CheckpointError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
ARCHITECTURES = (
    "llama",
    "gemma3",
    "qwen3",
    "qwen3moe",
    "qwen35",
    "qwen35moe",
    "dflash",  # drafters
)  # whose fields and tensors are known: load.py, gguf_dflash.py
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_MAX_DEPTH, _MAX_DIMS = 4, 4  # ggml's tensors have four dimensions at most
_SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.FLOAT64: "<d",
    GGUFValueType.BOOL: "<?",
}


class _Header:
    """A place in the header that moves on with every value read."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.offset = data, 0

    def scalar(self, layout: str) -> Any:
        (value,) = struct.unpack_from(layout, self.data, self.offset)
        self.offset += struct.calcsize(layout)
        # The shortest decimal that means the same float32: 1e-05, not 9.999999747378752e-06.
        return float(str(np.float32(value))) if layout == "<f" else value

    def count(self) -> int:
        """How many things follow: each takes a byte at least."""
        found = int(self.scalar("<Q"))
        if found > len(self.data) - self.offset:
            raise ValueError(f"{found} things in {len(self.data) - self.offset} bytes")
        return found

    def string(self) -> str:
        end = self.scalar("<Q") + self.offset
        if end > len(self.data):
            raise struct.error("a string ends past the end of the file")
        text = str(self.data[self.offset : end], "utf-8")
        self.offset = end
        return text

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == GGUFValueType.STRING:
            return self.string()
        if kind == GGUFValueType.ARRAY:
            item_kind, count = self.scalar("<I"), self.count()
            if depth == _MAX_DEPTH:
                raise ValueError(f"arrays are nested more than {_MAX_DEPTH} deep")
            return [self.value(item_kind, depth + 1) for _ in range(count)]
        return self.scalar(_SCALARS[GGUFValueType(kind)])


@dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor is. ``shape`` as torch has it, outermost first (the file stores the reverse)."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int  # bytes after the start of the data section

    @property
    def row_bytes(self) -> int:
        """Size of one innermost row as stored."""
        block_len, block_bytes = GGML_QUANT_SIZES[self.kind]
        return self.shape[-1] // block_len * block_bytes

    @property
    def num_bytes(self) -> int:
        """Size as stored."""
        return math.prod(self.shape[:-1]) * self.row_bytes


class GGUFFile:
    """An open GGUF file: ``fields`` by key, ``tensors`` by name.

    Raises CheckpointError for a file that is missing, no GGUF, truncated, or holds a kind of quantization
    that cannot be read: all before any tensor data is touched.
    """

    def __init__(self, path: Path, is_part: bool = False) -> None:
        self.path = path
        self._owners: dict[str, GGUFFile] = {}  # of the tensors in the other files of a model in parts
        check_regular(path)
        with path.open("rb") as stream:
            magic = stream.read(4)
        if magic != _MAGIC:
            raise CheckpointError(
                f"{path} is no GGUF file (it begins with {magic!r}, expected {_MAGIC!r}); give a .gguf file"
                " or a Hugging Face folder"
            )
        self._data = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
        try:
            self._read_header(_Header(self._data.data))
        except (struct.error, ArithmeticError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{path} is truncated or damaged: its header does not end within its {len(self._data)} bytes"
                f" ({error}); fetch it again"
            ) from error
        self._check_data()
        if not is_part and self.fields.get("split.count", 1) != 1:
            self._open_parts()

    def read(self, name: str) -> Tensor:
        """A tensor dequantized to float32, in memory of its own."""
        if name in self._owners:
            return self._owners[name].read(name)
        tensor = self.tensors[name]
        start = self._start + tensor.offset
        stored = self._data[start : start + tensor.num_bytes].reshape(*tensor.shape[:-1], tensor.row_bytes)
        values = dequantize(stored, tensor.kind)
        return torch.from_numpy(values if values.flags.writeable else values.copy())

    def _open_parts(self) -> None:
        """Take in the other files' tensors. Raises CheckpointError where one is missing or this is not the first."""
        count, named = self.fields["split.count"], _PART.search(self.path.name)
        if type(count) is not int or named is None or int(named[2]) != count or int(named[1]) != 1:
            raise CheckpointError(
                f"{self.path} is one of {count} files; expected the first, NAME-00001-of-{count:0>5}.gguf, with the"
                " others beside it under their own names"
            )
        for number in range(2, count + 1):
            other = self.path.with_name(_PART.sub(f"-{number:05d}-of-{count:05d}.gguf", self.path.name))
            if not other.is_file():
                raise CheckpointError(
                    f"{self.path} is one of {count} files, and {other.name} is missing; fetch it too"
                )
            part = GGUFFile(other, is_part=True)
            self._owners |= dict.fromkeys(part.tensors, part)
            self.tensors |= part.tensors

    def _read_header(self, header: _Header) -> None:
        header.offset = len(_MAGIC)
        version = header.scalar("<I")
        if version not in _VERSIONS:
            raise CheckpointError(f"{self.path} has GGUF version {version}; expected one of {_VERSIONS}")
        num_tensors, num_fields = header.count(), header.count()
        self.fields: dict[str, Any] = {}
        for _ in range(num_fields):
            key, kind = header.string(), header.scalar("<I")
            self.fields[key] = header.value(kind)
        self.tensors: dict[str, GGUFTensor] = {}
        for _ in range(num_tensors):
            name, num_dims = header.string(), header.scalar("<I")
            if not 1 <= num_dims <= _MAX_DIMS:
                raise ValueError(f"{name[:100]!r} has {num_dims} dimensions")
            shape = tuple(header.scalar("<Q") for _ in range(num_dims))[::-1]
            kind = GGMLQuantizationType(header.scalar("<I"))
            if 0 in shape or shape[-1] % GGML_QUANT_SIZES[kind][0]:
                raise ValueError(f"{name[:100]!r} is {list(shape)} of {kind.name}")
            self.tensors[name] = GGUFTensor(shape, kind, header.scalar("<Q"))
        alignment = self.fields.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 1:
            raise ValueError(f"general.alignment is {str(alignment)[:100]}")
        self._start = math.ceil(header.offset / alignment) * alignment

    def _check_data(self) -> None:
        found = len(self._data)
        expected = max((t.offset + t.num_bytes for t in self.tensors.values()), default=0) + self._start
        if found < expected:
            raise CheckpointError(
                f"{self.path} is truncated: found {found} bytes, expected {expected}; fetch it again"
            )
        for kind in {tensor.kind for tensor in self.tensors.values()}:
            try:
                dequantize(np.zeros(GGML_QUANT_SIZES[kind][1], np.uint8), kind)
            except NotImplementedError as error:
                raise CheckpointError(
                    f"{self.path} holds {kind.name} tensors, which cannot be dequantized; give another"
                    " quantization of the model"
                ) from error
