"""The file of measurements: JSON lines, appended chunk by chunk, so that a run which was cut off goes on.

A line is one answer, or, at the top, one of the runs that made the file:
``{"run": {"settings": ..., "provenance": ...}}``.
"""

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from flashdraft.bench.results import Measurement
from flashdraft.errors import DataError, UsageError
from flashdraft.whole_files import write_whole

_MEASUREMENT = TypeAdapter(Measurement)


@dataclass
class Results:
    """What one file or several hold."""

    runs: list[dict[str, Any]] = field(default_factory=list)  # {"settings": ..., "provenance": ...}
    measurements: list[Measurement] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, Any]:
        """Of the first run."""
        return dict(self.runs[0]["settings"]) if self.runs else {}


def rows_in(path: Path) -> Path:
    """The file of a folder, as it was written or packed; a file is itself."""
    if not path.is_dir():
        return path
    packed = path / "rows.jsonl.gz"
    return packed if packed.exists() else path / "rows.jsonl"


def read_rows(path: Path) -> Results:
    """``path`` may be packed (``.gz``). Raises DataError for a file that cannot be read or has another form.

    A last line without its end, left by a run that was cut off, is passed over.
    """
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); expected what flashdraft bench --out wrote: name its folder"
        ) from None
    results = Results()
    # Not by splitlines: texts of JSON may hold the other ends of lines that it knows.
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            if line.startswith('{"run"'):
                results.runs.append(json.loads(line)["run"])
            else:
                results.measurements.append(_MEASUREMENT.validate_json(line))
        except (ValidationError, ValueError) as error:
            said = str(error).splitlines()
            raise DataError(
                f"{path}, line {number} is no measurement ({' '.join(said[:3])}); expected the rows.jsonl of"
                " this version's bench: measure again"
            ) from None
    return results


def merged(parts: Sequence[Results]) -> Results:
    """Several files as one: runs of the same workload with other methods, tasks or concurrencies.

    Raises UsageError where an answer is in two of them, and where there is none at all.
    """
    seen: set[tuple[object, ...]] = set()
    for m in (m for part in parts for m in part.measurements):
        key = (m.task, m.concurrency, m.method, m.block_size, m.prompt_id, m.turn, m.repeat)
        if key in seen:
            name = f"{m.method} {m.block_size} on {m.prompt_id} at concurrency {m.concurrency}"
            raise UsageError(f"two files measured {name}; report each of them alone")
        seen.add(key)
    if not seen:
        raise UsageError("there are no measurements in these files; run bench first")
    runs = [run for part in parts for run in part.runs]
    return Results(runs, [m for part in parts for m in part.measurements])


def measurement_line(measurement: Measurement) -> str:
    """One answer as a line of the file."""
    return _MEASUREMENT.dump_json(measurement).decode() + "\n"


class RowsFile:
    """``path`` as a run writes it (None: kept in memory alone); what it holds already is in ``results``.

    Raises UsageError where the file was measured with other settings.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
        self.path = path
        self.results = read_rows(path) if path and path.exists() else Results()
        found, wanted = self.results.settings, json.loads(json.dumps(settings))
        if self.results.runs and found != wanted:
            names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
            told = ", ".join(f"{name} {found.get(name)!r} (now {wanted.get(name)!r})" for name in names)
            raise UsageError(f"{path} was measured with {told}; use the same settings or another --out")
        self.results.runs.append({"settings": wanted, "provenance": dict(provenance)})

    def start(self, kept: Sequence[Measurement]) -> None:
        """Write the file anew with what is ``kept`` of it: whole chunks, all runs above them."""
        self.results.measurements = list(kept)
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        runs = [json.dumps({"run": run}, ensure_ascii=False) + "\n" for run in self.results.runs]
        write_whole(self.path, "".join([*runs, *map(measurement_line, kept)]))

    def append(self, measurements: Sequence[Measurement]) -> None:
        """Add a chunk's answers, in one write."""
        self.results.measurements += measurements
        if self.path is None:
            return
        with self.path.open("a") as file:
            file.write("".join(map(measurement_line, measurements)))
