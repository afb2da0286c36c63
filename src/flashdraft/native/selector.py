"""DFlash 2's candidate selector as one call (selector.h)."""

import ctypes

import torch
from torch import Tensor

from flashdraft.native.library import SelectorStruct


class NativeSelector:
    """A selector that was frozen: its codebooks [vocab_size, rank] and its projection [rank, hidden_size]."""

    def __init__(self, library: ctypes.CDLL, frozen: tuple[Tensor, Tensor, Tensor]) -> None:
        predecessors, successors, projection = frozen
        tables = (predecessors, successors, projection.T)
        self._library = library
        self._kept = [table.detach().float().contiguous() for table in tables]  # what the struct points to
        self._struct = SelectorStruct(*(table.data_ptr() for table in self._kept), *projection.T.shape)

    def pairs(self, hidden: Tensor, anchors: Tensor, candidates: Tensor) -> Tensor:
        """Scores of slots' candidates behind each one before, float32 [rows, slots, count, count].

        ``hidden`` [rows, slots, hidden_size] bfloat16, ``candidates`` [rows, slots, count]. Behind each row's anchor,
        [rows], there is one row of scores, repeated.
        """
        given = hidden.contiguous(), anchors.contiguous(), candidates.contiguous()
        out = torch.empty(*candidates.shape, candidates.shape[-1])
        pointers = (tensor.data_ptr() for tensor in given)
        self._library.selector_pairs(self._struct, *pointers, *candidates.shape, out.data_ptr())
        return out
