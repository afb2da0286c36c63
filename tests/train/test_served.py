"""The served check of an evaluation: equal to its simulation, or told."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import flashdraft.train.served as served
from flashdraft.data.loader import pack
from flashdraft.data.on_policy import Document
from flashdraft.generate import generate
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode import build
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.train.config import TrainConfig
from flashdraft.train.trainer import Trainer
from toys import toy_dflash, toy_mtp, toy_target

TARGET = toy_target().requires_grad_(False)
CONFIG = TrainConfig(
    block_size=8, seq_len=128, rows_per_step=2, blocks_per_row=16, total_blocks=32 * 80, lr=5e-3,
    slots_per_block=7.0, served_prompts=3,
)  # fmt: skip


def answered(seed: int, count: int = 8) -> list[Document]:
    params = SamplingParams(temperature=0.0, max_tokens=40)
    prompts = [[seed + 7 * i, seed + i, 3 * i + 1] for i in range(count)]
    answers = [generate(TARGET, None, prompt, params).token_ids for prompt in prompts]
    return [Document("", "", 0.0, p, a, "length") for p, a in zip(prompts, answers, strict=True)]


VALIDATION = {kind: pack(answered(seed), 128) for kind, seed in (("chat", 1), ("math", 2))}


def trained(folder: Path, method: str) -> tuple[Any, list[dict[str, Any]]]:
    few = {"draft_vocab_size": 64, "borrows_head": True} if method == "dflash, 64 tokens" else {}
    drafter = toy_mtp(TARGET) if method == "mtp" else toy_dflash(TARGET, **few)
    lines: list[dict[str, Any]] = []
    trainer = Trainer(TARGET, drafter, VALIDATION["chat"], VALIDATION, CONFIG, folder)
    trainer.train(lines.append)
    return drafter, lines


@pytest.mark.parametrize("method", ["dflash", "dflash, 64 tokens", "mtp"])
def test_served_acceptance_is_the_simulated_one(method: str, tmp_path: Path) -> None:
    _, lines = trained(tmp_path, method)
    line = lines[-1]
    assert line["served_acceptance_length"] == line["simulated_on_served"]
    assert set(line["served_acceptance_length"]) == {"chat", "math", "all"}
    assert line["served_acceptance_length"]["all"] > 1.1
    by_position = line["accepted_by_position"]
    assert by_position["served"] == by_position["simulated"]
    assert len(by_position["served"]) == 7
    assert by_position["served"][0] > by_position["served"][-1]
    assert line["answers_as_stored"] == "3 of 3"
    assert "warning" not in line


def test_what_is_served_otherwise_than_trained_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter, _ = trained(tmp_path, "dflash")

    class LateFeatures(DFlashDrafter):
        def open(self, *room: int) -> Any:
            drafts = super().open(*room)
            observe = drafts.observe

            def shifted(rows: Any, token_ids: Any, features: Sequence[Tensor]) -> None:
                observe(rows, token_ids, [one.roll(1, dims=0) for one in features])

            drafts.observe = shifted  # type: ignore[method-assign]
            return drafts

    monkeypatch.setattr(build, "DFlashDrafter", LateFeatures)
    values = served.check_served(TARGET, drafter, VALIDATION, CONFIG)
    assert "what is trained is not what is served" in values["warning"]


def test_prompts_are_spread_over_the_kinds_of_text() -> None:
    config = TrainConfig(**{**CONFIG.__dict__, "served_prompts": 1})
    values = served.check_served(TARGET, toy_dflash(TARGET), VALIDATION, config)
    assert set(values["served_acceptance_length"]) == {"chat", "all"}
    assert values["answers_as_stored"] == "1 of 1"
