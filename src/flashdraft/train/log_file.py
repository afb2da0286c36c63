"""A run's log.jsonl: one line for every reading of the loss and every evaluation, and its copy for TensorBoard."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from flashdraft.errors import DataError, UsageError
from flashdraft.whole_files import write_whole

LOG_FILE = "log.jsonl"

Line = dict[str, Any]


def append_line(folder: Path, line: Line) -> None:
    """Add one line to the log of the run in ``folder``."""
    with (folder / LOG_FILE).open("a") as log:
        log.write(json.dumps(line) + "\n")


def cut_log(folder: Path, step: int) -> None:
    """Drop what a run that was killed had written after ``step``, its last saved one: it will be written again.

    ``step`` 0: nothing was saved. Raises DataError for a line that is none of a log's; one that the end cut off is
    later than every saved step.
    """
    file = folder / LOG_FILE
    if not step:
        file.unlink(missing_ok=True)
    elif file.exists():
        text = file.read_text(errors="replace")
        whole = text[: text.rfind("\n") + 1].splitlines()
        kept = [line for number, line in enumerate(whole, 1) if _parsed(file, number, line)["step"] <= step]
        write_whole(file, "".join(f"{line}\n" for line in kept))


def read_log(run: Path) -> list[Line]:
    """The log of a run's folder, or a log file itself. Raises DataError when there is none or it is no such log."""
    file = run / LOG_FILE if run.is_dir() else run
    if not file.exists():
        raise DataError(
            f"{file}: not found; expected the folder of a `flashdraft train` run, or its {LOG_FILE}"
        )
    lines = file.read_text(errors="replace").splitlines()
    return [_parsed(file, number, text) for number, text in enumerate(lines, 1)]


def _parsed(file: Path, number: int, text: str) -> Line:
    try:
        line: Line = json.loads(text)
        line["step"], line["blocks"], line["elapsed_s"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}, line {number}: not a line of a training log ({error!r}); delete it, or name another file"
        ) from error
    return line


def numbers_of(line: Line) -> dict[str, float]:
    """The numbers that a line tells, nested names joined by slashes; without where the run stood."""
    found: dict[str, float] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, one in value.items():
                walk(f"{name}/{key}" if name else key, one)
        elif isinstance(value, list):
            for place, one in enumerate(value, 1):
                walk(f"{name}/{place}", one)
        elif isinstance(value, int | float):
            found[name] = float(value)

    walk("", {key: value for key, value in line.items() if key not in ("step", "blocks", "elapsed_s")})
    return found


@contextmanager
def tensorboard_log(folder: Path) -> Iterator[Callable[[Line], None]]:
    """What writes each line into ``folder``/tensorboard, by blocks trained on. Raises UsageError without tensorboardX.

    tensorboardX writes the files and asks for protobuf alone; ``torch.utils.tensorboard`` would ask for all of
    TensorBoard, gRPC included, on every machine that trains.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "--tensorboard needs the package tensorboardX; install it: pip install tensorboardX"
        ) from error
    with SummaryWriter(str(folder / "tensorboard"), flush_secs=5) as writer:

        def write(line: Line) -> None:
            for name, value in numbers_of(line).items() if "blocks" in line else ():
                writer.add_scalar(name, value, line["blocks"])

        yield write


@contextmanager
def tracker_log(package: str, project: str, folder: Path) -> Iterator[Callable[[Line], None]]:
    """What tells each line to a tracker, "wandb" or "trackio" (which has wandb's calls), by blocks trained on.

    A run is named as ``folder``. Raises UsageError without the package.
    """
    try:
        tracker = import_module(package)
    except ImportError as error:
        raise UsageError(
            f"--{package} needs the package {package}; install it: pip install {package}"
        ) from error
    is_wandb = package == "wandb"
    own = {"dir": str(folder)} if is_wandb else {}
    run = tracker.init(project=project, name=folder.resolve().name, **own)
    if is_wandb:
        run.define_metric("*", step_metric="blocks")

    def tell(line: Line) -> None:
        if "blocks" in line:
            tracker.log(numbers_of(line) | {"blocks": line["blocks"]})

    try:
        yield tell
    finally:
        tracker.finish()
