"""Weights in a folder of safetensors files, one or several shards: headers first, tensors on request.

Format: 8 bytes header length (little-endian), a JSON header {name: {dtype, shape, data_offsets}}, then the
data (https://github.com/huggingface/safetensors).
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from flashdraft.checkpoint.untrusted import check_plain_name, check_regular, read_object
from flashdraft.checkpoint.weights import list_some
from flashdraft.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FLOATS = ("F32", "F16", "BF16", "F64")
_TABLES = {"d2t": ("I64", "I32"), "t2d": ("BOOL",)}  # which tokens a draft vocabulary holds


class SafetensorsWeights:
    """The tensors of ``folder`` (see :class:`flashdraft.checkpoint.weights.WeightSource`).

    Raises CheckpointError for a file that is missing, truncated or no safetensors file, for a tensor that
    the index names and its shard lacks, and for tensors that are not plain floats unless ``any_type``.
    """

    def __init__(self, folder: Path, any_type: bool = False) -> None:
        self.label = str(folder)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._files: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        weight_map = _weight_map(folder)
        for file in weight_files(folder):
            for name, entry in read_header(file).items():
                self.shapes[name], self.dtypes[name] = tuple(entry["shape"]), entry["dtype"]
                self._files[name] = file
        strays = [f"{n} in {f}" for n, f in weight_map.items() if self._files.get(n) != folder / f]
        if strays:
            raise CheckpointError(
                f"{folder / INDEX} names {list_some(strays)}, not there: fetch all files again"
            )
        if not any_type:
            self.check_floats(self.shapes)

    def check_floats(self, names: Iterable[str]) -> None:
        """Raise CheckpointError for what is no plain float, tables of a draft vocabulary apart."""
        for name in names:
            if self.dtypes[name] not in (wanted := _TABLES.get(name, _FLOATS)):
                raise CheckpointError(
                    f"{self._files[name]}: {name} is {self.dtypes[name]}; expected one of {', '.join(wanted)}, or a"
                    " quantization_config that says how it is quantized: give an unquantized checkpoint"
                )

    def read(self, name: str) -> Tensor:
        """One tensor; it shares memory with the file."""
        file = self._files[name]
        if file not in self._open:
            self._open[file] = safe_open(file, framework="pt", device="cpu")
        tensor: Tensor = self._open[file].get_tensor(name)
        return tensor


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor -> file of a sharded checkpoint; empty for a single file."""
    if (folder / SINGLE).is_file() or not (folder / INDEX).is_file():
        return {}
    weight_map = read_object(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX} has no weight_map; fetch the file again")
    return {tensor: check_plain_name(file, str(folder / INDEX)) for tensor, file in weight_map.items()}


def shard_names(folder: Path) -> list[str]:
    """The files that the folder's index names; none without an index."""
    return sorted(set(_weight_map(folder).values()))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the checkpoint. Raises CheckpointError when one is missing."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    shards = shard_names(folder)
    if missing := [shard for shard in shards if not (folder / shard).is_file()]:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(shards)} weight shards: {list_some(missing)}; fetch them"
            " again"
        )
    if not shards:
        found = list_some(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise CheckpointError(
            f"{folder} has neither {SINGLE} nor {INDEX} (found: {found}); convert other weight formats to"
            " safetensors"
        )
    return [folder / shard for shard in shards]


def read_header(file: Path) -> dict[str, dict[str, Any]]:
    """Name -> {dtype, shape, data_offsets} of every tensor in ``file``.

    Raises CheckpointError that gives found and expected bytes when the file was cut short.
    """
    check_regular(file)
    found = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(8)
        header_bytes = int.from_bytes(head, "little")
        text = stream.read(min(header_bytes, found))
    if len(head) == 8 and not text.startswith(b"{"):
        raise CheckpointError(f"{file} is no safetensors file (it has no JSON header); fetch it again")
    if len(head) < 8 or len(text) < header_bytes:
        raise CheckpointError(_truncated(file, found, 8 + header_bytes))
    header = _parse_header(file, text)
    expected = 8 + header_bytes + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if found < expected:
        raise CheckpointError(_truncated(file, found, expected))
    try:
        # The library's own rules: sizes and types that fit the offsets, no gap, nothing twice, nothing left over.
        with safe_open(file, framework="pt", device="cpu"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} is no safetensors file ({error}); fetch it again") from error
    return header


def _parse_header(file: Path, text: bytes) -> dict[str, dict[str, Any]]:
    try:
        header = json.loads(text)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        for entry in entries.values():
            begin, end = entry["data_offsets"]
            numbers = [begin, end, *entry["shape"]]
            if not isinstance(entry["dtype"], str) or not all(
                type(one) is int and one >= 0 for one in numbers
            ):
                raise ValueError(f"an entry is {str(entry)[:100]}")
    except (ValueError, AttributeError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file} is no safetensors file ({error}); fetch it again") from error
    return entries


def _truncated(file: Path, found: int, expected: int) -> str:
    return f"{file} is truncated: found {found} bytes, expected at least {expected}; fetch it again"
