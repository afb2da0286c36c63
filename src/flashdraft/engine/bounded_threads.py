"""Work that may take too long, off the event loop: few threads, and nobody waits beyond a limit."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import TypeVar

from flashdraft.errors import OverloadedError

T = TypeVar("T")


class BoundedThreads:
    """Runs work in at most ``num_threads`` daemon threads.

    A thread cannot be stopped from outside: work that runs on beyond ``limit_s`` seconds keeps its place until it
    ends, so that runaways never take more than ``num_threads`` cores, and never keep a process from ending.
    """

    def __init__(self, num_threads: int, limit_s: float) -> None:
        self.limit_s = limit_s
        self._places = asyncio.Semaphore(num_threads)

    async def run(self, work: Callable[[], T]) -> T:
        """The result of ``work``, or what it raises.

        Raises OverloadedError where no thread comes free within ``limit_s``, TimeoutError for work that takes longer.
        """
        try:
            async with asyncio.timeout(self.limit_s):
                await self._places.acquire()
        except TimeoutError:
            raise OverloadedError(
                f"no grammar could be made ready within {self.limit_s:g} seconds, for others are: try again"
            ) from None
        async with asyncio.timeout(self.limit_s):
            loop = asyncio.get_running_loop()
            result: asyncio.Future[T] = loop.create_future()
            Thread(
                target=self._work, args=(work, loop, result), name="flashdraft-grammar", daemon=True
            ).start()
            return await result

    def _work(
        self, work: Callable[[], T], loop: asyncio.AbstractEventLoop, result: "asyncio.Future[T]"
    ) -> None:
        outcome: T | Exception
        try:
            outcome = work()
        except Exception as error:
            outcome = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(self._end, result, outcome)

    def _end(self, result: "asyncio.Future[T]", outcome: T | Exception) -> None:
        self._places.release()
        if result.done():  # given up
            return
        if isinstance(outcome, Exception):
            result.set_exception(outcome)
        else:
            result.set_result(outcome)
