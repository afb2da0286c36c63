"""A tensor of the device on its way to the host, who goes on meanwhile."""

import torch
from torch import Tensor


class HostCopy:
    """Starts to copy ``x``, as the work that is queued so far leaves it."""

    def __init__(self, x: Tensor) -> None:
        self._there, self._done = x, None
        if x.is_cuda:
            self._there = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            self._there.copy_(x, non_blocking=True)
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()

    def wait(self) -> Tensor:
        """The copy. Waits for the work before it alone, not for what was queued since."""
        if self._done is not None:
            self._done.synchronize()
        return self._there
