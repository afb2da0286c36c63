"""The mean of drafters' weights, as the embedded drafter's recipe takes it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from scripts import REPO, scripts

CONFIG = {"hidden_size": 8, "dtype": "bfloat16", "transformers_version": "5.0"}


def folder(at: Path, tensors: dict[str, Tensor], **changed: object) -> Path:
    at.mkdir()
    save_file(tensors, at / "model.safetensors")
    (at / "config.json").write_text(json.dumps(CONFIG | changed))
    return at


def drafter(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {
        "a": torch.randn(300, 8, dtype=torch.bfloat16),
        "norm.weight": torch.randn(5),
        "d2t": torch.arange(4),
        "t2d": torch.ones(9, dtype=torch.bool),
    }


def test_it_is_that_of_the_folders_by_their_weights(tmp_path: Path) -> None:
    first, second = drafter(0), drafter(1)
    one = folder(tmp_path / "one", first)
    two = tmp_path / "two"  # in shards
    two.mkdir()
    save_torch_state_dict(second, two, max_shard_size=4096)
    assert len(list(two.glob("*.safetensors"))) > 1
    (two / "config.json").write_text(json.dumps(CONFIG | {"transformers_version": "5.1"}))
    script = REPO / "recipes/smollm2-135m/mean.py"
    out = tmp_path / "out"
    subprocess.run([sys.executable, script, "--out", out, one, f"{two}=3"], check=True)
    made = load_file(out / "model.safetensors")
    for name in ("a", "norm.weight"):
        assert made[name].dtype == first[name].dtype
        expected = ((first[name].double() + 3 * second[name].double()) / 4).to(first[name].dtype)
        torch.testing.assert_close(made[name], expected, rtol=1e-2, atol=1e-6)
    assert torch.equal(made["d2t"], first["d2t"])
    assert torch.equal(made["t2d"], first["t2d"])
    assert json.loads((out / "config.json").read_text()) == CONFIG


def test_of_one_it_is_that_one(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", drafter(0))
    with scripts("recipes/smollm2-135m", "mean") as (mean,):
        made = mean.mean([(one, 2.0)])
    assert all(torch.equal(made[name], tensor) for name, tensor in drafter(0).items())


@pytest.mark.parametrize(
    ("changed", "config", "weight", "message"),
    [
        ({"c": torch.ones(1)}, {}, 1.0, "differ in c;"),
        ({"norm.weight": torch.ones(6)}, {}, 1.0, "differ in norm.weight;"),
        ({"d2t": torch.arange(4) + 1}, {}, 1.0, "other values of d2t"),
        ({}, {"hidden_size": 9}, 1.0, "another config.json"),
        ({}, {}, 0.0, "counts 0.0 times; expected more than 0"),
    ],
)
def test_what_has_no_mean_is_refused(
    tmp_path: Path, changed: dict[str, Tensor], config: dict[str, object], weight: float, message: str
) -> None:
    one = folder(tmp_path / "one", drafter(0))
    two = folder(tmp_path / "two", drafter(1) | changed, **config)
    with scripts("recipes/smollm2-135m", "mean") as (mean,), pytest.raises(ValueError, match=message):
        mean.mean([(one, 1.0), (two, weight)])
