"""What a run leaves to be watched: its log, its curves, its TensorBoard files, its line in the terminal."""

import io
import json
import struct
from dataclasses import asdict
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from matplotlib.image import imread
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from flashdraft.cli.train_screen import TrainScreen, evaluation_table, outcome
from flashdraft.errors import DataError, UsageError
from flashdraft.train.config import TrainConfig
from flashdraft.train.curves import curve_of, draw_curves, smooth
from flashdraft.train.log_file import (
    append_line,
    cut_log,
    numbers_of,
    read_log,
    tensorboard_log,
    tracker_log,
)
from flashdraft.train.model_card import card_text, write_card, write_tuned_card
from flashdraft.train.trainer import Progress


def lines(count: int = 3) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for i in range(1, count + 1):
        where = {"step": 20 * i, "blocks": 640_000 * i, "elapsed_s": 360.0 * i}
        found.append(where | {"loss": 4.0 / i, "blocks_per_s": 900.0, "progress": i / 4})
        found.append(where | {"simulated_acceptance_length": {"math": 1.5 + i, "all": 1.0 + i}})
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "first"
    folder.mkdir()
    for line in lines():
        append_line(folder, line)
    return folder


def test_a_curve_is_what_the_log_says(run: Path) -> None:
    curve = curve_of(read_log(run), "simulated_acceptance_length", "math")
    assert curve.blocks == [0.64, 1.28, 1.92]
    assert curve.hours == [0.1, 0.2, 0.3]
    assert curve.values == [2.5, 3.5, 4.5]
    assert curve_of(read_log(run), "loss").values == [4.0, 2.0, 4.0 / 3]


def test_runs_are_drawn_each_in_its_colour(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "second" / "log.jsonl"
    other.parent.mkdir()
    other.write_text((run / "log.jsonl").read_text().replace("1.5", "2.5"))
    draw_curves([run, other], tmp_path / "figures" / "both.svg", "math")
    text = (tmp_path / "figures" / "both.svg").read_text()
    for said in (">first<", ">second<", "#0b6bcb", "#b45309", "acceptance length: math"):
        assert said in text, said
    draw_curves([run], tmp_path / "one.png")
    assert imread(tmp_path / "one.png").shape[2] == 4
    draw_curves([run], tmp_path / "again.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "again.png").read_bytes()


def test_what_cannot_be_drawn_is_told(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'curves\.gif'; expected a name that ends in \.png"):
        draw_curves([run], Path("curves.gif"))
    with pytest.raises(DataError, match=r"'poems'; there are: all, math"):
        draw_curves([run], tmp_path / "x.png", "poems")
    with pytest.raises(DataError, match="nowhere: not found"):
        draw_curves([tmp_path / "nowhere"], tmp_path / "x.png")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match=r"its log\.jsonl is empty; leave it out"):
        draw_curves([run, tmp_path / "empty.jsonl"], tmp_path / "x.png")
    (tmp_path / "other.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(DataError, match="line 1: not a line of a training log"):
        draw_curves([tmp_path / "other.jsonl"], tmp_path / "x.png")


def test_a_resumed_run_writes_again_what_came_after_its_state(run: Path) -> None:
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 80, "blo')  # killed while it wrote
    cut_log(run, 40)
    assert [line["step"] for line in read_log(run)] == [20, 20, 40, 40]


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    with tensorboard_log(tmp_path) as listener:
        listener({"resumed": False, "num_rows": 7})  # what a run says before its first step
        for line in lines(2):
            listener(line)
    [file] = (tmp_path / "tensorboard").iterdir()
    data, found = file.read_bytes(), {}
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    assert found[("loss", 640_000)] == 4.0
    assert found[("simulated_acceptance_length/math", 1_280_000)] == 3.5
    assert len(found) == 2 * (3 + 2)
    assert numbers_of({"step": 1, "shares": [0.5, {"a": 1}], "text": "x"}) == {
        "shares/1": 0.5,
        "shares/2/a": 1.0,
    }


@pytest.mark.parametrize("is_terminal", [False, True])
def test_the_screen_shows_the_news(is_terminal: bool) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=is_terminal, width=200, color_system=None)
    with TrainScreen(console) as screen:
        screen({"resumed": False, "num_documents": 1200})
        for line in lines():
            screen(line)
    shown = file.getvalue()
    assert "resumed no  num documents 1,200" in shown
    assert "evaluation after 1,920,000 blocks, 18.0 minutes: acceptance length" in shown
    assert [line.split() for line in shown.splitlines() if line.strip().startswith("math")][-1] == [
        "math", "4.50", "+1.00",
    ]  # fmt: skip
    if is_terminal:
        assert "75.0 %" in shown
        assert "loss 1.333  900 blocks/s  simulated 4.00" in shown
        assert "blocks_per_s" not in shown
    else:
        assert "step 60  1,920,000 blocks  75.0%  loss 1.333  900 blocks/s" in shown
        assert json.dumps("\x1b")[1:-1] not in json.dumps(shown)


def test_an_evaluation_is_a_table_by_kind() -> None:
    line = {
        "step": 9,
        "blocks": 1000,
        "elapsed_s": 90.0,
        "simulated_acceptance_length": {"code": 3.0, "math": 4.25, "all": 3.5},
        "served_acceptance_length": {"math": 4.0, "all": 3.25},
        "simulated_on_served": {"math": 4.125, "all": 3.375},
        "accepted_by_position": {"served": [0.75, 0.5], "simulated": [0.8, 0.45]},
        "answers_as_stored": "5 of 6",
        "warning": "they part",
    }
    text = evaluation_table(line, {"math": 4.0}).splitlines()
    assert text[0] == "evaluation after 1,000 blocks, 1.5 minutes: acceptance length"
    assert [row.split() for row in text[2:5]] == [
        ["code", "3.00", "–", "–", "–"],
        ["math", "4.25", "+0.25", "4.00", "4.12"],
        ["all", "3.50", "–", "3.25", "3.38"],
    ]
    assert text[5:] == [
        "  accepted by position, served: 75% 50%",
        "  accepted by position, simulated: 80% 45%",
        "  served answers that are the stored ones: 5 of 6",
        "  warning: they part",
    ]
    assert len({len(row) for row in text[1:5]}) == 1


@pytest.mark.parametrize(
    ("total_blocks", "longer"),
    [(10_000, "the same command with a larger --max-minutes goes on"), (64, "more --total-blocks")],
)
def test_a_run_that_ends_with_nothing_accepted_says_to_train_longer(total_blocks: int, longer: str) -> None:
    def told(length: float) -> str:
        found = {"step": 2, "blocks": 64, "elapsed_s": 90.0, "simulated_acceptance_length": {"all": length}}
        return outcome(Path("first/drafter"), [found, {"step": 2, "loss": 9.0}], total_blocks)

    assert told(1.2) == outcome(Path("first/drafter"), [], 1)
    assert told(1.2).endswith("hf upload USER/NAME first/drafter")
    nothing = told(1.004)
    assert "upload" not in nothing
    assert "accepts nothing yet (acceptance length 1.00 after 64 blocks in 1.5 minutes)" in nothing
    assert longer in nothing


def test_a_step_longer_than_all_its_minutes_is_no_more_than_the_whole_run() -> None:
    assert Progress(1, 202.4).share(TrainConfig(max_minutes=1)) == 1.0
    assert Progress(1, 30.0).share(TrainConfig(max_minutes=1)) == 0.5


def test_smoothing_keeps_the_start_and_its_half_life_is_in_blocks() -> None:
    blocks = [1.0, 2.0, 3.0]
    assert smooth(blocks, [8.0, 4.0, 2.0]) == pytest.approx([8.0, 4.0, 2.0], rel=0.02)
    # After 100 blocks 3 are a half-life: the old value counts half.
    assert smooth([97.0, 100.0], [8.0, 4.0])[1] == pytest.approx(6.0)
    dense = [float(at) for at in range(1, 401)]
    noisy = [2.0 + (at % 2) for at in range(400)]
    assert smooth(dense, noisy)[-1] == pytest.approx(2.5, abs=0.05)


def test_a_tracker_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--nosuch needs the package nosuch; install it"):
        tracker_log("nosuch", "project", tmp_path).__enter__()


def test_the_card_tells_what_the_run_was(tmp_path: Path) -> None:
    drafter = tmp_path / "first" / "drafter"
    drafter.mkdir(parents=True)
    facts = {
        "config": asdict(TrainConfig()),
        "num_documents": 200,
        "num_answer_tokens": 50_000,
        "num_cut_answers": 20,
        "num_processes": 1,
        "template": {"enable_thinking": False},
        "provenance": {"versions": {"flashdraft": "1"}, "git_sha": "abc", "device": "cpu"},
    }
    write_card(drafter, "org/target", facts, lines())
    card = ModelCard.load(drafter / "README.md")
    assert card.data.base_model == "org/target"
    assert "dflash" in card.data.tags
    for said in ("| math | 4.50 | – |", "10% were cut", '{"enable_thinking": false}', "hf upload USER/NAME"):
        assert said in card.text, said
    write_tuned_card(drafter, "org/target", "org/drafter", {"requests": (3.0, 3.5, 20)})
    tuned = ModelCard.load(drafter / "README.md")
    assert (tuned.data.base_model, "| requests | 3.00 | 3.50 | 20 |" in tuned.text) == ("org/target", True)
    (drafter / "README.md").write_text("mine")
    write_card(drafter, str(tmp_path), facts, lines())
    assert (drafter / "README.md").read_text() == "mine"
    assert "base_model" not in card_text(drafter, str(tmp_path), facts, [])
