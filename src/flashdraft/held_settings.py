"""Settings of the whole process that several want at a time, and leave in any order: generators, threads."""

import gc
import sys
from collections.abc import Callable
from threading import RLock


class HeldSetting:
    """Changed by the first that enters, put back by the last that leaves; for any number of holders and threads.

    ``change`` makes the change and returns what takes it back.
    """

    def __init__(self, change: Callable[[], Callable[[], None]]) -> None:
        self._change, self._num_holders = change, 0
        # Of one thread several times: a generator that is garbage may leave wherever its thread is.
        self._lock = RLock()

    def __enter__(self) -> None:
        with self._lock:
            if not self._num_holders:
                self._put_back = self._change()
            self._num_holders += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_holders -= 1
            if not self._num_holders:
                self._put_back()


def switch_interval(seconds: float) -> HeldSetting:
    """After how many seconds Python hands the interpreter from one thread to the next that asks."""

    def change() -> Callable[[], None]:
        before = sys.getswitchinterval()
        sys.setswitchinterval(seconds)
        return lambda: sys.setswitchinterval(before)

    return HeldSetting(change)


def _stop_collecting() -> Callable[[], None]:
    was_enabled = gc.isenabled()
    gc.disable()
    return gc.enable if was_enabled else lambda: None


NO_COLLECTION = HeldSetting(_stop_collecting)  # Python looks for no cycles
