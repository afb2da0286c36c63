"""DFlash 2's candidate selector as one call (selector.h)."""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from flashdraft.native.library import SelectorStruct

_LANES = 16  # floats of a vector


class NativeSelector:
    """A selector that was frozen: its codebooks [vocab_size, rank] and its projection [rank, hidden_size]."""

    def __init__(self, library: ctypes.CDLL, frozen: tuple[Tensor, Tensor, Tensor]) -> None:
        predecessors, successors, projection = frozen
        tables = [one.detach().float() for one in (predecessors, successors, projection.T)]
        if missing := -len(projection) % _LANES:  # ranks of zeros add nothing
            tables = [F.pad(one, (0, missing)) for one in tables]
        self._library = library
        self._kept = [one.contiguous() for one in tables]  # what the struct points to
        self.struct = SelectorStruct(*(one.data_ptr() for one in self._kept), *self._kept[-1].shape)

    def pairs(self, hidden: Tensor, anchors: Tensor, candidates: Tensor) -> Tensor:
        """Scores of slots' candidates behind each one before, float32 [rows, slots, count, count].

        ``hidden`` [rows, slots, hidden_size] bfloat16, ``candidates`` [rows, slots, count]. Behind each row's anchor,
        [rows], there is one row of scores, repeated.
        """
        given = hidden.contiguous(), anchors.contiguous(), candidates.contiguous()
        out = torch.empty(*candidates.shape, candidates.shape[-1])
        pointers = (tensor.data_ptr() for tensor in given)
        self._library.selector_pairs(self.struct, *pointers, *candidates.shape, out.data_ptr())
        return out
