"""Running code that a model wrote: another process, with limits, an empty folder and, where Linux lets us, no network.

It keeps a careless program from harm; it is no wall against a hostile one. The limits follow the published HumanEval
harness (openai/human-eval): time, memory, file size.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from functools import lru_cache

# The child limits itself before it runs the program: from here on it can only lower its limits.
# unshare: a new user and network namespace, in which there is no route to anywhere.
_CHILD = """
import ctypes, resource, sys
token, cpu_s, memory, size = sys.argv[1], *map(int, sys.argv[2:])
try:
    ctypes.CDLL(None).unshare(0x10000000 | 0x40000000)
except (OSError, AttributeError):
    pass
for limit, value in (("CPU", cpu_s), ("AS", memory), ("FSIZE", size), ("NOFILE", 32), ("CORE", 0)):
    number = getattr(resource, "RLIMIT_" + limit)
    hard = resource.getrlimit(number)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(number, (value, value))
source = sys.stdin.read()
write = sys.stdout.write
exec(compile(source, "answer.py", "exec"), {"__name__": "__main__"})
write("\\n" + token)
"""


@lru_cache(maxsize=4096)
def passes(program: str, timeout_s: float = 5.0, memory_bytes: int = 1 << 30) -> bool:
    """Whether the Python ``program`` runs to its end without an error, within the limits.

    A program that leaves early, with sys.exit or without it, has not passed. One program is run once.
    """
    token = secrets.token_hex(16)
    limits = [str(int(timeout_s) + 1), str(memory_bytes), str(1 << 20)]
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryFile("w+") as source,
        tempfile.TemporaryFile() as output,  # a file: what the program started may hold a pipe open
    ):
        source.write(program)
        source.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _CHILD, token, *limits],
            stdin=source,
            stdout=output,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the program and what it started
        output.seek(0)
        return process.wait() == 0 and output.read().endswith(b"\n" + token.encode())
