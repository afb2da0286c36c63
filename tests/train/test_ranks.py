"""Two processes over gloo train as one does, and each number of them goes on with the other's state."""

import socket
from pathlib import Path

import pytest
import torch

from flashdraft.data.loader import PackedRows
from flashdraft.errors import UsageError
from flashdraft.train.config import TrainConfig
from flashdraft.train.ranks import Ranks
from two_processes import PAUSE_STEP, RUNS, losses, toy_rows, train, work

SPLIT = next(name for name, (_, is_split) in RUNS.items() if is_split)


@pytest.fixture(scope="module")
def rows() -> PackedRows:
    return toy_rows()


@pytest.fixture(scope="module")
def by_two(rows: PackedRows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run by two processes; the split one began by one process, or is left for one."""
    folder = tmp_path_factory.mktemp("two")
    train(folder / SPLIT, RUNS[SPLIT][0], rows, Ranks(), pauses=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, rows, folder), nprocs=2)
    train(folder / f"{SPLIT} by one", RUNS[SPLIT][0], rows, Ranks())
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_have_the_losses_of_one(
    name: str, rows: PackedRows, by_two: Path, tmp_path: Path
) -> None:
    changes = RUNS[name][0] | {"accumulate": 1}
    train(tmp_path, changes, rows, Ranks())
    one, two = losses(tmp_path), losses(by_two / name)
    if name == SPLIT:
        del two[PAUSE_STEP]  # the mean of what came before
        by_one = losses(by_two / f"{name} by one")
        assert by_one[len(one)] == pytest.approx(one[len(one)], rel=1e-3)
    assert list(two) == list(one)[-len(two) :]
    assert len(two) == {"plain": 50, SPLIT: 12 - PAUSE_STEP}.get(name, 12)
    # D-PACE draws slots by computed confidences: one that a rounding moves to the next slot is another sample.
    exact = 5 if changes.get("weighting") == "dpace" else 50
    for step, loss in two.items():
        assert loss == pytest.approx(one[step], rel=1e-3 if step <= exact else 0.1), step


def test_every_process_ends_with_the_same_drafter(by_two: Path) -> None:
    for name in RUNS:
        first, second = (torch.load(by_two / name / f"drafter-{rank}.pt") for rank in (0, 1))
        for key, value in first.items():
            assert torch.equal(value, second[key]), (name, key)


def test_rows_and_matrices_are_shared_out() -> None:
    parts = [part for rank in range(2) for part in Ranks(rank, 2).parts(8, 2)]
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(8))
    assert Ranks(0, 3).owners([5, 1, 9, 4, 6, 2]) == [2, 1, 0, 2, 1, 1]


def test_settings_that_do_not_go_together_are_told() -> None:
    with pytest.raises(UsageError, match=r"accumulate is 3; expected a divisor of rows_per_step \(4\)"):
        TrainConfig(accumulate=3)
    with pytest.raises(UsageError, match="recompute is for the layers of a DFlash drafter"):
        TrainConfig(recompute=True, method="mtp")
