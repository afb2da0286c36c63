"""Kernels on a CPU: Triton's interpreter, with the bfloat16 that GPUs have.

The interpreter is chosen for a whole process (TRITON_INTERPRET=1), and its package is not in the environment of all
other tests: `make test` runs this folder by itself. Without the variable the tests run on a GPU, or not at all.
"""

import inspect
import os

import numpy as np
import pytest
import torch

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if IS_INTERPRETED:
    import triton.language as tl
    from triton.runtime import interpreter

    _convert, _dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot
    _patch = interpreter._patch_builtin
    _a_builtin = {}  # of each package, the name of one
elif (
    torch.cuda.is_available()
):  # these give kernels tensors of a CPU; there benchmarks/gpu_kernels.py checks them
    collect_ignore_glob = ["test_experts_kernel.py", "test_fused_ops.py", "test_gated_delta.py"]
else:
    collect_ignore_glob = ["test_*.py"]


def _as_on_gpus(x, from_dtype, to_dtype, rounding):
    """float32 to bfloat16 by rounding to the nearest, ties to even; the interpreter cuts the last bits off."""
    if (from_dtype, to_dtype) == (tl.float32, tl.bfloat16):
        numbers = torch.from_numpy(np.array(x).view(np.float32))
        return numbers.bfloat16().view(torch.int16).numpy().view(np.uint16)
    if (from_dtype, to_dtype) == (tl.bfloat16, tl.float32):  # as the interpreter does it, in less time
        return np.asarray(x).astype(np.uint32) << 16
    return _convert(x, from_dtype, to_dtype, rounding)


def _dot_of_numbers(self, a, b, *rest):
    """tl.dot with bfloat16 widened first; the interpreter multiplies their bits as if they were integers."""
    a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
    return _dot(self, a, b, *rest)


def _patch_once(package, *rest):
    """A package as it is for a launch; the interpreter goes through all of it again in each function called there."""
    if package not in _a_builtin:
        members = inspect.getmembers(package)
        _a_builtin[package] = next((name for name, member in members if tl.core.is_builtin(member)), None)
    name = _a_builtin[package]
    if name and tl.core.is_builtin(getattr(package, name)):
        _patch(package, *rest)


@pytest.fixture(autouse=True)
def patched_once(monkeypatch):
    """Half of the time of every test of this folder."""
    if not IS_INTERPRETED:
        return
    monkeypatch.setattr(interpreter, "_patch_builtin", _patch_once)


@pytest.fixture(autouse=True)
def bfloat16(monkeypatch):
    """In force for every test of this folder, where there is no GPU."""
    if not IS_INTERPRETED:
        return
    monkeypatch.setattr(interpreter, "_convert_float", _as_on_gpus)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", _dot_of_numbers)
