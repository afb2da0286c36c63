"""The plan for many GPUs that the guide names is what its script computes from today's networks."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlamaConfig, Qwen3MoeConfig

from command_line import run_command
from flashdraft.bench.published import pair_configs, usual_drafter
from flashdraft.gpus import GPUS
from flashdraft.train.config import TrainConfig
from flashdraft.train.forecast import PairSizes, Plan, duration, forecast, memory
from tiny_pair import save_tiny_pair

REPO = Path(__file__).parents[2]


def test_the_committed_plan_is_the_computed_one() -> None:
    script = runpy.run_path(str(REPO / "benchmarks" / "train_plan.py"))
    computed = script["document"]("qwen3.5-27b", script["PLANS"])
    assert computed == (REPO / "benchmarks" / "results" / "train_plan.md").read_text()


def test_the_plan_counts_what_a_process_holds() -> None:
    pair = PairSizes(*pair_configs("qwen3-4b"))
    assert pair.layers + pair.whole == 4_022_468_096  # as its checkpoint on the hub
    one = Plan(1, 1, False, num_gpus=1, gpus_per_host=1)
    assert memory(pair, one)["target's layers, this GPU's part"] == 2 * pair.layers
    assert memory(pair, one)["two gathered layers"] == 0
    assert pair.largest_share(1) == pair.draft
    assert pair.draft / 64 < pair.largest_share(64) < pair.draft / 10


def embedded_sizes() -> PairSizes:
    """Of the embedded target's shape, with a drafter of five of its layers."""
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, head_dim=64, tie_word_embeddings=True,
    )  # fmt: skip
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64}
    return PairSizes(config, replace(usual_drafter(config), **heads))


@pytest.mark.parametrize(
    ("file", "weighting"),
    [
        ("train_speed_48x128.json", "dpace"),
        ("train_speed_24x384.json", "decay"),
        ("train_speed_16_32x256.json", "decay"),  # its 16 rows are bound by the host
    ],
)
def test_measured_steps_are_foretold(file: str, weighting: str) -> None:
    """Steps of the embedded target's shape on one H200 and one H100, which have the same peak."""
    measured = json.loads((REPO / "recipes" / "smollm2-135m" / file).read_text())
    for step in measured["steps"]:
        config = TrainConfig(
            rows_per_step=step["rows"], blocks_per_row=step["blocks_per_row"], weighting=weighting
        )
        told = forecast(embedded_sizes(), config, GPUS["H200"], 1, 0, False)
        assert told.step_s == pytest.approx(step["step_s"], rel=0.2), step
        assert told.blocks_per_s == pytest.approx(step["blocks_per_s"], rel=0.25)


def test_the_rehearsal_of_the_27b_is_foretold() -> None:
    """Random weights of its shape on one H200; its speed is what the share of wide drafters is taken from."""
    measured = json.loads((REPO / "benchmarks" / "results" / "h200" / "rehearsal_27b.json").read_text())
    recipe = runpy.run_path(str(REPO / "benchmarks" / "rehearse_27b.py"))["RECIPE"]
    told = forecast(PairSizes(*pair_configs("qwen3.5-27b")), recipe, GPUS["H200"], 1, 0, False)
    assert told.memory_bytes == pytest.approx(measured["training"]["peak_bytes"], rel=0.05)
    assert told.step_s == pytest.approx(measured["training"]["step_s"], rel=0.15)


def test_experts_that_a_token_does_not_meet_cost_memory_and_no_time() -> None:
    config = Qwen3MoeConfig(
        vocab_size=512, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, num_experts=16, num_experts_per_tok=2, moe_intermediate_size=32, intermediate_size=64,
    )  # fmt: skip
    pair = PairSizes(config, usual_drafter(config, 2))
    assert pair.layers - pair.active_layers == 4 * 14 * 3 * 64 * 32


def test_the_command_forecasts_in_place_of_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, _ = save_tiny_pair(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"prompt": "Hi"}\n{"prompt": "Ho"}\n')
    told = ["train", "--dry-run", "--model", target, "--out", str(tmp_path / "run"), "--num-features", "2"]
    told += ["--prompts", str(tmp_path / "a.jsonl"), "--gpu", "4.8,989,450,141", "--gpus", "2"]
    result = run_command(told, capsys)
    assert result.exit_code == 0, result.stderr
    assert "of 141 GB, fits" in result.stdout
    assert "answers: 4, at most" in result.stdout
    assert not (tmp_path / "run").exists()
    small = run_command([*told[:-4], "--gpu", "1,1,1,0.001"], capsys)
    assert "DOES NOT FIT" in small.stdout
    assert run_command([*told, "--rows-per-step", "3"], capsys).exit_code == 2


def test_short_durations_are_told_in_minutes() -> None:
    told = [duration(hours) for hours in (30.04, 2.0, 1.5, 0.05, 0.0)]
    assert told == ["30.0 hours", "2.0 hours", "90 minutes", "3.0 minutes", "0.1 minutes"]
