"""Provenance is filled where it can be known, and never fails."""

import json
import subprocess
from pathlib import Path

import pytest

from flashdraft import __version__
from flashdraft.provenance import collect_provenance, git_state


def git(folder: Path, *args: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *args], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_it_is_plain_json_and_knows_the_versions() -> None:
    found = json.loads(json.dumps(collect_provenance()))
    assert found["versions"]["flashdraft"] == __version__
    assert all(found["versions"][name] for name in ("torch", "transformers", "python"))
    assert found["device"] == "cpu"
    assert found["device_name"]
    assert found["num_threads"] >= 1
    assert found["date"].endswith("+00:00")


def test_the_command_is_told_without_the_folder_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/flashdraft", "generate", "two words"])
    assert collect_provenance()["command"] == "flashdraft generate 'two words'"


def test_commit_and_dirt_of_a_checkout(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("x = 1\n")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    sha = git(tmp_path, "rev-parse", "HEAD")
    assert git_state(tmp_path) == (sha, False)
    (tmp_path / "untracked.py").write_text("")
    assert git_state(tmp_path) == (sha, False)
    (tmp_path / "a.py").write_text("x = 2\n")
    assert git_state(tmp_path) == (sha, True)
    installed = tmp_path / "venv"
    installed.mkdir()
    assert git_state(installed) == (None, None)


def test_without_a_checkout_or_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_state(tmp_path) == (None, None)
    assert git_state(tmp_path / "missing") == (None, None)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("FLASHDRAFT_COMMIT", raising=False)
    assert collect_provenance()["git_sha"] is None
    monkeypatch.setenv("FLASHDRAFT_COMMIT", "abc")  # of a copy
    assert collect_provenance()["git_sha"] == "abc"
