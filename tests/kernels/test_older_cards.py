"""Kernels are compiled for cards before Hopper, which none of the other tests do: these need no card."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

COMPILED = """
import sys
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

class Card:
    get_current_device = get_current_stream = lambda self, *_: 0
    get_current_target = lambda self: GPUTarget("cuda", int(sys.argv[1]), 32)
    get_active_torch_device = lambda self: torch.device("cpu")

driver.set_active(Card())
JITFunction.__getitem__ = lambda self, grid: lambda *args, **named: self.warmup(*args, grid=grid, **named)
from flashdraft.ops.quantized import QuantizedWeight
from flashdraft.ops.triton import linear
from flashdraft.ops.triton.tiling import Tiling

settings = linear.settings
linear.settings = lambda weight: settings(weight) | {"by_ptx": True}
scales = torch.ones(2, 64)
weight = QuantizedWeight(torch.zeros(64, 64, dtype=torch.int16), scales, scales, torch.bfloat16, torch.bfloat16)
linear.few_tokens_linear(torch.zeros(1, 256, dtype=torch.bfloat16), weight, Tiling(16, 256, 2, 1, 8))
"""


@pytest.mark.parametrize("capability", ["80", "89"])
def test_products_with_codes_are_compiled_for_cards_before_hopper(capability, tmp_path):
    """Ampere and Ada have no difference and no product of bfloat16 alone."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", COMPILED, capability], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
