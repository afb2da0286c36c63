"""A run's state on disk, enough to go on as if it had never stopped."""

import os
from pathlib import Path
from typing import Any

import torch

from flashdraft.errors import DataError

STATE_FILE = "state.pt"


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, lists, dicts) so that a crash leaves the old one or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / (STATE_FILE + ".part")
    torch.save(state, part)
    os.replace(part, folder / STATE_FILE)


def load_state(folder: Path) -> dict[str, Any] | None:
    """The last saved state; None when there is none. Raises DataError when it cannot be read."""
    file = folder / STATE_FILE
    if not file.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(f"{file}: cannot be read ({error}); delete it to start the run anew") from error
    return state
