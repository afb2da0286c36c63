"""The front door: help, version, errors in one line, exit codes, and no heavy import on the way."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import Run, run_on_full_disk
from flashdraft import __version__
from flashdraft.cli.main import COMMANDS


def test_help_names_every_command_and_each_has_examples(run: Run) -> None:
    top = run("--help")
    assert top.exit_code == 0
    assert not re.search(r"(\.\.\.|…) +│$", top.stdout, re.MULTILINE), "a line is cut"
    for group, commands in COMMANDS.items():
        assert f"─ {group} ─" in top.stdout
        for command in commands:
            assert re.search(rf"^│ {command.__name__} ", top.stdout, re.MULTILINE)
            page = run(command.__name__, "--help")
            assert page.exit_code == 0
            assert f"\n   flashdraft {command.__name__}" in page.stdout
            assert "[default: None]" not in page.stdout


def test_no_command_is_the_help(run: Run) -> None:
    assert run().stdout.strip() == run("--help").stdout.strip()


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"flashdraft {__version__}\n"


def test_help_does_not_pay_for_torch() -> None:
    code = (
        "import sys, flashdraft.cli.main\n"
        "heavy = {'torch', 'transformers', 'numpy', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["generate", "hi", "--temperature", "-1"], "temperature is -1.0; expected 0 (greedy) to 100"),
        (["generate", "hi", "--block-size", "0"], "block_size is 0; expected 1 to 8"),
        (["generate", "hi", "--block-size", "9"], "block_size is 9; expected 1 to 8"),
        (["generate", "  "], "the prompt is empty"),
        (["generate", "hi " * 1000], "expected at most 2047"),
        (["bench", "--tasks", "gsm9k"], "there is no task 'gsm9k'"),
        (["bench", "--methods", "eagle"], "there is no method 'eagle'"),
        (["bench", "--block-sizes", "8,x"], "expected numbers above 0 with commas"),
        (["bench", "--block-sizes", "16"], "block size 16; expected 2 to 8"),
        (["bench", "--limit", "0"], "expected 1 or more"),
        (["demo", "hi", "--block-size", "1"], "a --block-size above 1"),
    ],
)
def test_a_wrong_use_is_told_in_one_line(run: Run, pair: list[str], argv: list[str], said: str) -> None:
    result = run(*argv, *pair)
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.fullmatch(r"flashdraft: [^\n]*\n", result.stderr.replace("loading the model\n", ""))
    assert said in result.stderr


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nonsense"], "no such command 'nonsense'; see flashdraft --help"),
        (["generat"], "no such command 'generat'. Did you mean 'generate'?; see flashdraft --help"),
        (["train", "--out", "x", "--pause-minutes", "nan"], "invalid value for '--pause-minutes'"),
        (["generate", "--nonsense"], "no such option: --nonsense"),
        (
            ["generate", "--dtype", "int3"],
            "invalid value for '--dtype': 'int3' is not one of 'float32', 'bfloat16'",
        ),
        (["convert"], "missing option '--to'; see flashdraft convert --help"),
    ],
)
def test_an_unknown_command_or_option_is_told_in_one_line_too(run: Run, argv: list[str], said: str) -> None:
    result = run(*argv)
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.fullmatch(r"flashdraft: [^\n]*; see flashdraft [^\n]*--help\n", result.stderr)
    assert said in result.stderr


def test_a_broken_checkpoint_is_another_error(run: Run, tmp_path: object) -> None:
    result = run("generate", "hi", "--model", str(tmp_path))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "flashdraft: " in result.stderr
    assert "config.json is missing" in result.stderr


def test_a_place_that_cannot_be_written_is_one_line(run: Run) -> None:
    result = run("convert", "--draft", "embedded", "--out", "/proc/nowhere", "--to", "speculators")
    assert result.exit_code in (1, 2)
    assert "/proc/nowhere" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr


def test_a_folder_that_is_a_file_is_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    result = run("convert", "--draft", "embedded", "--out", str(tmp_path / "taken"), "--to", "speculators")
    assert result.exit_code in (1, 2)
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert (tmp_path / "taken").read_text() == "a file"


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    done = run_on_full_disk(
        100_000, "convert", "--draft", "embedded", "--out", str(tmp_path / "out"), "--to", "speculators"
    )
    assert done.returncode == 1
    [line] = done.stderr.strip().splitlines()
    assert "make room and start again" in line


def test_a_report_that_finds_no_room_is_one_line_and_leaves_the_old_one(tmp_path: Path) -> None:
    rows = Path(__file__).parents[2] / "benchmarks" / "results" / "load" / "rows.jsonl"
    (tmp_path / "rows.jsonl").write_bytes(rows.read_bytes())
    (tmp_path / "report.md").write_text("the old one")
    done = run_on_full_disk(1000, "report", str(tmp_path))
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (1, 1), done.stderr
    assert "make room and start again" in done.stderr
    assert (tmp_path / "report.md").read_text() == "the old one"
