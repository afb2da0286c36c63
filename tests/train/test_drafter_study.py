"""The embedded drafter's study: rows that go on from a trained drafter, by objective, with figures at temperature 1."""

import random
from argparse import Namespace
from collections.abc import Iterator
from copy import deepcopy
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flashdraft.data.on_policy import Document
from flashdraft.generate import generate
from flashdraft.sampling_params import SamplingParams
from flashdraft.train.config import TrainConfig
from flashdraft.train.run import is_held_back, with_dflash2
from scripts import scripts
from toys import toy_dflash, toy_target

TARGET = toy_target().requires_grad_(False)


@pytest.fixture(scope="module")
def recipe() -> Iterator[Any]:
    """The recipe's modules ``main``, ``answers`` and ``study``."""
    with scripts("recipes/smollm2-135m", "dflash2", "dflash2_answers", "dflash2_study") as (
        main,
        answers,
        study,
    ):
        yield SimpleNamespace(main=main, answers=answers, study=study)


def answers() -> list[Document]:
    rng, found = random.Random(0), []
    for heat in (0.0, 1.0):
        for is_wanted, number in ((False, 24), (True, 3)):
            names = (f"{n}-{heat}" for n in count())
            for i in range(number):
                prompt = [5, 90, 91, 6, 91, 5, 92, *(rng.randrange(10, 90) for _ in range(9))]
                params = SamplingParams(temperature=heat, seed=i, max_tokens=24)
                token_ids = generate(TARGET, None, prompt, params).token_ids
                made = (Document(name, "chat", heat, prompt, token_ids, "length") for name in names)
                found.append(next(doc for doc in made if is_held_back(doc) == is_wanted))
    return found


@pytest.mark.parametrize("objective", ["labels", "soft", "accepted"])
def test_a_row_goes_on_from_a_trained_drafter(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    args = Namespace(
        run=tmp_path / "run", out=tmp_path / "out", seq_len=256, long_share=0.3, answer_rows=1, answer_seconds=1.0,
        max_new_tokens=24, greedy=0.5, rows_per_step=2, blocks_per_row=8, weighting="dpace", dpace_power=1.0, seed=0,
        device="cpu", dtype="float32", head="dflash2", selector_rank=8, selector_stops=False, lr=1e-3,
    )  # fmt: skip
    args.run.mkdir()
    recipe.answers.save_answers(answers(), args.run)
    drafter = with_dflash2(toy_dflash(TARGET), TrainConfig(head="dflash2", selector_rank=8))
    copies: list[Any] = []

    def loaded(*_: Any, **__: Any) -> Any:
        copies.append(deepcopy(drafter))
        return copies[-1]

    # The toy pair in the shipped one's place: that has 135 million parameters.
    monkeypatch.setattr(recipe.study, "load_target", lambda *_, **__: TARGET)
    monkeypatch.setattr(recipe.study, "load_drafter", loaded)
    monkeypatch.setattr(recipe.study, "new_drafter", lambda *_: drafter)
    study = recipe.study.Study(args, recipe.main.Output(args.out, 0.0))
    row = study.row(f"shipped, {objective}", 1.0)
    assert row["blocks"] > 0
    assert row["acceptance_length"].keys() == {"chat"}
    assert row["long_contexts"] >= 1
    assert row["temperature_1"]["rejection, 1.0"] >= row["temperature_1"]["noise, 1.0"] >= 1
    assert len(copies) == 2  # compiled with, and trained
    assert (
        copies[1].candidate_selector.hidden_projection.weight
        != drafter.candidate_selector.hidden_projection.weight
    ).any()
