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
from flashdraft.server.places import Places

T = TypeVar("T")

_LONG = 32 << 10  # characters: below, a text takes milliseconds
_NICE = 10  # of the thread for long texts


class TextWork:
    """``places``: for texts under way. ``limit_s``: how long one may take, waiting included."""

    def __init__(self, places: Places, retry_after_s: int, limit_s: float = 30.0) -> None:
        self._places, self._retry_after_s, self._limit_s = places, retry_after_s, limit_s
        self._short = ThreadPoolExecutor(2, "flashdraft-text")
        self._long = ThreadPoolExecutor(1, "flashdraft-long-text", initializer=_yield_to_others)

    async def run(self, work: Callable[[], T], num_chars: int) -> T:
        """The result of ``work`` on ``num_chars`` characters, or what it raises.

        Raises ApiError 429 where too many wait already, and 503 after ``limit_s``; both name a time to wait.
        """
        threads = self._long if num_chars > _LONG else self._short
        place = self._places.take(1)
        try:
            async with asyncio.timeout(self._limit_s):
                return await asyncio.get_running_loop().run_in_executor(threads, work)
        except TimeoutError:
            message = f"the text was not tokenized within {self._limit_s:g} seconds: try again"
            raise ApiError(503, message, code="overloaded", retry_after_s=self._retry_after_s) from None
        finally:
            place.give_back()

    def close(self) -> None:
        """End the threads; what has not begun is dropped."""
        for threads in (self._short, self._long):
            threads.shutdown(wait=False, cancel_futures=True)


def _yield_to_others() -> None:
    if sys.platform == "linux":  # where a thread has a niceness of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
