"""Launches from a second thread: of a long row of them most wait until the device has come so far, and hold no lock."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch
from torch import Tensor

from flashdraft.ops.host_copy import HostCopy


@dataclass(frozen=True)
class LaunchedCopy:
    """What work that a second thread launches brings the host: see :class:`flashdraft.ops.host_copy.Awaited`."""

    launched: "Future[HostCopy]"

    def wait(self) -> Tensor:
        """The copy. Raises what launching raised."""
        return self.launched.result().wait()


class LaunchThread:
    """Starts work on ``device`` in order. The thread is there from the first work on."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._thread = ThreadPoolExecutor(1, "flashdraft-launches")
        self._last: Future[HostCopy] | None = None

    def start(self, work: Callable[[], Tensor]) -> LaunchedCopy:
        """``work()``, on the caller's stream, copied to the host.

        Work behind work that failed goes on from what that left half done: it is not run, and raises the same error,
        until :meth:`wait` was called.
        """
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        before = self._last

        def on_stream() -> HostCopy:
            if before is not None and (error := before.exception()) is not None:
                raise error
            with torch.inference_mode(), torch.cuda.stream(stream):  # both are a thread's own; None: nothing
                return HostCopy(work())

        self._last = self._thread.submit(on_stream)
        return LaunchedCopy(self._last)

    def wait(self) -> None:
        """Returns when all work has started: what the caller launches then is behind it. Raises no error of it."""
        if self._last is not None:
            wait([self._last])
            self._last = None
