"""Grammars tried in processes of their own before the server makes them ready: what runs away there can be ended.

One process that has read the tokenizer forks another for each grammar. That one makes the grammar as the server would
(GrammarCompiler), within a time and a memory, and says what came of it. Only then is it made in the server, where no
thread could be stopped.
"""

import asyncio
import os
import pickle
import resource
import shutil
import signal
import struct
import sys
import tempfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from socket import AF_UNIX, socket
from typing import Any

from flashdraft.errors import OverloadedError, UsageError
from flashdraft.grammar import Grammar, GrammarCompiler

MAX_BYTES = 1 << 30  # of memory that one grammar may take while it is made
_NUM_KEPT = 256  # grammars known to be fine
_READY = b"ready\n"
_LENGTH = struct.Struct("!I")


class GrammarTrials:
    """Tries grammars of one tokenizer, ``num_processes`` at a time, each for at most ``limit_s`` seconds.

    ``compiler``: what GrammarCompiler is made of: tokenizer, vocab_size, eos_token_ids.
    """

    def __init__(
        self, compiler: tuple[Any, int, tuple[int, ...]], limit_s: float, num_processes: int = 2
    ) -> None:
        self._compiler, self._limit_s = compiler, limit_s
        self._places = asyncio.Semaphore(num_processes)
        self._starting: asyncio.Task[None] | None = None
        self._fine: OrderedDict[Grammar, None] = OrderedDict()
        self._process: asyncio.subprocess.Process | None = None
        self._folder: Path | None = None

    async def check(self, grammar: Grammar) -> None:
        """Raise UsageError for a grammar that cannot be used or takes too much, OverloadedError without a place."""
        if grammar in self._fine:
            self._fine.move_to_end(grammar)
            return
        if self._process is None or self._process.returncode is not None:
            if self._starting is None or self._starting.done():
                self._starting = asyncio.create_task(self._start())
            await asyncio.shield(self._starting)  # for all who wait, should one leave
        try:
            async with asyncio.timeout(self._limit_s):
                await self._places.acquire()
        except TimeoutError:
            raise OverloadedError(
                f"no grammar could be made ready within {self._limit_s:g} seconds, for others are: try again"
            ) from None
        try:
            told = await self._run(grammar)
        finally:
            self._places.release()
        if told:
            raise UsageError(told)
        self._fine[grammar] = None
        if len(self._fine) > _NUM_KEPT:
            self._fine.popitem(last=False)

    async def close(self) -> None:
        """End the process, and those that it has forked."""
        if self._starting is not None:
            await asyncio.wait([self._starting])
            self._starting = None
        await self._end()

    async def _end(self) -> None:
        if self._process is not None and self._process.returncode is None:
            assert self._process.stdin
            self._process.stdin.close()
            await self._process.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._process = self._folder = None

    async def _start(self) -> None:
        await self._end()
        self._folder = Path(tempfile.mkdtemp(prefix="flashdraft-"))  # which only its owner may enter
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", __name__, str(self._folder / "socket")),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=os.environ
            | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},  # threads outlive no fork
        )
        assert process.stdin
        assert process.stdout
        process.stdin.write(_framed((self._compiler, self._limit_s)))
        is_ready = await process.stdout.readline() == _READY
        await process.stdout.read()  # to its end, so that nothing of it is left open
        self._process = process
        if not is_ready:
            await process.wait()
            raise UsageError(
                "structured output is not available here: its process did not start; the log says why"
            )

    async def _run(self, grammar: Grammar) -> str:
        """What is wrong with ``grammar``; empty: nothing. A process whose answer nobody waits for is ended."""
        assert self._folder
        try:
            reader, writer = await asyncio.open_unix_connection(self._folder / "socket")
        except OSError:  # the process was ended from outside, and the next one starts it again
            raise OverloadedError("no grammar can be made ready at this moment: try again") from None
        process = None
        try:
            writer.write(_framed(grammar))
            process = int.from_bytes(await reader.readexactly(4))
            (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            told: str = pickle.loads(await reader.readexactly(length))
            process = None
        except asyncio.IncompleteReadError:  # it was ended by a limit
            process = None
            return (
                f"the {grammar.kind} was not ready within {self._limit_s:g} seconds and {MAX_BYTES >> 20} MiB"
                " of memory: simplify it"
            )
        finally:
            writer.close()
            if process is not None:  # the client has left
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        return told


def _framed(value: Any) -> bytes:
    data = pickle.dumps(value)
    return _LENGTH.pack(len(data)) + data


def _read(file: Any) -> Any:
    (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
    return pickle.loads(file.read(length))


# In the processes.


def _serve(address: str) -> None:
    """Fork for every connection, until the server closes our stdin."""
    (compiler, limit_s) = _read(sys.stdin.buffer)
    made = GrammarCompiler(*compiler)
    made.begin(Grammar("regex", "a"))  # the first of all takes longer
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead are not waited for
    with socket(AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        sys.stdout.buffer.write(_READY)
        sys.stdout.buffer.flush()
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nobody has to wait for its end
        if os.fork():  # the parent waits for the end, the child for work
            sys.stdin.buffer.read()
            os.killpg(0, signal.SIGKILL)
        while True:
            connection, _ = listening.accept()
            with connection:
                if not os.fork():
                    _try(made, connection, limit_s)


def _close_copies() -> None:
    """Close what uvloop leaves open of our stdin and stdout, or nobody would hear of their end."""
    for descriptor in range(3, 256):
        with suppress(OSError):
            if any(os.path.sameopenfile(descriptor, own) for own in (0, 1)):
                os.close(descriptor)


def _try(made: GrammarCompiler, connection: socket, limit_s: float) -> None:
    """Make one grammar, say what came of it, and end; the kernel ends what takes too long or too much."""
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    if sys.platform == "linux":
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MAX_BYTES, size + MAX_BYTES))
    os.nice(10)
    told = ""
    try:
        with connection.makefile("rwb") as file:
            grammar = _read(file)
            file.write(os.getpid().to_bytes(4))
            file.flush()
            try:
                made.begin(grammar)
            except UsageError as error:
                told = str(error)
            except MemoryError:
                os._exit(1)
            file.write(_framed(told))
    finally:
        os._exit(0)


if __name__ == "__main__":
    os.setpgid(0, 0)
    _close_copies()
    _serve(sys.argv[1])
