"""The door as a whole: our logits are transformers' on the same files, and the embedded pair opens."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from flashdraft.checkpoint.embedded import check_sha256, embedded_target
from flashdraft.checkpoint.load import (
    EMBEDDED,
    eos_token_ids,
    generation_defaults,
    load_own_mtp,
    load_target,
    load_tokenizer,
    outline_own_mtp,
)
from flashdraft.errors import CheckpointError, UsageError


def scaled_rope(rope_type):
    return {"rope_type": rope_type, "rope_theta": 10000.0, "factor": 4.0}


PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26]
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS = [
    pytest.param({}, id="plain"),
    pytest.param({"tie_word_embeddings": False}, id="untied head"),
    pytest.param({"attention_bias": True, "mlp_bias": True}, id="biases"),
    pytest.param({"num_key_value_heads": 1}, id="one head of keys"),
    pytest.param({"head_dim": 32}, id="wide heads"),
    pytest.param({"rope_parameters": LLAMA3_ROPE}, id="llama 3 rope"),
    pytest.param({"rope_parameters": scaled_rope("linear")}, id="linear rope"),
    pytest.param({"rope_parameters": scaled_rope("yarn")}, id="yarn rope"),
]


@torch.inference_mode()
def transformers_logits(model, token_ids):
    return model(torch.tensor([token_ids])).logits[0]


@pytest.mark.parametrize("changes", CONFIGS)
@pytest.mark.parametrize("max_shard_size", ["1GB", "100KB"])
def test_folder_gives_transformers_logits(tmp_path, make_llama, logits_of, changes, max_shard_size):
    make_llama(**changes).save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert ((tmp_path / "model.safetensors.index.json").exists()) == (max_shard_size == "100KB")
    reference = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    target = load_target(tmp_path, dtype="float32")
    assert not target.training
    assert not any(parameter.requires_grad for parameter in target.parameters())
    torch.testing.assert_close(
        logits_of(target, PROMPT), transformers_logits(reference, PROMPT), rtol=0, atol=1e-4
    )


def test_weights_outlive_the_file(folder, logits_of):
    target = load_target(folder, dtype="float32")
    before = logits_of(target, PROMPT)
    weights = folder / "model.safetensors"
    with weights.open("r+b") as stream:
        stream.seek(-4096, 2)
        stream.write(b"\0" * 4096)
    assert torch.equal(logits_of(target, PROMPT), before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", torch.bfloat16])
def test_dtype(folder, dtype):
    target = load_target(folder, dtype=dtype)
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert {parameter.dtype for parameter in target.parameters()} == {wanted}


def test_unknown_dtype_and_device_are_usage_errors(folder):
    with pytest.raises(UsageError, match=r"dtype is int4; expected float32, bfloat16, float16"):
        load_target(folder, dtype="int4")
    with pytest.raises(
        UsageError,
        match=r"none of that name\); expected cpu, cuda or cuda:N",
    ):
        load_target(folder, device="warp9")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match=r"device 'cuda' cannot be used"):
            load_target(folder, device="cuda")


def test_a_head_stored_beside_a_tied_embedding_must_be_the_same(tmp_path, make_llama):
    make_llama(tie_word_embeddings=False).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    with pytest.raises(CheckpointError, match=r"lm_head.weight differs .* set tie_word_embeddings to false"):
        load_target(tmp_path)
    model = make_llama(tie_word_embeddings=False)
    model.lm_head.weight.data.copy_(model.model.embed_tokens.weight)
    model.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert load_target(tmp_path).config.tie_word_embeddings


def test_end_ids_are_a_union(folder):
    for name, content in (
        ("generation_config.json", {"eos_token_id": [7, 5], "temperature": 0.6, "top_k": None}),
        ("tokenizer_config.json", {"eos_token": {"content": "<end>"}}),
        (
            "tokenizer.json",
            {"added_tokens": [{"id": 8, "content": "<other>"}, {"id": 9, "content": "<end>"}]},
        ),
    ):
        (folder / name).write_text(json.dumps(content))
    assert eos_token_ids(folder) == (2, 5, 7, 9)
    assert generation_defaults(folder) == {"temperature": 0.6}


def test_end_ids_without_anything_but_weights(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["eos_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").unlink()
    assert eos_token_ids(folder) == ()
    assert generation_defaults(folder) == {}


def test_embedded_target_gives_transformers_logits(logits_of):
    target = load_target(dtype="float32")
    assert target.config.rms_norm_eps == 1e-5
    assert target.config.architectures == ["LlamaForCausalLM"]
    with torch.device("meta"):
        reference = LlamaForCausalLM(target.config).eval()
    reference.load_state_dict(target.state_dict(), strict=False, assign=True)
    reference.tie_weights()
    reference.model.rotary_emb = type(reference.model.rotary_emb)(target.config)
    tokenizer = load_tokenizer()
    token_ids = tokenizer.encode("In 1789, the people of Paris stormed the Bastille. Naïve? 12 + 30 = 42\n")
    ours, theirs = logits_of(target, token_ids), transformers_logits(reference, token_ids)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    # It is the language model that it should be, and not some permutation of one.
    losses = torch.nn.functional.cross_entropy(ours[:-1], torch.tensor(token_ids[1:]))
    assert losses < 4.0


def test_embedded_end_ids_and_defaults():
    assert eos_token_ids() == (2,)
    assert eos_token_ids(EMBEDDED) == (2,)
    assert generation_defaults() == {"temperature": 0.2, "top_p": 0.9}


def test_embedded_file_is_checked(tmp_path):
    copy = tmp_path / "copy.gguf"
    shutil.copy(embedded_target(), copy)
    with copy.open("r+b") as stream:
        stream.seek(10**7)
        stream.write(b"x")
    with pytest.raises(CheckpointError, match=r"sha256 [0-9a-f]{64}; expected b179c95.*pip install"):
        check_sha256(copy, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")


@pytest.mark.parametrize("name", ["no/such/folder", "./nowhere", "nowhere.gguf", str(Path("/no/such"))])
def test_no_such_path(name):
    with pytest.raises(
        CheckpointError, match=r"does not exist; expected a folder, a \.gguf file or a hub name"
    ):
        load_target(name)


def test_the_embedded_targets_own_mtp_head_is_the_one_that_is_carried() -> None:
    target = load_target("embedded")
    head = load_own_mtp("embedded", target)
    assert head.config.block_size == 16
    assert sum(parameter.numel() for parameter in head.parameters()) == 4_205_376
    assert outline_own_mtp("embedded", target).config.block_size == 16
