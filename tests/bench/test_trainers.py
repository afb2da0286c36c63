"""The comparison of trainers (benchmarks/peers/trainers.py): turns on the machine, and what is made of theirs."""

import importlib.util
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[2] / "benchmarks" / "peers"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
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


def test_a_trainer_that_is_not_ready_or_ends_early_is_a_row_that_says_so(tmp_path: Path) -> None:
    trainers, args = _load("trainers"), Namespace(work=tmp_path, seconds=1.0, ready_within=5.0)
    (tmp_path / "late").mkdir()
    (tmp_path / "late.log").write_text("compiling")
    script = "import sys; sys.exit(3)"
    with subprocess.Popen([sys.executable, "-c", script], start_new_session=True) as process:
        row = trainers.turn_of("late", process, args)
        assert (row["error"], row["log"]) == ("not ready in 5.0 s", "compiling")
        (tmp_path / "late" / "ready").write_text("2.5\n")
        assert trainers.turn_of("late", process, args)["error"] == "ended with 3 in its turn"
        (tmp_path / "late" / "turn.json").write_text(json.dumps({"num_blocks": 30, "seconds": 2.0}))
        row = trainers.turn_of("late", process, args)
    assert (row["blocks_per_s"], row["warm_up_s"]) == (15.0, 2.5)


def test_acceptance_is_the_ratio_of_sums_by_task() -> None:
    trainers = _load("trainers")
    costs = [(30, 10), (10, 10), (8, 2)]
    assert trainers.accepted(costs) == round(48 / 22, 4)
    served = [{"task": task} for task in ("code", "code", "chat")]
    assert trainers.by_task(served, costs) == {"code": 2.0, "chat": 4.0}
