"""Work on tensors of fixed shapes as CUDA graphs: to launch a thousand small kernels takes longer than they run.

Knows neither models nor caches. What the work reads and writes beside its inputs has to stay where it is; whoever
moves it makes a new :class:`Recorded`.
"""

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from flashdraft.held_settings import NO_COLLECTION

T = TypeVar("T")
# PyTorch records all graphs on one stream, and waits for the device before each: two threads may not do so at once.
_ONE_RECORDS = threading.RLock()


@dataclass(frozen=True)
class _Recording(Generic[T]):
    inputs: list[Tensor]
    result: T
    graph: torch.cuda.CUDAGraph
    work: Callable[..., T]  # with all that it refers to: the graph knows addresses alone


class Recorded:
    """Calls work as it is the first time, records it the second time, and replays it from then on.

    What a call returns is overwritten by the next one. ``device``: where work wants its inputs; they may come from
    the host, pinned.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device
        self._found: dict[Hashable, _Recording[Any] | None] = {}  # None: ran once
        self._pool: Any = None  # memory that the recordings share: one runs at a time
        self.was_new = False  # whether the last call was one that did not just replay

    def __call__(self, key: Hashable, work: Callable[..., T], inputs: Sequence[Tensor]) -> T:
        """``work(*inputs)``. One ``key`` means one work on inputs of one shape; no work may wait for the device.

        On a CPU, which has no graphs, it runs as it is every time.
        """
        device = self.device or inputs[0].device
        is_first = key not in self._found
        self.was_new = is_first or (self._found[key] is None and device.type == "cuda")
        if is_first or device.type != "cuda":
            self._found[key] = None  # first calls choose kernels and take memory, which no recording may do
            return work(*(one.to(device) for one in inputs))
        recording = self._found[key]
        if recording is None:
            recording = self._found[key] = self._record(work, inputs)
        for own, given in zip(recording.inputs, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        recording.graph.replay()
        result: T = recording.result
        return result

    def _record(self, work: Callable[..., T], inputs: Sequence[Tensor]) -> _Recording[T]:
        own = [one.to(self.device or one.device, copy=True) for one in inputs]
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Other threads of a server may use the device meanwhile.
        with (
            _alone(),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            result = work(*own)
        return _Recording(own, result, graph, work)


@contextmanager
def _alone() -> Iterator[None]:
    """No other thread records, and a recording that is garbage, of an engine that was, is not freed: it would fail."""
    with _ONE_RECORDS, NO_COLLECTION:
        yield
