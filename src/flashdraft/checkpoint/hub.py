"""From what the user names to files on this machine: a local path as it is, a hub name by download."""

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

from flashdraft.errors import CheckpointError

CONFIGS = ("*.json", "*.jinja")
ALL = (*CONFIGS, "*.safetensors")
_HUB_NAME = re.compile(r"([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?")


def locate(path_or_name: str | Path, wanted: Sequence[str] = ALL) -> Path:
    """A local file or folder, or the local copy of a hub model's ``wanted`` files.

    ``name@revision``: that branch, tag or commit of the hub model.

    Raises CheckpointError when there is no such path and a hub does not give the model either.
    """
    path = Path(path_or_name).expanduser()
    if path.exists():
        return path
    name = str(path_or_name)
    mend = "download the model elsewhere and give its local folder"
    hub_name = _HUB_NAME.fullmatch(name)
    if not hub_name or name.startswith(".") or name.endswith(".gguf"):
        raise CheckpointError(f"{name} does not exist; expected a folder, a .gguf file or a hub name: {mend}")
    try:
        return Path(snapshot_download(hub_name[1], revision=hub_name[2], allow_patterns=list(wanted)))
    except (HTTPError, HFValidationError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{name!r} is no local path, and no hub gave a model of that name ({reason}); check the name,"
            f" or {mend}"
        ) from error
