"""Between host and device without waiting: what the host tells, and what it is told later."""

from typing import Any, Protocol

import torch
from torch import Tensor


def told(numbers: Any, device: torch.device) -> Tensor:
    """Int64 of what the host has in lists; on a GPU it does not wait until they are there."""
    return pinned(torch.tensor(numbers, dtype=torch.int64), device).to(device, non_blocking=True)


def pinned(x: Tensor, device: torch.device) -> Tensor:
    """``x`` where ``device`` fetches it from by itself."""
    return x.pin_memory() if device.type == "cuda" else x


class Awaited(Protocol):
    """Numbers that the host has a copy of later."""

    def wait(self) -> Tensor:
        """The copy. Waits for the work before it alone, not for what was queued since."""
        ...


class HostCopy:
    """Starts to copy ``x`` to the host, as the work that is queued so far leaves it."""

    def __init__(self, x: Tensor) -> None:
        self._there, self._done = x, None
        if x.is_cuda:
            self._there = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            self._there.copy_(x, non_blocking=True)
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()

    def wait(self) -> Tensor:
        """See :class:`Awaited`."""
        if self._done is not None:
            self._done.synchronize()
        return self._there
