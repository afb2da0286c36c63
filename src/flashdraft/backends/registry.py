"""Which backends there are, the fastest first. A new one is a line here."""

from importlib import import_module
from typing import TYPE_CHECKING

from flashdraft.errors import UsageError

if TYPE_CHECKING:  # the command line's help has the names, and does not wait for PyTorch
    from flashdraft.backends.base import Backend
    from flashdraft.models.base import TargetModel

AUTO_BACKEND = "auto"
# Name -> where its class is: a backend's own libraries are imported with it.
BACKENDS = {
    "cuda": ("flashdraft.backends.cuda", "CudaBackend"),
    "graphs": ("flashdraft.backends.graphs", "GraphBackend"),
    "native": ("flashdraft.backends.native", "NativeBackend"),
    "eager": ("flashdraft.backends.eager", "EagerBackend"),
}


def choose_backend(name: str, target: "TargetModel") -> "type[Backend]":
    """The backend called ``name``, or with "auto" the first that can run ``target``.

    Raises UsageError for one that is unknown or cannot.
    """
    check_backend(name)
    reasons = {}
    for known in BACKENDS if name == AUTO_BACKEND else [name]:
        found = _why_not(known, target)
        if isinstance(found, type):
            return found
        reasons[known] = found
    raise UsageError(
        f"attention backend {name} cannot run this target: {reasons[name]}; leave it out, and the fastest that can is"
        " taken"
    )


def check_backend(name: str) -> None:
    """Raises UsageError for a name that is unknown."""
    if name != AUTO_BACKEND and name not in BACKENDS:
        raise UsageError(
            f"attention backend is {name!r}; expected {AUTO_BACKEND} or one of: {', '.join(BACKENDS)}"
        )


def _why_not(name: str, target: "TargetModel") -> "type[Backend] | str":
    """The class, or why it cannot run ``target``."""
    from flashdraft.ops.triton import runs_on

    if name == "cuda" and not runs_on(target.device):
        return f"no kernels run on {target.device}"  # Triton need not be there
    module, class_name = BACKENDS[name]
    backend: type[Backend] = getattr(import_module(module), class_name)
    return backend.why_not(target) or backend
