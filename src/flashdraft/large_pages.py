"""CPU memory in large pages, for what a step reads all of: small ones would cost a walk through the tables each."""

import mmap
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor


def zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor of zeros, in pages as large as the system grants; elsewhere than on Linux in common ones.

    Its memory is taken when it is first written to.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE") or not prod(shape):
        return torch.zeros(shape, dtype=dtype)
    memory = mmap.mmap(-1, prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(*shape)
