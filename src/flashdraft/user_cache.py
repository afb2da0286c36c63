"""Where this user's files lie that can be made anew: compiled code, measured costs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``~/.cache/flashdraft``, or ``flashdraft`` in ``$XDG_CACHE_HOME``. It need not be there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flashdraft"
