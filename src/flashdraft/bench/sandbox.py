"""Running code that a model wrote: another process, walled off by Linux namespaces, with limits on what it takes.

It sees no network, no process but its own and a read-only file system with an empty folder of its own in memory; all
of it ends with the verdict. The limits follow the published HumanEval harness (openai/human-eval): time, memory, file
size; and processes. Where the kernel grants no namespaces nothing is run, unless the caller allows it: the limits alone
keep a careless program from harm and are no wall against a hostile one, and the processes of root are not counted then.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from functools import lru_cache

from flashdraft.errors import UsageError

ALLOW = "FLASHDRAFT_ALLOW_CODE"  # environment: 1 runs code without the wall
_NO_WALL = 77  # exit status of the child
_NOBODY = 65534  # the user in place of root

# The child walls and limits itself before it runs the program: from here on it can only lower its limits. It forks
# twice: the first process of a namespace is not the program, and the kernel ends all others with it. What shows that
# the program came to its end is on stdin, behind the program: nothing that the program is given names it.
_CHILD = """
import ctypes, os, resource, sys
wanted, folder, *limits = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
libc = ctypes.CDLL(None, use_errno=True)
USER, MOUNTS, NET, PIDS, IPC = 0x10000000, 0x20000, 0x40000000, 0x20000000, 0x08000000
RECURSIVE, PRIVATE, AT_RECURSIVE, READ_ONLY, AT_FDCWD = 0x4000, 0x40000, 0x8000, 1, -100
KEEP_CAPS, NO_NEW_PRIVS, AMBIENT, RAISE, READ_ANY = 8, 38, 47, 2, 2
NOBODY = 65534

def map_users(of, ids):
    # Root's processes are not counted: it becomes nobody. Only from outside a namespace may it be given two users.
    if ids[0] == 0:
        maps = ("uid_map", f"0 0 1\\n{NOBODY} {NOBODY} 1"), ("gid_map", f"0 {ids[1]} 1\\n{NOBODY} {NOBODY} 1")
    else:
        maps = ("setgroups", "deny"), ("uid_map", f"{NOBODY} {ids[0]} 1"), ("gid_map", f"{NOBODY} {ids[1]} 1")
    for name, text in maps:
        with open(f"/proc/{of}/{name}", "w") as file:
            file.write(text)

def wall():
    ids, me, (there, told) = (os.geteuid(), os.getegid()), os.getpid(), os.pipe()
    if not (outside := os.fork()):
        try:
            os.read(there, 1)
            map_users(me, ids)
        except OSError:
            os._exit(1)
        os._exit(0)
    refused = libc.unshare(USER | MOUNTS | NET | PIDS | IPC)
    os.write(told, b"-")
    if os.waitpid(outside, 0)[1] or refused:
        return False
    os.close(there), os.close(told)
    attributes = (ctypes.c_uint64 * 4)(READ_ONLY, 0, 0, 0)  # mount_setattr(2), Linux 5.12
    if (
        libc.mount(None, b"/", None, RECURSIVE | PRIVATE, None)
        or libc.syscall(ctypes.c_long(442), AT_FDCWD, b"/", AT_RECURSIVE, attributes, ctypes.c_size_t(32))
        or libc.mount(b"none", folder.encode(), b"tmpfs", 0, b"size=16m,nr_inodes=256,mode=777")
    ):
        return False
    os.chdir(folder)
    return not has_rights_left(ids[0] == 0)

def has_rights_left(is_root):
    # Within its namespace it could undo all that. Of root's rights it keeps one, to read: Python may be root's own.
    kept = 1 << READ_ANY if is_root else 0
    if is_root:
        libc.prctl(KEEP_CAPS, 1, 0, 0, 0)
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    rights = (ctypes.c_uint32 * 6)(kept, kept, kept, 0, 0, 0)  # effective, permitted, inheritable; the upper 32 of each
    return (
        libc.capset(header, rights)
        or libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0)
        or (is_root and libc.prctl(AMBIENT, RAISE, READ_ANY, 0, 0))
    )

if wanted == "walled":
    try:
        is_walled = wall()
    except (OSError, AttributeError):  # no Linux, or one that does not let us
        is_walled = False
    if not is_walled:
        os._exit(77)
else:
    os.chdir(folder)
if pid := os.fork():
    os._exit(min(1, os.waitpid(pid, 0)[1]))
if wanted == "walled":
    libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL
if pid := os.fork():  # the first process, which the program cannot reach: all others end with it
    os._exit(min(1, os.waitpid(pid, 0)[1]))
for limit, value in zip(("CPU", "AS", "FSIZE", "NOFILE", "NPROC", "CORE"), limits, strict=True):
    number = getattr(resource, "RLIMIT_" + limit)
    hard = resource.getrlimit(number)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(number, (value, value))
length, said = int(os.read(0, 16)), b""
while len(said) < length:
    said += os.read(0, length - len(said))
sys.argv[1:] = []
exec(compile(said, "answer.py", "exec"), {"__name__": "__main__"})
sys.stdout.flush()
os.write(1, b"\\n" + os.read(0, 64))
os._exit(0)
"""


@lru_cache(maxsize=4096)
def passes(program: str, timeout_s: float = 5.0, memory_bytes: int = 1 << 30) -> bool:
    """Whether the Python ``program`` runs to its end without an error, within the limits.

    A program that leaves early, with sys.exit or without it, has not passed. One program is run once. Raises UsageError
    where it could not be walled off.
    """
    wanted = "open" if os.environ.get(ALLOW) == "1" else "walled"
    token, source = secrets.token_hex(32).encode(), program.encode(errors="replace")
    # seconds, bytes of memory and of a file, files, processes of this user, core dumps
    limits = [
        str(int(timeout_s) + 1),
        str(memory_bytes),
        str(1 << 20),
        "32",
        str(_num_processes() + 16),
        "0",
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryFile() as said,
        tempfile.TemporaryFile() as output,  # a file: what the program started may hold a pipe open
    ):
        said.write(b"%16d" % len(source) + source + token)
        said.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _CHILD, wanted, folder, *limits],
            stdin=said,
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
        status = process.wait()
        if status == _NO_WALL:
            raise UsageError(
                "code that a model wrote cannot be walled off here: the kernel grants no user, mount and process"
                " namespaces. Grade elsewhere, leave humaneval and mbpp out, or run it all the same with --allow-code"
            )
        output.seek(0)
        return status == 0 and output.read().endswith(b"\n" + token)


def _num_processes() -> int:
    """Processes and threads of the user that the program runs as, which RLIMIT_NPROC counts."""
    number, user = 0, os.getuid() or _NOBODY
    for name in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else ()):
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{name}").st_uid == user:
                number += len(os.listdir(f"/proc/{name}/task"))
    return number
