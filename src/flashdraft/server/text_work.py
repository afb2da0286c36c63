"""Work on texts of clients' choice, off the event loop: in few threads, long texts apart from short ones.

A thread cannot be stopped, so what a text may cost is bounded before (see prompts.py), a text whose client has left
is never begun, and long texts wait for one another in one thread that yields to everything else.
"""

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from flashdraft.server.api_errors import ApiError

T = TypeVar("T")

_LONG = 32 << 10  # characters: below, a text takes milliseconds
_NICE = 10  # of the thread for long texts


class TextWork:
    """``max_waiting``: texts under way at one time. ``limit_s``: how long one may take, waiting included."""

    def __init__(self, max_waiting: int, retry_after_s: int, limit_s: float = 30.0) -> None:
        self._max_waiting, self._retry_after_s, self._limit_s = max_waiting, retry_after_s, limit_s
        self._num_waiting = 0
        self._short = ThreadPoolExecutor(2, "flashdraft-text")
        self._long = ThreadPoolExecutor(1, "flashdraft-long-text", initializer=_yield_to_others)

    async def run(self, work: Callable[[], T], num_chars: int) -> T:
        """The result of ``work`` on ``num_chars`` characters, or what it raises.

        Raises ApiError 429 where too many wait already, and 503 after ``limit_s``; both name a time to wait.
        """
        if self._num_waiting >= self._max_waiting:
            message = f"{self._num_waiting} texts wait for their tokens and no more may: try again"
            raise ApiError(429, message, code="queue_full", retry_after_s=self._retry_after_s)
        threads = self._long if num_chars > _LONG else self._short
        self._num_waiting += 1
        try:
            async with asyncio.timeout(self._limit_s):
                return await asyncio.get_running_loop().run_in_executor(threads, work)
        except TimeoutError:
            message = f"the text was not tokenized within {self._limit_s:g} seconds: try again"
            raise ApiError(503, message, code="overloaded", retry_after_s=self._retry_after_s) from None
        finally:
            self._num_waiting -= 1

    def close(self) -> None:
        """End the threads; what has not begun is dropped."""
        for threads in (self._short, self._long):
            threads.shutdown(wait=False, cancel_futures=True)


def _yield_to_others() -> None:
    if sys.platform == "linux":  # where a thread has a niceness of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
