"""The comparison of trainers (benchmarks/peers/trainers.py): turns on the machine, and what is made of theirs."""

import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scripts import scripts

FOLDER = Path(__file__).parents[2] / "benchmarks" / "peers"


def _load(name: str) -> ModuleType:
    with scripts("benchmarks/peers", name) as (module,):
        return module


def test_a_turn_begins_after_the_warm_up_with_what_was_there_first(tmp_path: Path) -> None:
    module, begun = _load("trainer_turn"), []
    turn = module.Turn(tmp_path, 1e-9, lambda: begun.append(turn.num_steps))
    (tmp_path / "turn").touch()
    for _ in range(module.WARM_UP_STEPS - 1):
        assert not turn.step_ended()
    assert (begun, turn.share(), (tmp_path / "ready").exists()) == ([], 0.0, False)
    assert not turn.step_ended()  # the last of the warm-up: it waits here for `turn`
    assert (begun, turn.num_steps, (tmp_path / "ready").exists()) == ([module.WARM_UP_STEPS], 0, True)
    assert turn.step_ended()
    assert turn.share() == 1.0
    turn.tell(64, epochs=2)
    told = json.loads((tmp_path / "turn.json").read_text())
    assert (told["num_steps"], told["num_blocks"], told["epochs"]) == (1, 64, 2)


def test_the_steps_of_a_long_turn_are_those_behind_its_warm_up(tmp_path: Path) -> None:
    module = _load("trainer_turn")
    turn = module.Turn(tmp_path, 3600.0, lambda: None)
    (tmp_path / "turn").touch()
    ends = [turn.step_ended() for _ in range(module.WARM_UP_STEPS + module.STEPS_BETWEEN_READS)]
    assert not any(ends)
    assert turn.num_steps == module.STEPS_BETWEEN_READS
    assert 0 < turn.seconds < 3600


def _ended(script: str) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    process.wait()
    return process


def test_a_trainer_that_is_not_ready_or_ends_early_is_a_row_that_says_so(tmp_path: Path) -> None:
    trainers, args = _load("trainers"), Namespace(work=tmp_path, seconds=1.0, ready_within=5.0)
    (tmp_path / "late").mkdir()
    (tmp_path / "late.log").write_bytes("compiling ━".encode()[:-1])  # killed within a character
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    row = trainers.not_ready("late", process, args)
    assert (row["error"], row["log"][:10]) == ("not ready in 5.0 s", "compiling ")
    assert process.returncode == -signal.SIGKILL
    failed = _ended("import sys; sys.exit(3)")
    assert trainers.not_ready("late", failed, args)["error"] == "ended with 3 before it was ready"
    (tmp_path / "late" / "ready").write_text("2.5\n")
    assert trainers.not_ready("late", failed, args) == {}
    assert trainers.turn_of("late", failed, args)["error"] == "ended with 3 in its turn"
    silent = _ended("")
    assert trainers.turn_of("late", silent, args)["error"] == "ended without a word of its turn"
    (tmp_path / "late" / "turn.json").write_text(json.dumps({"num_blocks": 30, "seconds": 2.0}))
    row = trainers.turn_of("late", silent, args)
    assert (row["blocks_per_s"], row["warm_up_s"]) == (15.0, 2.5)
    assert (
        trainers.turn_of("late", failed, args)["error"] == "ended with 3 in its turn"
    )  # as it saved its drafter


def _is_running(group: int) -> bool:
    """Whether a process of the group runs; one that has ended may not have been asked for its code yet."""
    states = (path.read_text().rpartition(")")[2].split() for path in Path("/proc").glob("[0-9]*/stat"))
    return any(int(found[2]) == group and found[0] != "Z" for found in states)


def test_workers_of_a_trainer_that_has_ended_are_stopped() -> None:
    held = "import os, time\nif os.fork(): os._exit(0)\ntime.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", held], start_new_session=True)
    process.wait()
    os.killpg(process.pid, 0)  # its worker is there
    _load("trainers").stop(process)
    until = time.monotonic() + 20
    while time.monotonic() < until and _is_running(process.pid):
        time.sleep(0.05)
    assert not _is_running(process.pid)


def test_acceptance_is_the_ratio_of_sums_by_task() -> None:
    trainers = _load("trainers")
    costs = [(30, 10), (10, 10), (8, 2)]
    assert trainers.accepted(costs) == round(48 / 22, 4)
    served = [{"task": task} for task in ("code", "code", "chat")]
    assert trainers.by_task(served, costs) == {"code": 2.0, "chat": 4.0}


def test_a_run_leaves_no_rows_of_an_earlier_one_and_no_process_where_a_trainer_cannot_be_started(
    tmp_path: Path,
) -> None:
    trainers = _load("trainers")
    told = {
        "documents": 1,
        "held_back": 0,
        "layers": 1,
        "block_size": 16,
        "features": [1],
        "mask_token_id": 0,
    }
    (tmp_path / "shape.json").write_text(json.dumps(told | {"rows": 1, "row_tokens": 8, "anchors": 1}))
    (tmp_path / "specforge").mkdir()
    (tmp_path / "specforge" / "row.json").write_text('{"trainer": "specforge", "seconds": 1}')
    given = Namespace(
        work=tmp_path,
        seconds=1.0,
        ready_within=60.0,
        device="cpu",
        speculators=None,
        specforge="/nowhere/python",
    )
    started, start = [], trainers.start

    def noted(*asked: Any) -> Any:
        started.append(start(*asked))
        return started[-1]

    trainers.start, before = noted, signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(FileNotFoundError, match="/nowhere/python"):
            trainers.train(given)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [process.returncode for process in started] == [-signal.SIGKILL]
    with pytest.raises(SystemExit, match=r"no trainer's row\.json"):
        trainers.report(given)


def test_a_trainer_whose_parent_has_ended_does_not_wait_for_its_turn(tmp_path: Path) -> None:
    waiting = (
        "import sys; from pathlib import Path; from trainer_turn import Turn;"
        f" Turn(Path({str(tmp_path)!r}), 1.0, lambda: None).begin()"
    )
    parent = (
        "import subprocess, sys, time; from pathlib import Path;"
        f" subprocess.Popen([sys.executable, '-c', {waiting!r}], start_new_session=False);\n"
        f"while not Path({str(tmp_path / 'ready')!r}).exists(): time.sleep(0.05)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=FOLDER, start_new_session=True)
    process.wait(120)
    until = time.monotonic() + 20
    while time.monotonic() < until and _is_running(process.pid):
        time.sleep(0.05)
    assert not _is_running(process.pid)


@pytest.mark.parametrize("said", ["0", "-5", "nan", "inf"])
def test_times_that_are_none_are_refused(
    said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["trainers.py", "train", "--work", "w", f"--seconds={said}"])
    with pytest.raises(SystemExit):
        _load("trainers").main()
    assert f"{said} is no time; expected seconds above 0" in capsys.readouterr().err
