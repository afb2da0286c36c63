"""Mistral and Ministral 3 against transformers, with rollback, drafted, and beside a vision tower as published."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Ministral3Config, Ministral3ForCausalLM, MistralConfig, MistralForCausalLM

from against_transformers import check_against_transformers, check_drafted, check_rollback, save_and_load
from flashdraft.checkpoint.load import load_target
from flashdraft.errors import CheckpointError
from flashdraft.native.accelerate import accelerate
from flashdraft.native.target import NativeTarget

SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "sliding_window": None,
    "eos_token_id": 2,
}
# As Ministral-3-8B's, its texts of 16 tokens in place of 16,384: the toys' go far beyond.
ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.5,
}
CASES = {
    "mistral": (MistralForCausalLM, MistralConfig(**SHAPE)),
    "ministral3": (Ministral3ForCausalLM, Ministral3Config(**SHAPE | {"rope_parameters": ROPE})),
}


@pytest.mark.parametrize("kind", CASES)
def test_mistral(tmp_path, kind):
    theirs, ours = save_and_load(tmp_path, *CASES[kind])
    assert dict(ours.named_parameters()).keys() == dict(theirs.named_parameters()).keys()
    check_against_transformers(theirs, ours)
    check_rollback(ours)
    check_drafted(ours, 20)


def beside_vision(folder):
    """The files of a language model as Mistral Small 3.1 and Ministral 3 have them: beside a vision tower."""
    state = {}
    for file in folder.glob("*.safetensors"):
        state |= load_file(file)
        file.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    named = {f"language_model.{name}": tensor for name, tensor in state.items()}
    others = {
        name: torch.ones(2) for name in ("vision_tower.ln_pre.weight", "multi_modal_projector.norm.weight")
    }
    save_file(named | others, folder / "model.safetensors")
    text = json.loads((folder / "config.json").read_text())
    whole = {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "model_type": "mistral3",
        "text_config": text,
    }
    (folder / "config.json").write_text(json.dumps(whole))


@pytest.mark.parametrize("kind", CASES)
def test_beside_a_vision_tower(tmp_path, kind):
    theirs, _ = save_and_load(tmp_path, *CASES[kind])
    beside_vision(tmp_path)
    check_against_transformers(theirs, load_target(tmp_path, dtype="float32"))


def test_the_fast_path_does_not_take_ministrals_layers_for_llamas(tmp_path):
    """Mistral's are Llama's; Ministral's queries are multiplied, which the C++ layers do not know."""
    for kind, is_fast in (("mistral", True), ("ministral3", False)):
        _, ours = save_and_load(tmp_path / kind, *CASES[kind])
        assert isinstance(accelerate(ours.to(torch.bfloat16)), NativeTarget) == is_fast


def test_a_sliding_window_is_refused(tmp_path):
    config = MistralConfig(**SHAPE | {"sliding_window": 64})
    with pytest.raises(CheckpointError, match=r"a sliding window of 64 tokens; expected none"):
        save_and_load(tmp_path, MistralForCausalLM, config)


def test_a_ministral_without_its_factors_is_refused(tmp_path):
    save_and_load(tmp_path, *CASES["ministral3"])
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]["llama_4_scaling_beta"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"expected llama_4_scaling_beta and original_max_position_embeddings"
    ):
        load_target(tmp_path)
