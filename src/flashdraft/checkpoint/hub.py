"""From what the user names to files on this machine: a local path as it is, a hub name by download."""

import re
from pathlib import Path

from flashdraft.errors import CheckpointError

_HUB_NAME = re.compile(r"([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?(?::([\w.-]+))?")
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


def locate(path_or_name: str | Path, weights: bool = True) -> Path:
    """A local file or folder, or the local copy of a hub model's configs and tokenizer, with its ``weights`` or not.

    ``name@revision``: that branch, tag or commit of the hub model. Of a repository of GGUF files one is taken:
    ``name:Q4_K_M`` says which; it is fetched whole, as it has config and weights in one.

    Raises CheckpointError when there is no such path and a hub does not give the model either.
    """
    path, name = Path(path_or_name).expanduser(), str(path_or_name)
    if path.exists():
        return path
    check_exists(path_or_name)
    from flashdraft.checkpoint.hub_files import fetch

    hub_name = _HUB_NAME.fullmatch(name)
    assert hub_name
    repo, revision, kind = hub_name.groups()
    return fetch(repo, revision, kind, weights)
