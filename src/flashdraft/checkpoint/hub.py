"""From what the user names to files on this machine: a local path as it is, a hub name by download."""

import re
from collections.abc import Sequence
from pathlib import Path

from flashdraft.errors import CheckpointError

CONFIGS = ("*.json", "*.jinja")
ALL = (*CONFIGS, "*.safetensors")
_HUB_NAME = re.compile(r"([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?")
_MEND = "download the model elsewhere and give its local folder"


def check_exists(path_or_name: str | Path) -> None:
    """Raise CheckpointError for what is neither a path that exists nor can be a hub name; asks no hub."""
    name = str(path_or_name)
    if Path(path_or_name).expanduser().exists():
        return
    if not _HUB_NAME.fullmatch(name) or name.startswith(".") or name.endswith(".gguf"):
        raise CheckpointError(
            f"{name} does not exist; expected a folder, a .gguf file or a hub name: {_MEND}"
        )


def locate(path_or_name: str | Path, wanted: Sequence[str] = ALL) -> Path:
    """A local file or folder, or the local copy of a hub model's ``wanted`` files.

    ``name@revision``: that branch, tag or commit of the hub model.

    Raises CheckpointError when there is no such path and a hub does not give the model either.
    """
    path, name = Path(path_or_name).expanduser(), str(path_or_name)
    if path.exists():
        return path
    check_exists(path_or_name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

    hub_name = _HUB_NAME.fullmatch(name)
    assert hub_name
    try:
        return Path(snapshot_download(hub_name[1], revision=hub_name[2], allow_patterns=list(wanted)))
    except (HTTPError, HFValidationError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{name!r} is no local path, and no hub gave a model of that name ({reason}); check the name,"
            f" or {_MEND}"
        ) from error
