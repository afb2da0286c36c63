"""The scripts in examples/ run on a tiny pair and say what they promise."""

import subprocess
import sys
from pathlib import Path

import pytest

from tiny_pair import save_tiny_pair

EXAMPLES = Path(__file__).parent.parent / "examples"
SAID = {
    "offline.py": ["'2 + 2 =' -> ", "acceptance length "],
    "own_drafter.py": ["acceptance length ", "the same tokens: True"],
    "async_engine.py": ["Why is the sky blue? +", "Name three rivers. +"],
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    target, drafter = save_tiny_pair(tmp_path_factory.mktemp("pair"))
    return target, drafter


def test_every_example_is_run() -> None:
    assert {file.name for file in EXAMPLES.glob("*.py")} == set(SAID)


@pytest.mark.parametrize("name", SAID)
def test_it_runs(name: str, pair: tuple[str, str]) -> None:
    arguments = pair[:1] if name == "own_drafter.py" else pair
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for part in SAID[name]:
        assert part in done.stdout
