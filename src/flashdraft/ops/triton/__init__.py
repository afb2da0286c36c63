"""Kernels in Triton. Each module names the PyTorch function that it stands for; tests/kernels compares them."""

import os
from importlib.util import find_spec

import torch


def runs_on(device: torch.device) -> bool:
    """Whether kernels run there: on a GPU, or on a CPU in Triton's interpreter, as the tests do it."""
    is_there = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    return is_there and find_spec("triton") is not None
