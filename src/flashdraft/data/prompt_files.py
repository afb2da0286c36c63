"""Rows of chat data as they lie on disk: JSON lines, JSON arrays, Parquet, folders of the datasets library.

Knows files and rows, not what a row means. Rows are read one after another; a row that is no object is told by its
place and the next one is read.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from flashdraft.errors import DataError

SAMPLE = "sample"  # the name of the prompts that come with the package
_ENCODING = (
    "utf-8-sig"  # a byte order mark in front, as Windows' tools write it, is no part of the first line
)
_LINES = (".jsonl", ".jsonl.gz")
_JSON = (".json", ".json.gz")
_TABLES = (".parquet", ".arrow")
_NO_ROWS = (
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
)  # of the datasets library
_SHARD = re.compile(r"-\d{5}-of-\d{5}.*$")  # behind the split's name


@dataclass(frozen=True)
class Row:
    """``values``: the row's object, or why there is none. ``number``: its line in JSON lines, else its row; from 1."""

    place: str
    stem: str  # of its file
    number: int
    values: dict[str, Any] | str


def read_rows(path: str | Path, split: str | None = None) -> Iterator[Row]:
    """The rows of a file, of every file of a folder in name order, or of the package's own prompts ("sample").

    ``split``: of a folder that holds several, as datasets' folders and the hub's Parquet shards do. Raises DataError
    for a path without such files, for several splits of which none is named, and for a file that cannot be read.
    """
    path = Path(path)
    if str(path) == SAMPLE and not path.exists():
        path = Path(str(files("flashdraft.data") / "sample_prompts.jsonl"))
    if not path.is_dir() and not (path.is_file() and _is_data(path)):
        raise _nothing(path)
    for file in _files_of(path, split) if path.is_dir() else [path]:
        yield from _read_file(file)


def _nothing(path: Path) -> DataError:
    found = "no such file" if not path.exists() else "no prompts found"
    names = ", ".join([*_LINES, *_JSON, *_TABLES])
    return DataError(f"{path}: {found}; expected a {names} file, a folder of them, or {SAMPLE}")


def _is_data(file: Path) -> bool:
    return file.name.endswith((*_LINES, *_JSON, *_TABLES)) and file.name not in _NO_ROWS


def _files_of(folder: Path, split: str | None) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():  # DatasetDict.save_to_disk: a folder a split
        splits = {one.name: _data_files(one) for one in sorted(folder.iterdir()) if one.is_dir()}
        return _choose(folder, splits, split)
    files = _data_files(folder) or (_data_files(folder / "data") if (folder / "data").is_dir() else [])
    if not files:
        raise _nothing(folder)
    tables = [file for file in files if file.suffix in _TABLES]
    if (folder / "state.json").is_file() or len(tables) < len(files):
        if split is not None:
            raise DataError(
                f"{folder}: split {split!r} was named, but this folder has no splits; leave it out"
            )
        return files
    splits = {}
    for file in files:
        splits.setdefault(_SHARD.sub("", file.stem), []).append(file)
    return _choose(folder, splits, split)


def _choose(folder: Path, splits: dict[str, list[Path]], split: str | None) -> list[Path]:
    wanted = next(iter(splits), "") if split is None and len(splits) == 1 else split
    if wanted not in splits:
        said = "" if split is None else f", not {split!r}"
        raise DataError(f"{folder}: found the splits {', '.join(sorted(splits))}{said}; name one (--split)")
    return splits[wanted]


def _data_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file() and _is_data(file))


def _read_file(file: Path) -> Iterator[Row]:
    stem = file.name
    for suffix in (*_LINES, *_JSON, *_TABLES):
        stem = stem.removesuffix(suffix)
    try:
        if file.name.endswith(_TABLES):
            rows = enumerate(_table_rows(file), 1)
        elif file.name.endswith(_JSON) and (array := _array(file)) is not None:
            rows = enumerate(map(_object, array), 1)
        else:
            for place, number, values in _lines(file):
                yield Row(place, stem, number, values)
            return
        for number, values in rows:
            yield Row(f"{file}, row {number}", stem, number, values)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, pa.ArrowException) as error:
        raise DataError(f"{file}: cannot be read ({error}); fetch or write it anew") from error


def read_lines(file: Path) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """The objects of a JSON lines file, plain or gzipped, each with its place for messages and its line number.

    Raises DataError for a file that cannot be read and a line that is no object.
    """
    try:
        for place, number, values in _lines(file):
            if isinstance(values, str):
                raise DataError(f"{place}: {values}")
            yield place, number, values
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as JSON lines ({error})") from error


def _lines(file: Path) -> Iterator[tuple[str, int, dict[str, Any] | str]]:
    opener: Any = gzip.open if file.name.endswith(".gz") else open
    with opener(file, "rt", encoding=_ENCODING) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{file}:{number}", number, _parse(line)


def _parse(line: str) -> dict[str, Any] | str:
    try:
        return _object(json.loads(line))
    except (ValueError, RecursionError) as error:
        return f"not a JSON object ({error})"


def _object(values: Any) -> dict[str, Any] | str:
    return values if isinstance(values, dict) else f"found a JSON {type(values).__name__}; expected an object"


def _array(file: Path) -> list[Any] | None:
    """The rows of a .json file that holds an array; None where it holds an object a line, as many on the hub do."""
    opener: Any = gzip.open if file.name.endswith(".gz") else open
    with opener(file, "rt", encoding=_ENCODING) as lines:
        first = next((line for line in lines if line.strip()), "")
        if isinstance(_parse(first), dict):
            return None
        lines.seek(0)
        try:
            found = json.load(lines)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}: not JSON ({error}); expected an array, or an object a line") from None
    if not isinstance(found, list):
        raise DataError(
            f"{file}: found one JSON {type(found).__name__}; expected an array, or an object a line"
        )
    return found


def _table_rows(file: Path) -> Iterator[dict[str, Any] | str]:
    for batch in _batches(file):
        kinds = {field.name: field.type for field in batch.schema}
        for row in batch.to_pylist():
            values: dict[str, Any] | str
            try:
                values = {name: _as_json(value, kinds[name]) for name, value in row.items()}
            except (ValueError, RecursionError) as error:
                values = f"a column of JSON texts has one that is not JSON ({error})"
            yield values


def _as_json(value: Any, kind: pa.DataType) -> Any:
    """A table's value as a line of JSON would have it.

    Texts of Arrow's type for JSON, as datasets 5 stores messages in, are read. Nulls of objects are left out: all rows
    of a column have one set of keys, so that a call has the arguments of every other call, as nulls.
    """
    if value is None:
        return None
    if isinstance(kind, pa.JsonType):
        return json.loads(value)
    if pa.types.is_struct(kind):
        return {
            field.name: _as_json(value[field.name], field.type)
            for field in kind
            if value[field.name] is not None
        }
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return [_as_json(one, kind.value_type) for one in value]
    return value


def _batches(file: Path) -> Iterator[pa.RecordBatch]:
    if file.suffix == ".parquet":
        with pq.ParquetFile(file) as table:
            yield from table.iter_batches()
        return
    with pa.memory_map(str(file)) as source:
        try:
            batches = pyarrow.ipc.open_stream(source)  # as datasets writes them
        except pa.ArrowInvalid:
            reader = pyarrow.ipc.open_file(source)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        yield from batches
