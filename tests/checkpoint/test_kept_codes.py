"""Matrices that stay in codes are those that the checkpoint has: as floats, the ones that dequantizing gives."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from flashdraft.checkpoint.kept_codes import hold_codes, kept
from flashdraft.checkpoint.load import floats_fit, load_target, outline_target
from flashdraft.errors import CheckpointError, UsageError
from flashdraft.llm import LLM
from flashdraft.models.mlp import ExpertsInCodes, SparseMLP
from flashdraft.ops.quantized import QuantizedLinear, QuantizedWeight
from quantized_files import quantize_folder

SIZES = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 256, "num_key_value_heads": 4}
BITS = {
    "block-fp8": 8, "fp8-dynamic": 8, "w4a16": 4, "w4a16-asymmetric": 4, "awq": 4, "gptq-in-order": 4, "gptq-v2": None,
    "w8a16": None, "w8a8": None,
}  # fmt: skip


@pytest.fixture
def whole(tmp_path, make_llama):
    make_llama(num_hidden_layers=1, **SIZES).bfloat16().save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


def in_codes(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


@pytest.mark.parametrize("kind", BITS)
def test_the_same_floats(whole, kind, logits_of):
    """Columns that GPTQ sorted and integers of 8 bits become floats, as without the wish."""
    quantize_folder(whole, kind, 128)
    floats, kept = load_target(whole), load_target(whole, keep_codes=True)
    found = in_codes(kept)
    assert len(found) == (7 if BITS[kind] else 0)
    for name, module in found.items():
        expected = floats.get_submodule(name).weight
        assert module.weight.tiled
        assert torch.equal(module.weight.dequantized(), expected), name
        assert module.weight.codes.nbytes * 8 == expected.numel() * BITS[kind]
    ids = [3, 14, 15, 92]
    assert torch.equal(logits_of(kept, ids), logits_of(floats, ids))


@pytest.mark.parametrize("kind", ["block-fp8", "awq", "w4a16"])
def test_the_outline_has_their_size(whole, kind):
    quantize_folder(whole, kind, 128)
    kept, outline = (load(whole, keep_codes=True) for load in (load_target, outline_target))
    sizes = [{name: one.weight.nbytes for name, one in in_codes(model).items()} for model in (kept, outline)]
    assert {one.weight.is_paired for one in in_codes(kept).values()} == {kind == "w4a16"}
    assert sizes[0] == sizes[1]
    assert all(parameter.device.type == "meta" for parameter in outline.parameters())


@pytest.mark.parametrize("kind", ["block-fp8", "w4a16", "awq"])
def test_experts(tmp_path, kind, logits_of):
    """One by one in the file, one piece here."""
    config = Qwen3MoeConfig(
        hidden_size=128, head_dim=32, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=1, vocab_size=97,
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=128, max_position_embeddings=512,
    )  # fmt: skip
    Qwen3MoeForCausalLM(config).bfloat16().save_pretrained(tmp_path)
    quantize_folder(tmp_path, kind, 128)
    floats, kept = load_target(tmp_path), load_target(tmp_path, keep_codes=True)
    held, plain = kept.model.layers[0].mlp.experts, floats.model.layers[0].mlp.experts
    assert type(held) is ExpertsInCodes
    for part in ("gate_up_proj", "down_proj"):
        assert torch.equal(getattr(held, part).dequantized(), getattr(plain, part).flatten(0, 1))
    assert torch.equal(logits_of(kept, [3, 14, 15, 92]), logits_of(floats, [3, 14, 15, 92]))


@pytest.mark.parametrize("width", [128, 2**15])
def test_a_small_shared_expert_stays_in_floats(width):
    """Its gates, ups and the router are one product then; a large one is worth its codes."""
    model = torch.nn.Module()
    with torch.device("meta"):
        model.mlp = SparseMLP(
            SimpleNamespace(
                hidden_size=128, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=128,
                shared_expert_intermediate_size=width,
            )
        )  # fmt: skip
    names = [name for name, _ in model.named_parameters() if ".shared_expert." in name or ".experts." in name]
    shapes = {name: model.get_parameter(name).shape for name in names}
    outlines = {name: kept(tuple(shape), False, 1, "BF16", False, tuple) for name, shape in shapes.items()}
    source = SimpleNamespace(label="a folder", read=None, shapes=shapes, kept=outlines)
    left = hold_codes(model, source, torch.bfloat16, None)
    shared = {name for name in names if ".shared_expert." in name}
    assert len(shared) == 3
    assert set(left.shapes) == (shared if width == 128 else set())
    assert len(in_codes(model)) == (0 if width == 128 else 3)
    assert type(model.mlp.experts) is ExpertsInCodes


def test_float32_and_small_groups_become_floats(whole):
    quantize_folder(whole, "awq", 32)
    assert not in_codes(load_target(whole, keep_codes=True))
    assert not in_codes(load_target(whole, "float32", keep_codes=True))


def test_floats_fit_what_leaves_a_fifth(whole):
    """Told before anything is loaded, whatever the files hold."""
    size = sum(parameter.nbytes for parameter in load_target(whole).parameters())
    quantize_folder(whole, "block-fp8", 128)
    assert floats_fit(whole, "bfloat16", size * 5 // 4 + 8)
    assert not floats_fit(whole, "bfloat16", size * 5 // 4 - 8)


def test_codes_are_for_cuda(whole):
    with pytest.raises(UsageError, match="keep_codes is for CUDA"):
        LLM(str(whole), None, keep_codes=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a card is there")
def test_no_card_is_told_before_its_memory_is_asked_for(whole):
    with pytest.raises(UsageError, match="'cuda' cannot be used"):
        LLM(str(whole), None, device="cuda")


@pytest.mark.parametrize(("part", "value"), [("weight", "nan"), ("weight_scale_inv", "inf")])
def test_no_finite_numbers_are_refused(whole, part, value):
    quantize_folder(whole, "block-fp8", 128)
    state = load_file(whole / "model.safetensors")
    name = f"model.layers.0.mlp.up_proj.{part}"
    damaged = state[name].float()
    damaged[0, 0] = float(value)
    save_file(state | {name: damaged.to(state[name].dtype)}, whole / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"up_proj.*fetch it again"):
        load_target(whole, keep_codes=True)


def test_what_a_check_takes_is_given_back_before_the_next_weight(whole, monkeypatch):
    """On a GPU the next weight would lie in part of it, and keep the rest from all that is larger."""
    quantize_folder(whole, "block-fp8", 128)
    order, is_finite = [], QuantizedWeight.is_finite
    monkeypatch.setattr(QuantizedWeight, "is_finite", lambda one: order.append("check") or is_finite(one))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: order.append("back"))
    load_target(whole, keep_codes=True)
    assert order == ["check", "back"] * 7
