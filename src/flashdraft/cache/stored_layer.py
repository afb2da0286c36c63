"""Keys and values as the C++ part finds them: memory that is addressed by slot."""

from array import array
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class PageTable:
    """Which pages hold each row's tokens."""

    pages: "array[int]"  # "i", [rows, width]
    width: int
    page_size: int  # tokens


class StoredLayer(Protocol):
    """One layer's keys and values. Layers lie at equal distances."""

    k: Tensor
    v: Tensor
    token_dim: int  # of k and v [rows, ..., head_dim]: 1 or 2; the other one is the heads'
    table: PageTable | None  # of rows that lie in pages along token_dim, where k and v have one row
