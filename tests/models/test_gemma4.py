"""Gemma 4's language model in the layouts of 12B, 26B-A4B and 31B against transformers, with rollback and drafted."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma4ForCausalLM, Gemma4TextConfig, Gemma4UnifiedTextConfig
from transformers.models.gemma4_unified.modeling_gemma4_unified import Gemma4UnifiedForCausalLM

from against_transformers import (
    check_against_transformers,
    check_drafted,
    check_rollback,
    save_and_load,
    straight,
)
from flashdraft.checkpoint.load import load_target, outline_target
from flashdraft.errors import CheckpointError

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "max_position_embeddings": 512,
    "sliding_window": 24,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "hidden_size_per_layer_input": 0,
    "final_logit_softcapping": 3.0,
    "eos_token_id": 2,
}
LAYOUTS = {
    "12b": {},
    "31b": {"attention_k_eq_v": True, "num_global_key_value_heads": 1},
    "26b-a4b": {
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 24,
    },
    "shared": {"num_kv_shared_layers": 3, "use_double_wide_mlp": True},
}


def made(folder, layout, **changes):
    theirs, _ = save_and_load(
        folder, Gemma4ForCausalLM, Gemma4TextConfig(**SHAPE, **LAYOUTS[layout], **changes), 0.1
    )
    for i, layer in enumerate(theirs.model.layers):
        layer.layer_scalar.fill_(0.7 + 0.1 * i)  # a buffer, 1 where nothing was trained
    theirs.save_pretrained(folder, max_shard_size="100KB")
    return theirs, load_target(folder, "float32")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gemma4(tmp_path, layout):
    theirs, ours = made(tmp_path, layout)
    assert dict(ours.named_parameters()).keys() == dict(theirs.named_parameters()).keys()
    check_against_transformers(theirs, ours)
    check_rollback(ours)


def test_unified(tmp_path):
    """The 12B's own type: the dense one, without experts' fields."""
    shape = {name: value for name, value in SHAPE.items() if name != "hidden_size_per_layer_input"}
    theirs, ours = save_and_load(tmp_path, Gemma4UnifiedForCausalLM, Gemma4UnifiedTextConfig(**shape), 0.1)
    check_against_transformers(theirs, ours)


@pytest.mark.parametrize("layout", ["31b", "26b-a4b"])
def test_drafted(tmp_path, layout):
    _, ours = made(tmp_path, layout)
    check_drafted(ours)


def test_full_layers_keep_heads_of_their_own(tmp_path):
    _, ours = made(tmp_path, "31b")
    kept = [(shape.kv_heads, shape.head_dim, shape.window) for shape in ours.kv_shapes()]
    assert kept[:3] == [(2, 16, 24), (2, 16, 24), (1, 32, None)]
    cache = ours.new_cache(1, 8)
    assert [tuple(layer.k.shape) for layer in cache.layers[:3]] == [(1, 2, 8, 16)] * 2 + [(1, 1, 8, 32)]


def test_beside_its_vision_tower(tmp_path):
    """As published: the text's config nested, its tensors under a name of their own, towers left out."""
    _, flat = made(tmp_path, "31b")
    state = {}
    for file in tmp_path.glob("*.safetensors"):
        state |= load_file(file)
        file.unlink()
    (tmp_path / "model.safetensors.index.json").unlink(missing_ok=True)
    nested = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in state.items()}
    towers = {
        "model.vision_tower.patch.weight": torch.ones(2),
        "model.embed_vision.proj.weight": torch.ones(2),
    }
    save_file({**nested, **towers}, tmp_path / "model.safetensors")
    text = json.loads((tmp_path / "config.json").read_text())
    whole = {"architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    ids = list(range(3, 60))
    assert torch.equal(straight(load_target(tmp_path, "float32"), ids, (0,))[0], straight(flat, ids, (0,))[0])


def test_embeddings_of_each_layer_are_refused(tmp_path):
    Gemma4TextConfig(**{**SHAPE, "hidden_size_per_layer_input": 8}).save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"hidden_size_per_layer_input 8; expected a gemma4_text without it"
    ):
        outline_target(tmp_path)
