"""Files that are there whole or not at all, whatever happens to the machine while they are written."""

import os
from pathlib import Path


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
