"""Features of packed rows on disk: computed once, memory-mapped, read by every later epoch.

They keep the type that the target computes in (bfloat16 there is 2 bytes a value), so a run with them is the run
without them, to the bit. Knows no models.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flashdraft.data.loader import PackedRows
from flashdraft.errors import DataError
from flashdraft.whole_files import write_whole

SHARD_BYTES = 1 << 30
_WRITTEN = 1 << 20  # bytes at a time
_INDEX = "features.json"
# numpy knows no bfloat16: its bits are kept as integers.
_STORED = {torch.bfloat16: np.uint16, torch.float16: np.float16, torch.float32: np.float32}


@dataclass(frozen=True)
class FeatureShape:
    """What a cache holds: ``width`` values of ``dtype`` for each of ``seq_len`` tokens of ``num_rows`` rows."""

    num_rows: int
    seq_len: int
    width: int
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.seq_len * self.width * self.dtype.itemsize

    @property
    def num_bytes(self) -> int:
        """Bytes of all rows."""
        return self.num_rows * self.row_bytes


class FeatureCache:
    """The cache in ``folder``, begun or gone on with.

    ``made_of``: what the features depend on (see :func:`digest`). All of its room on the disk is taken at once. Raises
    DataError for a folder that holds others, and for a disk with too little room.
    """

    def __init__(self, folder: Path, shape: FeatureShape, made_of: Mapping[str, Any]) -> None:
        self.folder, self.shape = folder, shape
        folder.mkdir(parents=True, exist_ok=True)
        told = {
            "shape": [shape.num_rows, shape.seq_len, shape.width],
            "dtype": str(shape.dtype),
            "made_of": json.loads(json.dumps(made_of)),
        }
        index = folder / _INDEX
        try:
            known = json.loads(index.read_text()) if index.exists() else told | {"num_filled": 0}
            self.num_filled = int(known.pop("num_filled"))  # rows from the first on
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{index}: cannot be read ({error}); delete {folder}, it is made anew") from error
        if known != told:
            raise DataError(
                f"{folder}: holds the features of other rows, layers or another target; delete it, or use another"
                " --out folder"
            )
        self._told = told
        self._rows_per_shard = max(SHARD_BYTES // shape.row_bytes, 1)
        self._shards = [self._open(first) for first in range(0, shape.num_rows, self._rows_per_shard)]

    @property
    def is_whole(self) -> bool:
        """Whether every row is there."""
        return self.num_filled == self.shape.num_rows

    def append(self, features: Tensor) -> None:
        """Write the next rows, [count, seq_len, width]; those that are written stay written after a crash."""
        values = features.detach().to("cpu", self.shape.dtype).contiguous()
        bits = values.view(torch.uint16) if values.dtype == torch.bfloat16 else values
        for offset, row in enumerate(bits.numpy()):
            shard, place = divmod(self.num_filled + offset, self._rows_per_shard)
            self._shards[shard][place] = row
        for shard_map in self._shards:
            shard_map.flush()
        self.num_filled += len(values)
        write_whole(self.folder / _INDEX, json.dumps(self._told | {"num_filled": self.num_filled}) + "\n")

    def read(self, index: Tensor, device: torch.device | str = "cpu") -> Tensor:
        """Features of the rows ``index``, [len(index), seq_len, width], a copy on ``device``."""
        places = [divmod(row, self._rows_per_shard) for row in index.tolist()]
        stacked = torch.from_numpy(np.stack([self._shards[shard][place] for shard, place in places]))
        return (stacked.view(self.shape.dtype) if stacked.dtype == torch.uint16 else stacked).to(device)

    def _open(self, first: int) -> "np.memmap[Any, Any]":
        shape = self.shape
        count = min(self._rows_per_shard, shape.num_rows - first)
        file = self.folder / f"features-{first // self._rows_per_shard:05d}.bin"
        num_bytes = count * shape.row_bytes
        if not file.exists() or file.stat().st_size != num_bytes:
            if self.num_filled > first:
                raise DataError(
                    f"{file}: missing or cut short; delete {self.folder} to compute the features again"
                )
            file.write_bytes(b"")
        if self.num_filled < first + count:
            _reserve(file, num_bytes)
        return np.memmap(file, _STORED[shape.dtype], "r+", shape=(count, shape.seq_len, shape.width))


def bytes_held(folder: Path) -> int:
    """What a cache in ``folder`` has taken of its disk."""
    return sum(512 * file.stat().st_blocks for file in folder.glob("features-*.bin"))


def _reserve(file: Path, num_bytes: int) -> None:
    """Room on the disk for all of ``file``: where a mapped page finds none, the system ends the process.

    Raises DataError for a disk that has too little.
    """
    try:
        with file.open("r+b") as made:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(made.fileno(), 0, num_bytes)
            else:  # macOS has none; zeros that are written are there
                for first in range(made.seek(0, os.SEEK_END), num_bytes, _WRITTEN):
                    made.write(bytes(min(_WRITTEN, num_bytes - first)))
    except OSError as error:
        raise DataError(
            f"{file}: no room for its {num_bytes / 1e9:.1f} GB ({error.strerror}); free some and delete"
            f" {file.parent}, or use --features fly"
        ) from error


def digest(rows: PackedRows) -> str:
    """What tells packed rows from others: their tokens and where documents begin."""
    hashed = hashlib.sha256()
    for tensor in (rows.token_ids, rows.doc_start):
        hashed.update(tensor.cpu().numpy().tobytes())
    return hashed.hexdigest()
