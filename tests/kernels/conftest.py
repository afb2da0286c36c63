"""Kernels on a CPU: Triton's interpreter, with the rounding that GPUs have.

The interpreter is chosen for a whole process (TRITON_INTERPRET=1), and its package is not in the environment of all
other tests: `make test` runs this folder by itself. Without the variable there is nothing to collect here.
"""

import os

import numpy as np
import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    import triton.language as tl
    from triton.runtime import interpreter

    _convert = interpreter._convert_float
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


@pytest.fixture(autouse=True)
def rounding(monkeypatch):
    """In force for every test of this folder."""
    monkeypatch.setattr(interpreter, "_convert_float", _as_on_gpus)
