"""Decoder layers as one C++ call that reads pages where they lie, on CPUs that have it: see models/accelerate.py."""

from typing import Any

from flashdraft.backends.base import Room, paged_storage
from flashdraft.backends.eager import EagerBackend
from flashdraft.cache.paged_kv_cache import GatheredRows, PagedKVCache
from flashdraft.cache.paged_rows import PagedRows
from flashdraft.models.base import TargetModel


class NativeBackend(EagerBackend):
    """The same steps; what differs is where keys and values lie, and that padding is not computed."""

    is_ragged = True

    @classmethod
    def why_not(cls, target: TargetModel) -> str | None:
        """See :class:`flashdraft.backends.base.Backend`."""
        return (
            None
            if target.reads_pages
            else "it needs bfloat16 or quantized weights, AVX-512, AVX2 or NEON, a C++ compiler and layers it knows"
        )

    def new_storage(self, room: Room) -> tuple[PagedKVCache, Any]:
        """See :class:`flashdraft.backends.base.Backend`: with spare pages for what is staged beyond a row's own."""
        return paged_storage(self.target, room, room.num_rows * (room.most_staged + room.page_size))

    def new_rows(self) -> GatheredRows:
        """See :class:`flashdraft.backends.base.Backend`."""
        return PagedRows(self.cache)
