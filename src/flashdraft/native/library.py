"""The C++ part: compiled once a machine, loaded by ctypes. Knows no tensor.

One source for three kinds of CPU (vectors.h); what this CPU can run first is compiled, or what the variable
``FLASHDRAFT_CPU_PATH`` names: avx512, avx2, neon, or pytorch for none. The compiled file lies in
``~/.cache/flashdraft`` (or ``$XDG_CACHE_HOME/flashdraft``) under the hash of its sources.
``python -m flashdraft.native.library`` compiles it ahead of time.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from flashdraft.errors import UsageError
from flashdraft.user_cache import cache_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CpuPath:
    """One way to compile the source."""

    name: str
    machines: tuple[str, ...]  # as platform.machine() says
    features: tuple[str, ...]  # that the CPU must have, by Linux's names
    options: tuple[str, ...]  # of the compiler


_X86, _ARM = ("x86_64",), ("aarch64", "arm64")
_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512_vnni", "fma", "f16c")
_AMX = ("-mamx-tile", "-mamx-bf16")  # of these instructions each is asked for before it is used
_AVX2 = ("avx2", "fma", "f16c")
PATHS = (  # the best first
    CpuPath(
        "avx512", _X86, _AVX512, (*("-m" + one.replace("_", "") for one in _AVX512), *_AMX, "-mtune=native")
    ),
    # In the order for Skylake's CPUs products of 16 bits run at full speed on others too.
    CpuPath("avx2", _X86, _AVX2, (*("-m" + one for one in _AVX2), "-mtune=skylake")),
    CpuPath("neon", _ARM, ("asimd", "asimddp"), ("-march=armv8.2-a+dotprod",)),
)
_NO_PATH, _SWITCH = "pytorch", "FLASHDRAFT_CPU_PATH"
# What is not exported is hidden: the loader would make the same name in two libraries of one process one thing.
_FLAGS = ("-std=c++20", "-O3", "-shared", "-fPIC", "-pthread", "-fvisibility=hidden")
_MAIN = "exports.cpp"
_FOLDER = Path(__file__).parent
_POINTER, _INT64 = ctypes.c_void_p, ctypes.c_int64


class LinearStruct(ctypes.Structure):
    """``Linear`` of linear.h."""

    _fields_ = (("tiles", _POINTER), ("n", _INT64), ("k", _INT64), ("kind", ctypes.c_int32))


class LayerStruct(ctypes.Structure):
    """``Layer`` of decoder.h."""

    _fields_ = (
        *(
            (name, LinearStruct)
            for name in ("qkv", "o", "gate_up", "down", "attention_kernels", "mlp_kernels")
        ),
        *((name, _POINTER) for name in ("input_norm", "post_norm", "q_norm", "k_norm")),
        *((name, _POINTER) for name in ("attention_base", "mlp_base")),
    )


class DecoderStruct(ctypes.Structure):
    """``Decoder`` of decoder.h."""

    _fields_ = (
        *((name, _POINTER) for name in ("layers", "final_norm", "cos", "sin")),
        *((name, _INT64) for name in ("num_layers", "hidden_size", "num_heads", "num_kv_heads")),
        *(
            (name, _INT64)
            for name in ("head_dim", "intermediate_size", "num_taps", "group_size", "num_kernels")
        ),
        ("eps", ctypes.c_double),
    )


class SelectorStruct(ctypes.Structure):
    """``Selector`` of selector.h."""

    _fields_ = (
        *((name, _POINTER) for name in ("predecessors", "successors", "projection")),
        *((name, _INT64) for name in ("hidden_size", "rank")),
    )


class KVStruct(ctypes.Structure):
    """``KVStorage`` of attention.h."""

    _fields_ = (
        *((name, _POINTER) for name in ("keys", "values")),
        *((name, _INT64) for name in ("layer", "row", "token", "head")),
        ("pages", _POINTER),
        *((name, _INT64) for name in ("num_pages", "page_size")),
    )


class BatchStruct(ctypes.Structure):
    """``Batch`` of decoder.h."""

    _fields_ = (
        *((name, _INT64) for name in ("num_rows", "width")),
        ("is_causal", ctypes.c_bool),
        *((name, _POINTER) for name in ("positions", "slots", "ends", "paths")),
        ("depth", _INT64),
        ("windows", _POINTER),
        ("kv", KVStruct),
    )


def library() -> ctypes.CDLL | None:
    """The compiled functions, or None, with one line in the log, where they cannot be had.

    Raises UsageError where FLASHDRAFT_CPU_PATH names what is not known or what this CPU cannot run.
    """
    return _library(os.environ.get(_SWITCH, ""))


@cache
def _library(wanted: str) -> ctypes.CDLL | None:
    if wanted == _NO_PATH:
        return None
    path, reason = _chosen(wanted), _why_not()
    if path and _compiler() is None and not _place(path).exists():
        reason = "there is no C++ compiler (Debian, Ubuntu: apt-get install g++)"
    if path and reason is None:
        try:
            return _loaded(path, _place(path))
        except (OSError, AttributeError, subprocess.SubprocessError) as error:
            reason = f"the C++ part did not compile or load ({_last_words(error)})"
    logger.warning("plain PyTorch is used instead of the fast CPU path: %s", reason)
    return None


def build_name() -> str:
    """Which compiled file :func:`library` gives, its sources' hash included; pytorch where it gives none."""
    if library() is None:
        return _NO_PATH
    path = _chosen(os.environ.get(_SWITCH, ""))
    return _place(path).stem if path else _NO_PATH


def runnable_paths() -> list[CpuPath]:
    """What this CPU can run, the best first."""
    features = _cpu_features()
    return [one for one in PATHS if platform.machine() in one.machines and features.issuperset(one.features)]


def _chosen(wanted: str) -> CpuPath | None:
    runnable = {one.name: one for one in runnable_paths()}
    if not wanted:
        return next(iter(runnable.values()), None)
    if wanted not in runnable:
        raise UsageError(
            f"{_SWITCH} is {wanted!r}; expected what this CPU can run: {', '.join([*runnable, _NO_PATH])}"
        )
    return runnable[wanted]


def _cpu_features() -> set[str]:
    if platform.system() == "Linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return set(next((line for line in lines if line.startswith(("flags", "Features"))), "").split())
    if platform.system() != "Darwin":
        return set()
    if platform.machine() == "arm64":
        return {"asimd", "asimddp"}  # from the first of these CPUs on
    command = ["sysctl", "-n", "machdep.cpu.features", "machdep.cpu.leaf7_features"]
    return set(subprocess.run(command, capture_output=True, text=True, check=False).stdout.lower().split())


def _why_not() -> str | None:
    """Why this machine can run none of the paths, or None."""
    system, machine = platform.system(), platform.machine()
    if system not in ("Linux", "Darwin"):
        return f"it is written for Linux and macOS, this is {system} (under WSL it is Linux)"
    paths = [one for one in PATHS if machine in one.machines]
    if not paths:
        return f"it is written for x86_64 and ARM of 64 bits, this is {machine}"
    if missing := [name for name in paths[-1].features if name not in _cpu_features()]:
        return f"this CPU has no {', '.join(missing)}"
    return None


def _last_words(error: Exception) -> str:
    if not isinstance(error, subprocess.CalledProcessError):
        return str(error).splitlines()[-1]
    said = (error.stderr or "").strip().splitlines()
    return said[-1] if said else f"{error.cmd[0]} ended with code {error.returncode} and said nothing"


def _compiler() -> str | None:
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


def _place(path: CpuPath) -> Path:
    digest = hashlib.sha256(" ".join(_FLAGS + path.options).encode())
    for source in sorted((*_FOLDER.glob("*.h"), *_FOLDER.glob("*.cpp"))):
        digest.update(source.read_bytes())
    return cache_folder() / f"native-{path.name}-{digest.hexdigest()[:16]}.so"


def _loaded(path: CpuPath, place: Path) -> ctypes.CDLL:
    """The functions of the file ``place``, compiled anew where it is not what was compiled here."""
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not _is_ours(place.parent):
        raise PermissionError(
            f"{place.parent} can be written by others: chmod go-w it, or set XDG_CACHE_HOME"
        )
    if not _is_whole(place):
        compile_to(path, place)
        _digest_file(place).write_text(_digest(place))
    return declare(ctypes.CDLL(str(place)))


def _is_whole(place: Path) -> bool:
    """Whether it is ours and as it was compiled: code that another has written, or that was cut off, is not loaded."""
    try:
        return _is_ours(place) and _digest_file(place).read_text() == _digest(place)
    except FileNotFoundError:
        return False


def _is_ours(place: Path) -> bool:
    status = place.stat()
    return status.st_uid in (0, os.getuid()) and not status.st_mode & 0o022


def _digest(place: Path) -> str:
    return hashlib.sha256(place.read_bytes()).hexdigest()


def _digest_file(place: Path) -> Path:
    return place.with_suffix(".sha256")


def compile_to(path: CpuPath, place: Path, *more: str) -> None:
    """Compile the sources to the file ``place``; ``more``: further options of the compiler, which there must be."""
    compiler = _compiler()
    assert compiler is not None
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Under another name until it is whole: several processes may start at once.
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        made = Path(folder) / place.name
        command = [compiler, *_FLAGS, *path.options, *more, str(_FOLDER / _MAIN), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        made.chmod(0o755)
        made.replace(place)


def declare(lib: ctypes.CDLL) -> ctypes.CDLL:
    """``lib`` with the types of its functions."""
    structs = {
        "decoder_forward": (DecoderStruct, BatchStruct),
        "decoder_greedy": (DecoderStruct, BatchStruct),
        "decoder_draft": (DecoderStruct, BatchStruct),
        "decoder_context": (DecoderStruct, BatchStruct, LinearStruct),
        "linear": (LinearStruct,),
        "linear_argmax": (LinearStruct,),
        "linear_likeliest": (LinearStruct,),
        "selector_pairs": (SelectorStruct,),
    }
    lib.matrix_units.argtypes, lib.matrix_units.restype = (), ctypes.c_bool
    lib.byte_kind.argtypes, lib.byte_kind.restype = (), ctypes.c_int32
    lib.bf16_kind.argtypes, lib.bf16_kind.restype = (), ctypes.c_int32
    forward = *(_POINTER,) * 5, _INT64
    rest = {
        "decoder_forward": (*forward, ctypes.c_int),
        "decoder_greedy": (*forward, ctypes.POINTER(LinearStruct), _POINTER, ctypes.c_int),
        "decoder_draft": (
            *(_POINTER, ctypes.POINTER(LinearStruct), _POINTER, _INT64, _POINTER, _POINTER),
            *(ctypes.POINTER(SelectorStruct), _POINTER, _INT64, _POINTER, _POINTER, ctypes.c_int),
        ),
        "decoder_context": (_POINTER, _POINTER, ctypes.c_int),
        "linear": (_POINTER, _INT64, _POINTER, ctypes.c_int),
        "linear_argmax": (_POINTER, _INT64, _POINTER, ctypes.c_int),
        "linear_likeliest": (_POINTER, _INT64, _INT64, _POINTER, _POINTER, ctypes.c_int),
        "selector_pairs": (_POINTER, _POINTER, _POINTER, _INT64, _INT64, _INT64, _POINTER),
    }
    for name, pointed in structs.items():
        function = getattr(lib, name)
        function.argtypes = (*map(ctypes.POINTER, pointed), *rest[name])
        function.restype = None
    return lib


if __name__ == "__main__":
    logging.basicConfig(format="flashdraft: %(message)s")
    library()
