"""``flashdraft train``: from prompts to a drafter that ``--draft`` takes, for each method."""

import json
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from command_line import Run, run_on_full_disk
from flashdraft.data.on_policy import read_documents
from flashdraft.train.config import TrainConfig
from flashdraft.train.run import VALIDATION_SHARE, train_drafter
from tiny_pair import byte_tokenizer, save_tiny_hybrid


def prompts(count: int) -> list[dict[str, str]]:
    """Some for training and one, by its id, for validation."""
    held_back = (
        str(i) for i in range(1000) if zlib.crc32(f"validation toy/{i}".encode()) / 2**32 < VALIDATION_SHARE
    )
    return [{"id": "p" + str(i), "prompt": "Say " + "ab"[i % 2] * i} for i in range(count)] + [
        {"id": next(held_back), "prompt": "Say c"}
    ]


@pytest.mark.parametrize(("method", "kind"), [("dflash", "llama"), ("mtp", "llama"), ("dflash", "hybrid")])
def test_a_trained_drafter_is_served(
    method: str, kind: str, run: Run, pair: list[str], tmp_path: Path
) -> None:
    target = save_tiny_hybrid(tmp_path / "target") if kind == "hybrid" else pair[1]
    (tmp_path / "toy.jsonl").write_text("".join(json.dumps(line) + "\n" for line in prompts(6)))
    options = (
        "--temperature 0 --max-new-tokens 24 --block-size 4 --seq-len 256 --rows-per-step 1 --num-features 2"
    )
    result = run(
        "train", "--method", method, "--model", target, "--prompts", str(tmp_path / "toy.jsonl"),
        "--out", str(tmp_path / "run"), *options.split(), "--blocks-per-row", "32", "--total-blocks", "64",
    )  # fmt: skip
    assert result.exit_code == 0, result.stdout + result.stderr
    drafter = str(tmp_path / "run" / "drafter")
    answer = ("generate", "Hello", "--max-tokens", "20", "--dtype", "float32", "--json")
    served = run(*answer, "--model", target, "--draft", drafter, "--block-size", "4")
    assert served.exit_code == 0, served.stderr
    drafted = json.loads(served.stdout)
    plain = json.loads(run(*answer, "--model", target, "--draft", "none").stdout)
    assert drafted["token_ids"] == plain["token_ids"]
    assert drafted["settings"]["block_size"] == 4
    assert drafted["metrics"]["num_drafted"] > 0


def losses(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def options(target: str, answers: Path, steps: int) -> list[str]:
    """A small run on answers that are there; saves at every reading of the loss."""
    text = (
        f"--model {target} --answers {answers} --block-size 4 --seq-len 128 --rows-per-step 2 --num-features 2"
        f" --blocks-per-row 32 --total-blocks {64 * steps} --served-prompts 1 --checkpoint-minutes 0 --weighting decay"
    )
    return text.split()


@pytest.fixture
def answers(run: Run, pair: list[str], tmp_path: Path) -> Path:
    (tmp_path / "toy.jsonl").write_text("".join(json.dumps(line) + "\n" for line in prompts(6)))
    result = run(
        "train", "--model", pair[1], "--prompts", str(tmp_path / "toy.jsonl"), "--out", str(tmp_path),
        "--temperature", "0", "--max-new-tokens", "24", "--answers-only",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    return tmp_path / "answers"


def test_a_killed_run_goes_on_to_the_same_losses(
    run: Run, pair: list[str], answers: Path, tmp_path: Path
) -> None:
    wanted = options(pair[1], answers, 120)
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "flashdraft", "train", "--out", str(killed), *wanted]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (killed / "log.jsonl").exists() or max(losses(killed), default=0) < 40:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 40 <= max(losses(killed)) < 120
    assert run("train", "--out", str(killed), *wanted).exit_code == 0
    assert json.loads((killed / "run.json").read_text())["resumed"] is True
    assert run("train", "--out", str(tmp_path / "whole"), *wanted).exit_code == 0
    assert len(losses(killed)) == 6
    assert losses(killed) == losses(tmp_path / "whole")
    drafters = [
        (folder / "drafter" / "model.safetensors").read_bytes() for folder in (killed, tmp_path / "whole")
    ]
    assert drafters[0] == drafters[1]


def test_a_full_disk_ends_a_run_in_one_line_and_the_same_command_goes_on(
    run: Run, pair: list[str], answers: Path, tmp_path: Path
) -> None:
    wanted, out = options(pair[1], answers, 40), tmp_path / "full"
    full = run_on_full_disk(20_000, "train", "--out", str(out), *wanted)
    assert full.returncode == 1
    assert len(full.stderr.strip().splitlines()) == 1, full.stderr
    assert "make room and start again" in full.stderr
    assert not [file.name for file in out.rglob("*.part")]
    with (out / "log.jsonl").open("a") as log:
        log.write('{"step": 7, "blo')  # what a full disk leaves of a line
    assert run("train", "--out", str(out), *wanted).exit_code == 0
    assert run("train", "--out", str(tmp_path / "whole"), *wanted).exit_code == 0
    assert losses(out) == losses(tmp_path / "whole")
    (out / "log.jsonl").write_text("no line\n" + (out / "log.jsonl").read_text())
    told = run("train", "--out", str(out), *wanted)
    assert (told.exit_code, "line 1: not a line of a training log" in told.stderr) == (1, True), told.stderr


def test_ctrl_c_saves_and_says_how_to_go_on(run: Run, pair: list[str], answers: Path, tmp_path: Path) -> None:
    wanted, out = [*options(pair[1], answers, 400), "--checkpoint-minutes", "60"], tmp_path / "stopped"
    command = [sys.executable, "-m", "flashdraft", "train", "--out", str(out), *wanted]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (out / "log.jsonl").exists() or max(losses(out), default=0) < 40:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert "stopping after this step" in stderr
    assert f"state and drafter are saved in {out}; the same command goes on from there" in stdout
    assert (out / "drafter" / "README.md").exists()
    assert run("train", "--out", str(out), *wanted).exit_code == 0
    assert json.loads((out / "run.json").read_text())["resumed"] is True
    assert run("train", "--out", str(tmp_path / "whole"), *wanted).exit_code == 0
    drafters = [(one / "drafter" / "model.safetensors").read_bytes() for one in (out, tmp_path / "whole")]
    assert drafters[0] == drafters[1]


def test_a_run_that_is_stopped_before_its_first_line_has_a_drafter(
    pair: list[str], answers: Path, tmp_path: Path
) -> None:
    config = TrainConfig(block_size=4, seq_len=256, rows_per_step=1, blocks_per_row=32, num_features=2)
    places = pair[1], [answers], tmp_path / "run", config, "cpu", "float32", None
    first: list[dict[str, Any]] = []
    drafter = train_drafter(*places, first.append, stop=lambda: True)
    assert set(first[0]["beyond_seq_len"].values()) == {0}
    assert "## Training" in (drafter / "README.md").read_text()
    assert not (tmp_path / "run" / "log.jsonl").exists()


@pytest.mark.usefixtures("answers")
def test_held_back_answers_that_nothing_evaluates_are_counted(
    run: Run, pair: list[str], tmp_path: Path
) -> None:
    asked = (
        "train",
        "--model",
        pair[1],
        "--prompts",
        str(tmp_path / "toy.jsonl"),
        "--out",
        str(tmp_path / "two"),
    )
    made = run(
        *asked, "--temperature", "0", "--temperature", "0.7", "--max-new-tokens", "8", "--answers-only"
    )
    assert made.exit_code == 0, made.stderr
    config = TrainConfig(block_size=4, seq_len=256, rows_per_step=1, blocks_per_row=32, num_features=2)
    places = pair[1], [tmp_path / "two" / "answers"], tmp_path / "run", config, "cpu", "float32", None
    first: list[dict[str, Any]] = []
    train_drafter(*places, first.append, stop=lambda: True)
    assert (first[0]["num_documents"], list(first[0]["held_back"].values())) == (14, [1, 1])


def test_torchrun_trains_with_two_processes(run: Run, pair: list[str], answers: Path, tmp_path: Path) -> None:
    wanted = options(pair[1], answers, 20)
    assert run("train", "--out", str(tmp_path / "one"), *wanted).exit_code == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "flashdraft", "train", "--out", str(tmp_path / "two"), *wanted]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("the drafter is in") == 1
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    assert json.loads((tmp_path / "two" / "run.json").read_text())["num_processes"] == 2


def test_more_features_than_the_target_has_layers_are_refused_before_any_answer(
    run: Run, pair: list[str], tmp_path: Path
) -> None:
    (tmp_path / "toy.jsonl").write_text("".join(json.dumps(line) + "\n" for line in prompts(6)))
    asked = ("--model", pair[1], "--prompts", str(tmp_path / "toy.jsonl"), "--out", str(tmp_path / "run"))
    result = run("train", *asked, "--num-features", "7")
    assert result.exit_code == 2
    assert "num_features is 7; expected 1 to 6" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (("--answer-rows", "0"), "answer_rows is 0; expected 1 or more"),
        (("--max-new-tokens", "1"), "max_new_tokens is 1; expected 2 or more"),
        (("--temperature", "-1"), "temperature is [-1.0]; expected 0 or more"),
        (("--dry-run", "--gpus", "0"), "gpus is 0; expected 1 or more"),
        (("--temperature", "0.7"), "falls into the validation split (2% of the prompts"),
        (("--temperature", "0", "--limit", "1"), "none of the answers to 1 prompts falls into"),
    ],
)
def test_settings_that_answer_nothing_are_refused(
    run: Run, pair: list[str], tmp_path: Path, more: tuple[str, ...], part: str
) -> None:
    result = run("train", "--model", pair[1], "--prompts", "sample", "--out", str(tmp_path / "run"), *more)
    assert (result.exit_code, part in result.stderr) == (2, True), result.stderr


def test_the_tutorial_trains_a_drafter(run: Run, pair: list[str], tmp_path: Path) -> None:
    """Its command, with a small target in place of the embedded one, and a step in place of its minutes."""
    text = (Path(__file__).parents[2] / "docs/tutorial.md").read_text()
    command = text.partition("flashdraft train ")[2].partition("\n\n")[0].replace("\\\n", " ")
    given = dict(zip(*[iter(command.split())] * 2, strict=True))
    folder = tmp_path / given["--out"]
    given |= {"--model": pair[1], "--out": str(folder), "--total-blocks": "1", "--max-minutes": "0"}
    result = run("train", *(part for one in given.items() for part in one))
    assert result.exit_code == 0, result.stderr
    assert (folder / "drafter" / "config.json").is_file()


def test_rows_are_reported_before_the_run_and_bad_ones_stop_it(
    run: Run, pair: list[str], tmp_path: Path
) -> None:
    answer = {"role": "assistant", "content": "The data's own."}
    rows = [{"messages": [{"role": "user", "content": line["prompt"]}, answer]} for line in prompts(3)]
    file = tmp_path / "toy.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0], {"messages": ["Hi"]}]))
    asked = ["train", "--model", pair[1], "--prompts", str(file), "--out", str(tmp_path / "run")]
    asked += ["--temperature", "0", "--max-new-tokens", "8", "--answers-only"]
    refused = run(*asked)
    assert refused.exit_code == 1
    assert f"{file}:6: messages[0] is a text" in refused.stderr
    assert "1 of 6 rows cannot be asked; mend them, or add --skip-bad-rows" in refused.stderr
    assert not (tmp_path / "run").exists()
    kept = run(*asked, "--skip-bad-rows")
    assert kept.exit_code == 0, kept.stderr
    for line in (
        "6 rows",
        "1 left out: bad rows",
        "1 left out: equal to another",
        "4 prompts of",
        "4 answers of the data are left out and made anew",
    ):
        assert line in kept.stdout
    documents = read_documents(tmp_path / "run" / "answers")
    cut = sum(one.finish_reason == "length" for one in documents) / len(documents)
    [counted] = [line.split() for line in kept.stdout.splitlines() if line.endswith("%")]
    assert (counted[0], counted[1], counted[3]) == ("toy", "4", f"{cut:.0%}")
    own = byte_tokenizer().encode("own")
    assert not any(" ".join(map(str, own)) in " ".join(map(str, one.prompt_token_ids)) for one in documents)
