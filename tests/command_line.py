"""Run one command line as the console script does, within the test's process."""

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
