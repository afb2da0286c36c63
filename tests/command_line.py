"""Run one command line as the console script does, within the test's process."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from flashdraft.cli.main import main


@dataclass(frozen=True)
class Result:
    """What a command line gave."""

    exit_code: int
    stdout: str
    stderr: str


Run = Callable[..., Result]


def run_command(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> Result:
    """``main(argv)`` with its output; every command line ends in SystemExit."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    code = exit_info.value.code
    return Result(code if isinstance(code, int) else 0, *capsys.readouterr())


def run_on_full_disk(num_bytes: int, *argv: str) -> "subprocess.CompletedProcess[str]":
    """``main(argv)`` in a process of its own that no file of more than ``num_bytes`` can be written in."""
    program = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from flashdraft.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, ({num_bytes}, {num_bytes}))
main({list(argv)!r})
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
