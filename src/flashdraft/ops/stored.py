"""Linear maps whose weights lie elsewhere than in memory."""

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StoredLinear(nn.Module):
    """A linear map without bias whose ``weight`` is read at every use, for what holds it in a form of its own.

    ``read`` brings [out_features, in_features], of ``shape``, as the type asked for.
    """

    bias = None

    def __init__(
        self, read: Callable[[torch.dtype], Tensor], shape: tuple[int, int], dtype: torch.dtype
    ) -> None:
        super().__init__()
        self._read, self._dtype = read, dtype
        self.out_features, self.in_features = shape

    @property
    def weight(self) -> Tensor:
        """[out_features, in_features]; raises what reading it does."""
        return self._read(self._dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._dtype = fn(torch.empty(0, dtype=self._dtype)).dtype
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call,no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        return F.linear(x, self.weight)
