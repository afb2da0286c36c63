"""vLLM's steps beside ours (peers/vllm_steps.py, vllm_rows.py, gpu_report.py): its configs and our report."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from flashdraft.checkpoint.quantization import Quantization, read_quantization
from scripts import scripts

PLAIN = {"system": "flashdraft", "pair": "27b", "method": "plain", "provenance": {"git_sha": "0123456789"}}


@pytest.fixture(scope="module")
def steps() -> Iterator[Any]:
    with scripts("benchmarks/peers", "vllm_steps") as (module,):
        yield module


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        ("bf16", None),
        ("fp8", Quantization("scaled", block=(128, 128))),
        ("int4", Quantization("packed", group_size=128)),
    ],
)
def test_our_reader_takes_the_target_as_the_format_that_vllm_is_given(
    steps: Any, weights: str, wanted: Quantization | None, tmp_path: Path
) -> None:
    steps.write_configs(tmp_path, weights)
    config = json.loads((tmp_path / "target/config.json").read_text())
    assert read_quantization(config, tmp_path / "target") == wanted
    assert len(config["text_config"]["layer_types"]) == config["text_config"]["num_hidden_layers"] == 64
    assert json.loads((tmp_path / "dflash/config.json").read_text())["num_hidden_layers"] == 6


@pytest.mark.parametrize(("length", "block"), [(7.93, 16), (5.47, 16), (5.9, 8)])
def test_synthetic_acceptance_gives_the_length(steps: Any, length: float, block: int) -> None:
    chances = steps.conditional_rates(length, block)
    assert len(chances) == block - 1
    assert 1 + torch.tensor(chances).cumprod(0).sum().item() == pytest.approx(length)


class _Worker:
    """What vLLM's worker has of its model."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.get_model = lambda: model


def test_codes_are_filled_with_finite_values_and_floats_are_left(steps: Any) -> None:
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.full((64, 64), torch.nan).to(torch.float8_e4m3fn), False)
    model.weight_scale_inv = torch.nn.Parameter(torch.full((2, 2), -1.0), False)
    model.weight_packed = torch.nn.Parameter(torch.zeros(64, 8, dtype=torch.int32).t(), False)
    model.k_scale = torch.nn.Parameter(torch.ones(1), False)
    filled = steps.fill_codes(_Worker(model))
    assert filled == {"float8_e4m3fn weight": 4096, "int32 weight_packed": 512, "float32 weight_scale_inv": 4}
    values = model.weight.float()
    assert values.isfinite().all()
    assert 0.5 < values.abs().max() < 1
    assert values.unique().numel() > 50
    assert model.weight_packed.unique().numel() > 400
    assert (model.weight_scale_inv > 0).all()
    assert model.k_scale == 1


def passes(step_ms: float, steady: float) -> list[dict[str, float]]:
    cell = {"most_active": 8, "tokens_s": steady / 2, "step_ms": step_ms, "steady_tokens_s": steady}
    return [cell | {"step_ms": 99.0}, cell]  # the first one compiles


def test_the_report_has_each_format_beside_vllm_in_the_same_one(tmp_path: Path) -> None:
    ours = [PLAIN | {"requests": 8, "step_ms": 14.0, "output_tokens_per_s": 500.0, "copy_tb_s": 4.2}]
    codes = [PLAIN | {"weights": "fp8", "requests": 8, "step_ms": 10.0, "output_tokens_per_s": 800.0}]
    for name, rows in (("rows", ours), ("codes", codes), ("bits", [])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kernels = {"UnquantizedLinearMethod": 96, "SomeProducts": 256}
    for name, found in {
        "27b-ar": {"weights": "bf16", "kernels": {}, "cells": {"ar x8": passes(16.0, 400.0)}},
        "27b-fp8-ar": {"weights": "fp8", "kernels": kernels, "cells": {"ar x8": passes(12.5, 640.0)}},
    }.items():
        (tmp_path / f"vllm-{name}.json").write_text(json.dumps(found))
    with (
        scripts("benchmarks", "vllm_rows", "gpu_report") as (rows_of, report),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("sys.argv", ["vllm_rows.py", str(tmp_path), "vllm-27b-fp8-ar.json"])
        rows_of.main()
        assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 1  # what was not named is left
        patch.setattr("sys.argv", ["vllm_rows.py", str(tmp_path), "vllm-27b-ar.json"])
        rows_of.main()
        patch.setattr("sys.argv", ["gpu_report.py", str(tmp_path)])
        report.main()
    told = (tmp_path / "report.md").read_text()
    assert "| fp8 | plain | 8 | 10.0 | - | 800 | 1.60 | 12.5 | 640 | 1.25 | SomeProducts |" in told
    assert "| plain | 8 | 14.0 | - | - | - | 500 | - | 16.0 | 400 | 1.25 |" in told
