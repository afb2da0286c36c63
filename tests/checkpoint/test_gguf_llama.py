"""A llama GGUF gives the model that was put in: config, weights in transformers' row order, logits."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from flashdraft.checkpoint.gguf import GGUFFile
from flashdraft.checkpoint.gguf_llama import read_gguf_config, unpermute
from flashdraft.checkpoint.load import eos_token_ids, load_target
from flashdraft.errors import CheckpointError

SAME_FIELDS = (
    "vocab_size",
    "hidden_size",
    "head_dim",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
)
PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26]
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def llama3_factors(model):
    """What the converter stores: how much slower each pair turns than without scaling."""
    dim = model.config.head_dim
    plain = 1.0 / LLAMA3_ROPE["rope_theta"] ** (torch.arange(0, dim, 2) / dim)
    return (plain / model.model.rotary_emb.inv_freq).numpy().astype(np.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False, "rms_norm_eps": 1e-5},
        {"attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": 1, "head_dim": 32},
        {"num_key_value_heads": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}},
    ],
)
def test_round_trip(make_llama, write_gguf, logits_of, changes):
    model = make_llama(**changes)
    target = load_target(write_gguf(model), dtype="float32")
    for name in SAME_FIELDS:
        assert getattr(target.config, name) == getattr(model.config, name), name
    state = model.state_dict()
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    with torch.inference_mode():
        expected = model(torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(logits_of(target, PROMPT), expected, rtol=0, atol=1e-4)


def test_same_tensors_as_transformers_reads(make_llama, write_gguf):
    path = write_gguf(make_llama())
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    with torch.device("meta"):
        empty = LlamaForCausalLM(config)
    theirs = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=empty)["tensors"]
    ours = load_target(path, dtype="float32").state_dict()
    assert ours.keys() == theirs.keys() - {"lm_head.weight"}
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_unpermute_pairs_rows_half_a_head_apart():
    # Two heads of four rows as stored: rows 2i and 2i + 1 turn together.
    stored = torch.tensor([0, 1, 2, 3, 10, 11, 12, 13]).unsqueeze(1)
    assert unpermute(stored, 2).flatten().tolist() == [0, 2, 1, 3, 10, 12, 11, 13]


def test_llama3_rope_factors_become_their_parameters(make_llama, write_gguf):
    model = make_llama(rope_parameters=LLAMA3_ROPE, head_dim=64)
    factors = llama3_factors(model)
    assert factors.min() == 1.0
    assert factors.max() == pytest.approx(8.0)
    assert ((factors > 1.01) & (factors < 7.9)).any()  # some pairs lie between
    config = read_gguf_config(GGUFFile(write_gguf(model, extra_tensors={"rope_freqs.weight": factors})))
    assert config.rope_parameters == pytest.approx(LLAMA3_ROPE)
    factors[5] *= 1.01
    with pytest.raises(CheckpointError, match=r"factors that are not Llama 3\.1's"):
        read_gguf_config(GGUFFile(write_gguf(model, extra_tensors={"rope_freqs.weight": factors})))


def test_linear_rope(make_llama, write_gguf):
    fields = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    config = read_gguf_config(GGUFFile(write_gguf(make_llama(), fields)))
    assert config.rope_parameters == {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}


def test_ids_and_what_may_be_left_out(make_llama, write_gguf):
    left_out = ("vocab_size", "attention.key_length", "rope.dimension_count", "rope.freq_base")
    fields = {f"llama.{name}": None for name in left_out} | {"tokenizer.ggml.eot_token_id": 3}
    model = make_llama(vocab_size=41)
    path = write_gguf(model, fields)
    config = load_target(path).config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (39, 40, 40)
    assert (config.head_dim, config.vocab_size, config.rope_parameters["rope_theta"]) == (16, 41, 10000.0)
    assert config.architectures == ["LlamaForCausalLM"]
    assert eos_token_ids(path) == (3, 40)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"general.architecture": "mamba"}, r"architecture 'mamba'; expected 'llama'"),
        ({"llama.expert_count": 8}, r"mixture of experts"),
        ({"llama.attention.scale": 0.5}, r"has llama\.attention\.scale 0\.5; expected 0\.25"),
        ({"llama.logit_scale": 8.0}, r"has llama\.logit_scale 8\.0; expected 1"),
        ({"split.count": 3}, r"one of 3 files; expected the first"),
        ({"llama.block_count": None}, r"lacks the field llama\.block_count"),
        ({"llama.attention.head_count_kv": [2, 2, 1]}, r"llama\.attention\.head_count_kv differs by layer"),
        ({"llama.rope.dimension_count": 8}, r"rotates 8 of 16 head dimensions"),
        ({"llama.rope.scaling.type": "yarn"}, r"rope scaling 'yarn'; expected none or linear"),
        ({"llama.rope.scaling.type": "linear"}, r"lacks the field llama\.rope\.scaling\.factor"),
        ({"llama.vocab_size": 90}, r"model\.embed_tokens\.weight \[97, 64\] \(config: \[90, 64\]\)"),
        ({"llama.attention.head_count_kv": 4}, r"k_proj\.weight \[32, 64\] \(config: \[64, 64\]\)"),
        ({"llama.block_count": 4}, r"lacks model\.layers\.3\.input_layernorm\.weight"),
    ],
)
def test_refused(make_llama, write_gguf, fields, pattern):
    path = write_gguf(make_llama(), fields)
    with pytest.raises(CheckpointError, match=pattern):
        load_target(path)


def test_unknown_tensors_are_named(make_llama, write_gguf):
    extra = {"blk.0.ffn_gate_exps.weight": np.zeros((2, 32), np.float32)}
    with pytest.raises(CheckpointError, match=r"unexpected blk\.0\.ffn_gate_exps\.weight"):
        load_target(write_gguf(make_llama(), extra_tensors=extra))
