"""Decoder layers as one C++ call that reads pages where they lie, on CPUs that have it: see native/accelerate.py."""

from typing import Any

from flashdraft.backends.base import Room, paged_storage
from flashdraft.backends.eager import EagerBackend
from flashdraft.cache.paged_kv_cache import PagedKVCache
from flashdraft.cache.paged_rows import PagedRows
from flashdraft.models.base import TargetModel
from flashdraft.native.target import NativeTarget


class NativeBackend(EagerBackend):
    """The same steps; what differs is where keys and values lie, and that padding is not computed."""

    is_ragged = True
    cuts_windows = False

    @classmethod
    def why_not(cls, target: TargetModel) -> str | None:
        """See :class:`flashdraft.backends.base.Backend`."""
        if isinstance(target, NativeTarget):
            return None
        return "it needs bfloat16 or quantized weights, AVX-512, AVX2 or NEON, a C++ compiler and layers it knows"

    def new_storage(self, room: Room) -> tuple[PagedKVCache, Any]:
        """See :class:`flashdraft.backends.base.Backend`."""
        return paged_storage(self.target, room, by_layer=False)

    def new_rows(self) -> PagedRows:
        """See :class:`flashdraft.backends.base.Backend`."""
        return PagedRows(self.cache)
