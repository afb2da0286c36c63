"""A tiny pair on disk, and commands to run on it."""

import pytest

from command_line import Result, Run, run_command
from tiny_pair import save_tiny_pair


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that name the tiny pair."""
    target, drafter = save_tiny_pair(tmp_path_factory.mktemp("pair"))
    return ["--model", target, "--draft", drafter, "--dtype", "float32"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process."""

    def run_one(*argv: str) -> Result:
        return run_command(argv, capsys)

    return run_one
