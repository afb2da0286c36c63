"""Sparse targets, one layout of the weights each, against transformers; with rollback, and drafted."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma3TextConfig,
    Qwen3_5MoeForCausalLM,
    Qwen3_5MoeTextConfig,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from against_transformers import check_against_transformers, check_drafted, check_rollback, save_and_load
from flashdraft.checkpoint.load import load_target
from flashdraft.errors import CheckpointError, UsageError
from flashdraft.models.base import build_target
from flashdraft.native.accelerate import accelerate

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "eos_token_id": 2,
}
DELTA = {
    "shared_expert_intermediate_size": 40,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "full_attention_interval": 3,
}
STD = 0.1


@pytest.mark.parametrize(
    "changes",
    [
        {"norm_topk_prob": True},
        {"norm_topk_prob": False},
        {"decoder_sparse_step": 2},
        {"mlp_only_layers": [0, 3]},
        {"shared_expert_intermediate_size": 0},  # as Qwen3-Coder-30B-A3B is published
    ],
)
def test_qwen3_moe(tmp_path, changes):
    theirs, ours = save_and_load(tmp_path, Qwen3MoeForCausalLM, Qwen3MoeConfig(**SHAPE, **changes))
    assert dict(ours.named_parameters()).keys() == dict(theirs.named_parameters()).keys()
    check_against_transformers(theirs, ours)
    check_rollback(ours)
    check_drafted(ours, 50 if "mlp_only_layers" in changes else 3)


def test_qwen3_5_moe(tmp_path):
    config = Qwen3_5MoeTextConfig(**SHAPE, **DELTA)
    theirs, ours = save_and_load(tmp_path, Qwen3_5MoeForCausalLM, config, STD)
    assert dict(ours.named_parameters()).keys() == dict(theirs.named_parameters()).keys()
    check_against_transformers(theirs, ours)
    check_rollback(ours)
    check_drafted(ours)


def test_qwen3_next(tmp_path):
    theirs, ours = save_and_load(tmp_path, Qwen3NextForCausalLM, Qwen3NextConfig(**SHAPE, **DELTA), STD)
    check_against_transformers(theirs, ours)
    check_rollback(ours)
    check_drafted(ours)


def test_experts_stacked_on_disk_are_read_as_they_are(tmp_path):
    """The layout of published Qwen3.5 mixtures: one tensor for all experts."""
    config = Qwen3_5MoeTextConfig(**SHAPE, **DELTA)
    _, one_by_one = save_and_load(tmp_path / "a", Qwen3_5MoeForCausalLM, config, STD)
    (tmp_path / "b").mkdir()
    save_file(
        {k: v.contiguous() for k, v in one_by_one.state_dict().items()}, tmp_path / "b" / "model.safetensors"
    )
    (tmp_path / "b" / "config.json").write_bytes((tmp_path / "a" / "config.json").read_bytes())
    stacked = load_target(tmp_path / "b", "float32")
    for name, tensor in one_by_one.state_dict().items():
        assert torch.equal(tensor, stacked.state_dict()[name])


def test_a_missing_expert_is_named(tmp_path):
    save_and_load(tmp_path, Qwen3MoeForCausalLM, Qwen3MoeConfig(**SHAPE))
    index = tmp_path / "model.safetensors.index.json"
    weights = {}
    for shard in sorted(tmp_path.glob("*.safetensors")):
        weights |= load_file(shard)
        shard.unlink()
    index.unlink()
    del weights["model.layers.2.mlp.experts.4.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks model.layers.2.mlp.experts.gate_up_proj"):
        load_target(tmp_path, "float32")


def test_sliding_layers_are_refused(tmp_path):
    config = Qwen3MoeConfig(**SHAPE, use_sliding_window=True, sliding_window=8)
    with pytest.raises(CheckpointError, match="sliding_attention; expected full_attention"):
        save_and_load(tmp_path, Qwen3MoeForCausalLM, config)


def test_the_fast_form_is_for_dense_layers_of_llamas_shape():
    """bfloat16 on a CPU is packed for one C++ call a forward; experts and Gemma's four norms are not in it."""
    wide = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32, "moe_intermediate_size": 32}
    sparse = build_target(Qwen3MoeConfig(**{**SHAPE, **wide}))
    gemma = build_target(Gemma3TextConfig(**{**SHAPE, **wide}, query_pre_attn_scalar=32, sliding_window=8))
    for target, pattern in ((sparse, "layers of experts"), (gemma, "layers as Gemma3Model has them")):
        assert accelerate(target.bfloat16()) is target
        with pytest.raises(UsageError, match=pattern):
            accelerate(target, "int8")
