"""What of a hub's repository is fetched: what is read, configs and tokenizer first.

So all that they tell can be refused before any weight is asked for; the weights are those that the index names, and
their size is told beforehand.
"""

import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
)

from flashdraft.checkpoint.gguf import ARCHITECTURES
from flashdraft.checkpoint.safetensors import INDEX, SINGLE, shard_names
from flashdraft.errors import CheckpointError

_CONFIGS = ("*.json", "*.jinja")
_PREFERRED = "Q4_K_M"  # of a repository's GGUF files, where none is named: llama.cpp's choice too
_PART = re.compile(r"-(\d{5})-of-\d{5}\.gguf", re.IGNORECASE)


def fetch(repo: str, revision: str | None, kind: str | None, weights: bool) -> Path:
    """The local copy of a repository's configs and tokenizer, with its ``weights`` or not; of GGUF files one, whole.

    Raises CheckpointError where the hub does not give it.
    """
    with _refusals_told(repo):
        if kind is None:
            folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(_CONFIGS)))
            if (folder / "config.json").is_file():
                return _with_weights(folder, repo, revision) if weights else folder
        return _gguf_file(repo, revision, kind)


def _with_weights(folder: Path, repo: str, revision: str | None) -> Path:
    names = shard_names(folder) if (folder / INDEX).is_file() else [SINGLE]
    return _fetch(repo, revision, [*_CONFIGS, *names])


def _gguf_file(repo: str, revision: str | None, kind: str | None) -> Path:
    """The GGUF of ``kind`` of a repository, its first part where it is cut. Raises CheckpointError for none."""
    if constants.HF_HUB_OFFLINE:  # no list of files but the one on this machine
        folder = Path(snapshot_download(repo, revision=revision))
        names = [file.relative_to(folder).as_posix() for file in folder.rglob("*")]
        architecture = None
    else:
        info = HfApi().model_info(repo, revision=revision)
        names, architecture = (
            [one.rfilename for one in info.siblings or ()],
            (info.gguf or {}).get("architecture"),
        )
    ggufs = sorted(n for n in names if n.lower().endswith(".gguf") and "mmproj" not in n.lower())
    if not ggufs:
        raise CheckpointError(
            f"{repo} has neither a config.json nor a .gguf file (found: {', '.join(sorted(names)[:6]) or 'nothing'});"
            " expected a checkpoint in transformers' layout or GGUF"
        )
    if architecture is not None and architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{repo} holds GGUF files of architecture {architecture!r}; expected one of {', '.join(ARCHITECTURES)}:"
            " give the model as a Hugging Face folder"
        )
    whole = [n for n in ggufs if not _PART.search(n) or _PART.search(n)[1] == "00001"]  # type: ignore[index]
    wanted = _PREFERRED if kind is None else kind
    fitting = [
        n
        for n in whole
        if re.search(rf"(?<![A-Za-z0-9]){re.escape(wanted)}(?![A-Za-z0-9_])", n, re.IGNORECASE)
    ]
    if kind is None and len(whole) == 1:
        fitting = whole
    if len(fitting) != 1:
        raise CheckpointError(
            f"{repo} has {len(fitting)} GGUF files of kind {wanted}; expected one: name it, {repo}:KIND, of"
            f" {', '.join(whole[:20])}"
        )
    first = fitting[0]
    stem = _PART.sub("", first)
    parts = [n for n in ggufs if n == first or (_PART.search(n) and _PART.sub("", n) == stem)]
    return _fetch(repo, revision, parts) / first


def _fetch(repo: str, revision: str | None, names: Sequence[str]) -> Path:
    """The snapshot with the files ``names``; their size is told, and compared with the disk's room, first."""
    if not constants.HF_HUB_OFFLINE:
        files = snapshot_download(repo, revision=revision, allow_patterns=list(names), dry_run=True)
        missing = [file for file in files if not isinstance(file, str) and file.will_download]
        size = sum(file.file_size or 0 for file in missing)
        cache = Path(constants.HF_HUB_CACHE)
        room = shutil.disk_usage(next(one for one in (cache, *cache.parents) if one.exists())).free
        if size > room:
            raise CheckpointError(
                f"{repo} takes {size / 1e9:.1f} GB more, and {cache} has room for {room / 1e9:.1f} GB: make room, or"
                " set HF_HOME to another disk"
            )
        if missing:
            sys.stderr.write(f"{repo}: fetching {len(missing)} files, {size / 1e9:.2f} GB, to {cache}\n")
    return Path(snapshot_download(repo, revision=revision, allow_patterns=list(names)))


@contextmanager
def _refusals_told(repo: str) -> Iterator[None]:
    try:
        yield
    except GatedRepoError as error:
        raise CheckpointError(
            f"{repo!r} is gated: {_sentence(error)}; ask for access at {constants.ENDPOINT}/{repo}, then log in"
            " (hf auth login) or set HF_TOKEN"
        ) from error
    except LocalEntryNotFoundError as error:  # its text is for who calls the library
        raise CheckpointError(
            f"{repo!r} is no local path, and no hub could be asked for it ({_sentence(error.__cause__ or error)});"
            " check the name and the connection, or download the model elsewhere and give its local folder"
        ) from error
    except (HTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(
            f"{repo!r} is no local path, and no hub gave a model of that name ({_sentence(error)}); check the name, or"
            " download the model elsewhere and give its local folder"
        ) from error


def _sentence(error: BaseException) -> str:
    """What the hub says to people, without the line that is for programs."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not re.match(r"\d{3} Client Error|.*for url", line)]
    return " ".join(told or lines[:1] or [type(error).__name__]).rstrip(".")
