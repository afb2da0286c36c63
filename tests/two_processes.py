"""Toy training by two processes over gloo: what each of them runs, in a module that it can import."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import flashdraft.train.trainer as trainer_module
from flashdraft.data.loader import PackedRows, pack
from flashdraft.data.on_policy import Document
from flashdraft.generate import generate
from flashdraft.sampling_params import SamplingParams
from flashdraft.train.config import TrainConfig
from flashdraft.train.ranks import Ranks, ranks_of_launch
from flashdraft.train.trainer import Trainer
from toys import toy_dflash, toy_target

PAUSE_STEP = 6
CONFIG = TrainConfig(
    block_size=8, seq_len=128, rows_per_step=4, blocks_per_row=16, total_blocks=64 * 12, lr=5e-3,
    weighting="decay", eval_minutes=60.0, served_prompts=1,
)  # fmt: skip
# A run's name -> its settings that differ, and whether it stops half-way and lets the other number of processes go on.
RUNS: dict[str, tuple[dict[str, Any], bool]] = {
    "plain": ({"total_blocks": 64 * 50}, False),
    "accumulated": ({"accumulate": 2, "distill": 0.5, "optimizer": "adamw"}, False),
    "weighted": ({"weighting": "dpace", "accumulate": 2, "shard_target": False, "recompute": True}, False),
    "resumed": ({}, True),
}


def toy_rows() -> PackedRows:
    """Five rows of the toy target's own answers."""
    target, params = toy_target(), SamplingParams(temperature=0.0, max_tokens=40)
    documents = []
    for i in range(13):
        prompt = [(7 * i + 3 * j) % 90 for j in range(5 + i % 7)]
        documents.append(
            Document("", "", 0.0, prompt, generate(target, None, prompt, params).token_ids, "length")
        )
    return pack(documents, 128)


def train(
    folder: Path, changes: dict[str, Any], rows: PackedRows, ranks: Ranks, pauses: bool = False
) -> None:
    """Train to the end, or to PAUSE_STEP, into ``folder``; goes on with what is there."""
    target = toy_target().requires_grad_(False)
    drafter = toy_dflash(target)
    config = dataclasses.replace(CONFIG, **changes)
    trainer = Trainer(target, drafter, rows, {"toy": rows}, config, folder, ranks=ranks)
    trainer.resume()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "STEPS_BETWEEN_READS", PAUSE_STEP if pauses else 1)
        trainer.train(lambda _: None, 1e-9 if pauses else float("inf"))
    torch.save(drafter.state_dict(), folder / f"drafter-{ranks.rank}.pt")


def losses(folder: Path) -> dict[int, float]:
    """The logged losses of a run, by step."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def work(rank: int, port: int, rows: PackedRows, folder: Path) -> None:
    """All runs, as process ``rank`` of two."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with ranks_of_launch("cpu") as (ranks, _):
        for name, (changes, is_split) in RUNS.items():
            train(folder / name, changes, rows, ranks)
            if is_split:
                train(folder / f"{name} by one", changes, rows, ranks, pauses=True)
