"""Quantized checkpoints are read as the libraries that made them dequantize, to the bit."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from flashdraft.checkpoint.load import load_target, outline_target
from flashdraft.errors import CheckpointError
from quantized_files import CONFIGS, PACKERS, awq, block_fp8, gptq, quantize_folder
from toys import llama_config

SIZES = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 96, "num_hidden_layers": 2}


@pytest.fixture
def whole(tmp_path, make_llama):
    """A bfloat16 Llama, to be quantized."""
    make_llama(num_hidden_layers=2).bfloat16().save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


@pytest.mark.parametrize("kind", PACKERS)
def test_equals_the_libraries_dequantization(whole, kind, logits_of):
    original = load_target(whole, "float32")
    expected = quantize_folder(whole, kind)
    for dtype in ("float32", "bfloat16"):
        loaded = load_target(whole, dtype)
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, expected[name].to(tensor.dtype)), name
    reference = LlamaForCausalLM(llama_config(**SIZES)).eval()
    reference.load_state_dict(expected | {"lm_head.weight": expected["model.embed_tokens.weight"]})
    ids = [3, 14, 15, 92, 65, 35]
    ours = logits_of(load_target(whole, "float32"), ids)
    with torch.inference_mode():
        theirs = reference(torch.tensor([ids])).logits[0]
    assert (ours - theirs).abs().max() < 1e-4
    # It is a quantization of the same model: near it, and not equal.
    difference = (ours - logits_of(original, ids)).abs().max() / theirs.abs().max()
    assert 0 < difference < 0.5


def test_the_plan_is_of_the_dequantized_size(whole):
    before = {name: (p.shape, p.dtype) for name, p in outline_target(whole).named_parameters()}
    quantize_folder(whole, "w4a16")
    assert {name: (p.shape, p.dtype) for name, p in outline_target(whole).named_parameters()} == before
    assert {name: (p.shape, p.dtype) for name, p in load_target(whole).named_parameters()} == before


@pytest.mark.parametrize("kind", ["block-fp8", "w4a16", "awq", "gptq"])
def test_experts_one_by_one(tmp_path, kind):
    config = Qwen3MoeConfig(
        **SIZES, vocab_size=97, num_attention_heads=4, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=32, max_position_embeddings=512,
    )  # fmt: skip
    Qwen3MoeForCausalLM(config).bfloat16().save_pretrained(tmp_path)
    expected = quantize_folder(tmp_path, kind)
    experts = load_target(tmp_path, "float32").state_dict()
    for i in range(4):
        prefix = f"model.layers.1.mlp.experts.{i}"
        joined = torch.cat([expected[f"{prefix}.gate_proj.weight"], expected[f"{prefix}.up_proj.weight"]])
        assert torch.equal(experts["model.layers.1.mlp.experts.gate_up_proj"][i], joined)
        down = expected[f"{prefix}.down_proj.weight"]
        assert torch.equal(experts["model.layers.1.mlp.experts.down_proj"][i], down)


def test_blocks_that_the_matrix_does_not_fill(whole):
    """A last block of fewer rows has a scale of its own."""
    told = {**CONFIGS["block-fp8"], "weight_block_size": [40, 16]}
    name = "model.layers.1.self_attn.q_proj"
    state = load_file(whole / "model.safetensors")
    codes, scales = (
        state[f"{name}.weight"].to(torch.float8_e4m3fn),
        torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]),
    )
    save_file(
        state | {f"{name}.weight": codes, f"{name}.weight_scale_inv": scales}, whole / "model.safetensors"
    )
    config = json.loads((whole / "config.json").read_text())
    (whole / "config.json").write_text(json.dumps(config | {"quantization_config": told}))
    found = load_target(whole, "float32").state_dict()[f"{name}.weight"]
    for row, column, scale in ((0, 0, 1), (39, 63, 4), (40, 0, 5), (63, 20, 6)):
        assert found[row, column] == codes[row, column].float() * scale


@pytest.mark.parametrize(
    "told",
    [
        {"quant_method": "fp8", "kv_cache_scheme": {"num_bits": 8}},
        {"quant_method": "compressed-tensors", "config_groups": {}, "kv_cache_scheme": {"num_bits": 8}},
        {"quant_method": "modelopt", "quant_algo": None, "kv_cache_quant_algo": "FP8"},
    ],
)
def test_a_config_that_says_scales_of_the_cache_alone(whole, told):
    expected = load_target(whole).state_dict()
    state = load_file(whole / "model.safetensors")
    save_file(state | {"model.layers.0.self_attn.v_scale": torch.ones(1)}, whole / "model.safetensors")
    config = json.loads((whole / "config.json").read_text())
    (whole / "config.json").write_text(json.dumps(config | {"quantization_config": told}))
    found = load_target(whole).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt, NVFP4"),
        (
            {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
            "compressed-tensors, nvfp4-.*",
        ),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 3}, "gptq"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "awq, gemv"),
        ({"quant_method": "torchao"}, "torchao"),
        (
            {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}},
            "torchao, Int4W.*",
        ),
    ],
)
def test_others_are_refused_by_name_with_the_mend(whole, told, named):
    config = json.loads((whole / "config.json").read_text())
    for changes in ({"quantization_config": told}, {"text_config": {"quantization_config": told}}):
        (whole / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(CheckpointError, match=rf"is quantized \({named}\); .*flashdraft launch"):
            outline_target(whole)


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ({"quant_method": "exl3", "bits": 4.0}, "exl3"),
        ({"group_size": 64, "bits": 4}, "mlx"),
        ({"a": 1}, "unknown"),
    ],
)
def test_what_no_engine_serves_is_not_handed_over(whole, told, named):
    config = json.loads((whole / "config.json").read_text())
    (whole / "config.json").write_text(json.dumps(config | {"quantization_config": told}))
    with pytest.raises(
        CheckpointError, match=rf"is quantized \({named}\); .*8 bits: give the original model$"
    ):
        outline_target(whole)


def test_modelopts_own_file(whole):
    (whole / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
    with pytest.raises(CheckpointError, match=r"is quantized \(modelopt, NVFP4\)"):
        outline_target(whole)


@pytest.mark.parametrize(
    ("kind", "part", "change"),
    [
        ("block-fp8", "weight_scale_inv", lambda t: t[:1]),
        ("fp8-dynamic", "weight_scale", lambda t: t[:7]),
        ("w4a16", "weight_packed", lambda t: t[:, :3]),
        ("w4a16", "weight_scale", lambda t: t[:, :3]),
        ("w4a16", "weight_shape", None),
        ("mxfp4", "weight_scale", lambda t: t[:, :1]),
        ("awq", "qzeros", lambda t: t[:1]),
        ("awq", "scales", None),
        ("gptq", "qzeros", lambda t: t[:, :1]),
        ("gptq", "g_idx", lambda t: t[:5]),
        ("gptq", "qweight", lambda t: t.float()),
    ],
)
def test_parts_that_do_not_fit(whole, kind, part, change):
    quantize_folder(whole, kind)
    state = load_file(whole / "model.safetensors")
    name = f"model.layers.1.mlp.up_proj.{part}"
    if change is None:
        del state[name]
    else:
        state[name] = change(state[name]).contiguous()
    save_file(state, whole / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"scale|fit|lacks|expected"):
        load_target(whole)


@pytest.mark.parametrize("pack", [block_fp8, awq, gptq])
def test_the_packers_quantize(pack):
    """What tests compare with is near what was packed."""
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    assert (pack(weight)[1] - weight).abs().max() < 0.3


def test_an_order_of_columns_that_there_are_not(whole):
    quantize_folder(whole, "gptq")
    state = load_file(whole / "model.safetensors")
    state["model.layers.0.mlp.up_proj.g_idx"][3] = 10**6
    save_file(state, whole / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"mlp\.up_proj\.weight is damaged .*IndexError"):
        load_target(whole)
