"""Where a number comes from: commit, versions, device, command line. Written beside every result."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("flashdraft", "torch", "transformers")
_GIT_TIMEOUT_S = 10


def collect_provenance(device: str = "cpu") -> dict[str, Any]:
    """What has to be known to repeat a measurement on ``device``, ready for JSON. Never fails.

    ``git_sha`` and ``git_dirty`` are None where the package does not run from its own git checkout; the environment's
    FLASHDRAFT_COMMIT then tells of which commit it is a copy.
    """
    git_sha, git_dirty = git_state(Path(__file__).parent)
    git_sha = git_sha or os.environ.get("FLASHDRAFT_COMMIT")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "git_sha": git_sha,
        "git_dirty": git_dirty,
        "versions": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "platform": platform.platform(),
        "device": device,
        "device_name": device_name(device),
        "num_threads": _num_threads(),
    }


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """Commit, and whether tracked files differ from it; (None, None) unless git tracks files in ``folder``.

    The last condition keeps an installed copy from taking the commit of the checkout its environment is in.
    """
    sha = _git(folder, "rev-parse", "HEAD")
    if not sha or not _git(folder, "ls-files", "."):
        return None, None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return sha, None if changes is None else bool(changes)


def _git(folder: Path, *args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *args],
            capture_output=True,
            text=True,
            check=True,
            timeout=_GIT_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def device_name(device: str) -> str:
    """What the maker calls the GPU or the CPU that ``device`` is."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _num_threads() -> int | None:
    # Asked only when torch runs already: nothing here is worth loading it.
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else os.cpu_count()
