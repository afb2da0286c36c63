"""Checkpoints that other libraries quantized (tests/make_quantized.py): the bits that they dequantize to.

But for the signs of zeros, which a product with unit vectors does not tell.
"""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flashdraft.checkpoint.load import load_target
from flashdraft.errors import CheckpointError

MADE = Path(__file__).parents[1] / "made_elsewhere"
FOLDERS = sorted(folder.name for folder in MADE.iterdir())
REFUSED = {
    "llmcompressor-nvfp4a16": r"is quantized \(compressed-tensors, nvfp4-pack-quantized, .*\).*flashdraft launch"
}


@pytest.mark.parametrize("name", [name for name in FOLDERS if name not in REFUSED])
def test_equals_what_the_library_dequantizes(name, logits_of):
    target = load_target(MADE / name, "float32")
    expected = json.loads((MADE / name / "expected.json").read_text())["sha256"]
    found = {
        name: hashlib.sha256((tensor + 0.0).numpy().tobytes()).hexdigest()
        for name, tensor in target.state_dict().items()
    }
    assert found == {name: digest for name, digest in expected.items() if name != "lm_head.weight"}
    given = load_file(MADE / name / "expected.safetensors")
    ours = logits_of(target, given["ids"].tolist())
    assert (ours - given["logits"]).abs().max() <= 1e-4
    assert given["logits"].abs().max() > 1


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_by_name(name):
    with pytest.raises(CheckpointError, match=REFUSED[name]):
        load_target(MADE / name)


def test_they_are_quantizations_of_one_model():
    """What is expected was dequantized rightly: it is near what every other library makes of the same weights."""
    logits = {name: load_file(MADE / name / "expected.safetensors")["logits"] for name in FOLDERS}
    middle = torch.stack(list(logits.values())).median(0).values
    for name, ours in logits.items():
        assert (ours - middle).norm() < 0.5 * middle.norm(), name
