"""Files that are there whole or not at all, whatever happens to the machine while they are written."""

import os
from pathlib import Path


def write_whole(file: Path, content: str | bytes) -> None:
    """Write ``file``; one that was there is replaced when all of the new one is on the disk, and kept otherwise.

    Raises OSError, with the file's name.
    """
    part = file.with_name(f"{file.name}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        put_in_place(part, file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(file)) from error


def put_in_place(part: Path, file: Path) -> None:
    """Give the written ``part`` its name, ``file``: on the disk before it is renamed, and the renaming too.

    Without, a machine that loses its power may keep the new name and not what was written.
    """
    _sync(part)
    os.replace(part, file)
    _sync(file.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
