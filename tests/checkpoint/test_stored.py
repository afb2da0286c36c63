"""Matrices that stay in their files until they are packed: the tiles and logits of a model loaded whole."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from flashdraft.checkpoint.load import load_target
from flashdraft.errors import CheckpointError
from flashdraft.llm import LLM
from flashdraft.native.accelerate import accelerate
from flashdraft.ops.stored import StoredLinear
from quantized_files import quantize_folder

SIZES = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 256, "num_key_value_heads": 4}


@pytest.fixture
def whole(tmp_path, make_llama):
    make_llama(num_hidden_layers=2, **SIZES).bfloat16().save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


@pytest.mark.parametrize("kind", [None, "w4a16", "awq", "gptq-in-order", "block-fp8"])
def test_the_same_tiles_and_logits(whole, kind, logits_of):
    if kind:
        quantize_folder(whole, kind, 128)
    loaded, stored = (load_target(whole, "float32", leave_matrices=leave) for leave in (False, True))
    assert sum(type(one) is StoredLinear for one in stored.modules()) == 2 * 7
    matrices = sum(one.weight.nbytes for one in stored.modules() if isinstance(one, StoredLinear))
    sizes = [sum(parameter.nbytes for parameter in model.parameters()) for model in (loaded, stored)]
    assert sizes[0] - sizes[1] == matrices
    ids = [3, 14, 15, 92]
    assert torch.equal(logits_of(stored, ids), logits_of(loaded, ids)), "its modules run as before"
    fast, expected = (accelerate(model, "int4") for model in (stored, loaded))
    assert torch.equal(fast.native.packed.tiles, expected.native.packed.tiles)
    assert fast.model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16


def test_a_quantized_llm_holds_no_floats_of_its_layers(whole):
    quantize_folder(whole, "w4a16", 128)
    target = LLM(str(whole), None, quantization="int4", skip_tokenizer_init=True).target
    held = {name for name, one in target.named_parameters() if one.dim() == 2}
    assert held == {"model.model.embed_tokens.weight", "model.lm_head.weight"} & held
    assert held


def test_damage_is_told_when_they_are_packed(whole):
    quantize_folder(whole, "block-fp8", 128)
    state = load_file(whole / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight_scale_inv"][0, 0] = float("inf")
    save_file(state, whole / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers.1.mlp.up_proj.weight are no finite numbers"):
        LLM(str(whole), None, quantization="int8")


def test_other_shapes_are_told_as_ever(whole):
    state = load_file(whole / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(state | {name: state[name][:-1].contiguous()}, whole / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"up_proj.weight \[255, 256\] \(config: \[256, 256\]\)"):
        load_target(whole, "float32", leave_matrices=True)
