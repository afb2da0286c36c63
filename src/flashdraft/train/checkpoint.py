"""A run's state on disk, enough to go on as if it had never stopped, by as many processes as there are then.

``state.pt`` says where the run stands and names one file a process: the matrices that lay with it. Processes on
several hosts need a folder that all of them see.
"""

import zipfile
from pathlib import Path
from typing import Any

import torch

from flashdraft.errors import DataError
from flashdraft.train.ranks import Ranks
from flashdraft.whole_files import put_in_place

STATE_FILE = "state.pt"

State = dict[str, dict[str, Any]]  # what of a matrix -> its name -> tensors


def save_state(folder: Path, head: dict[str, Any], own: State, ranks: Ranks) -> None:
    """Write ``head``, which has the run's ``step``, and each process's ``own``.

    A crash leaves the old state or the new one.
    """
    names = [f"state-{head['step']}-{rank}-of-{ranks.count}.pt" for rank in range(ranks.count)]
    _write(folder / names[ranks.rank], own)
    ranks.wait()
    if ranks.is_first:
        _write(folder / STATE_FILE, head | {"parts": names})
        for file in folder.glob("state-*.pt"):
            if file.name not in names:
                file.unlink()
    ranks.wait()


def load_state(folder: Path) -> tuple[dict[str, Any], State] | None:
    """Head and all matrices of the last saved state; None when there is none.

    Tensors stay in their files until they are read. Raises DataError when a file cannot be read.
    """
    if not (folder / STATE_FILE).exists():
        return None
    head = _read(folder / STATE_FILE)
    state: State = {}
    for name in head.get("parts", ()):
        for what, matrices in _read(folder / name).items():
            state.setdefault(what, {}).update(matrices)
    return head, state


def _write(file: Path, content: dict[str, Any]) -> None:
    part = file.with_name(file.name + ".part")
    try:
        torch.save(content, part)
        put_in_place(part, file)
    except (OSError, RuntimeError) as error:  # torch's writer says RuntimeError of a full disk
        part.unlink(missing_ok=True)
        raise DataError(
            f"{file}: cannot be written ({str(error).splitlines()[0]}); make room and start again: the run goes on from"
            " its last saved state"
        ) from error


def _read(file: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(
            file
        ) as archive:  # torch's files carry checksums, which a memory map does not look at
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {damaged} is another")
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise DataError(
            f"{file}: cannot be read ({error}); delete {STATE_FILE} to start the run anew"
        ) from error
    return content
