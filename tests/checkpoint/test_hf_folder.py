"""Folders that are damaged, incomplete or contradict themselves are refused with found, expected and mend."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from flashdraft.checkpoint.load import load_target
from flashdraft.checkpoint.safetensors import SafetensorsWeights
from flashdraft.errors import CheckpointError

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "long_factor": [2.0] * 8,
    "short_factor": [1.0] * 8,
    "original_max_position_embeddings": 64,
}
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def refused(path, pattern):
    with pytest.raises(CheckpointError, match=pattern) as caught:
        load_target(path)
    return str(caught.value)


def change_json(file, **changes):
    content = json.loads(file.read_text())
    content.update(changes)
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def change_weights(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.00002, 0.001, 0.5, 0.9999])
def test_truncated_file(folder, share):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    kept = int(len(whole) * share)
    file.write_bytes(whole[:kept])
    message = refused(folder, rf"model\.safetensors is truncated: found {kept} bytes, expected at least \d+")
    expected = int(message.split("at least ")[1].split(";")[0])
    assert kept < expected <= len(whole)
    assert (expected == len(whole)) == (share > 0.1)


def test_truncated_shard(sharded_folder):
    shard = sorted(sharded_folder.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    refused(sharded_folder, rf"{shard.name} is truncated: found {len(whole) - 1} bytes, .* {len(whole)};")


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\n", b"\x02" + b"\0" * 7 + b"[]"]
)
def test_no_safetensors(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, r"model\.safetensors is no safetensors file")


def test_broken_header(folder):
    file = folder / "model.safetensors"
    whole = bytearray(file.read_bytes())
    whole[20:24] = b"}}}}"
    file.write_bytes(whole)
    refused(folder, r"model\.safetensors is no safetensors file")


def test_missing_shards_are_all_named(sharded_folder):
    shards = sorted(sharded_folder.glob("*.safetensors"))
    shards[0].unlink()
    shards[2].unlink()
    message = refused(sharded_folder, rf"lacks 2 of {len(shards)} weight shards")
    assert shards[0].name in message
    assert shards[2].name in message


def test_index_names_a_tensor_that_its_shard_lacks(sharded_folder):
    index = sharded_folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    elsewhere = next(file for file in weight_map.values() if file != weight_map[Q_PROJ])
    change_json(index, weight_map={**weight_map, Q_PROJ: elsewhere})
    refused(sharded_folder, rf"names {Q_PROJ} in {elsewhere}, not there")


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}'])
def test_index_without_map(sharded_folder, content):
    (sharded_folder / "model.safetensors.index.json").write_text(content)
    refused(sharded_folder, r"has no weight_map")


def test_no_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, r"neither model\.safetensors nor .*pytorch_model\.bin.*convert")


def test_missing_unexpected_and_wrong_tensors_are_told_in_one_error(folder):
    def change(state):
        del state["model.norm.weight"]
        state["model.extra.weight"] = torch.zeros(2)
        state[Q_PROJ] = torch.zeros(8, 64)

    change_weights(folder, change)
    message = refused(folder, r"does not fit its config")
    assert "lacks model.norm.weight" in message
    assert "unexpected model.extra.weight" in message
    assert f"{Q_PROJ} [8, 64] (config: [64, 64])" in message


def test_rope_tables_of_old_checkpoints_are_ignored(folder):
    def change(state):
        state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)

    change_weights(folder, change)
    load_target(folder)


def test_quantized_tensors(folder):
    def change(state):
        state[Q_PROJ] = state[Q_PROJ].to(torch.float8_e4m3fn)

    change_weights(folder, change)
    refused(folder, rf"{Q_PROJ} is F8_E4M3; expected one of F32, F16, BF16, F64")


def test_tensors_are_read_only_when_asked(sharded_folder):
    weights = SafetensorsWeights(sharded_folder)
    assert weights.shapes[Q_PROJ] == (64, 64)
    assert weights.read(Q_PROJ).shape == (64, 64)


def test_no_config(folder):
    (folder / "config.json").unlink()
    refused(folder, r"config\.json is missing; expected a Hugging Face checkpoint folder")


def test_a_folder_of_gguf_files(folder):
    (folder / "config.json").unlink()
    (folder / "tiny.Q8_0.gguf").write_bytes(b"GGUF")
    refused(folder, r"has no config\.json, but tiny\.Q8_0\.gguf: give that file instead")


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        ("{", r"config\.json cannot be read as JSON"),
        ("[1]", r"config\.json holds a list; expected a JSON object"),
        ("{}", r"model_type None is not supported as a target"),
        (
            '{"model_type": "no_such", "auto_map": {"AutoConfig": "a.B"}}',
            r"model_type 'no_such' .*flashdraft launch",
        ),
        (
            '{"model_type": "bloom", "rope_parameters": {"rope_type": "proportional"}}',
            r"model_type 'bloom' is not",
        ),
        ('{"model_type": "llama", "hidden_size": "big"}', r"hidden_size is 'big'; expected a whole number"),
        ('{"model_type": "llama", "hidden_size": 50, "num_attention_heads": 4}', r"not a multiple of"),
        (
            '{"model_type": "gpt2"}',
            r"model_type 'gpt2' is not supported as a target; expected one of: .*llama",
        ),
    ],
)
def test_bad_config(folder, content, pattern):
    (folder / "config.json").write_text(content)
    refused(folder, pattern)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"num_key_value_heads": 3}, r"4 attention heads cannot share 3 key-value heads"),
        ({"hidden_act": "gelu"}, r"hidden_act is 'gelu'; expected 'silu'"),
        ({"rope_parameters": LONGROPE}, r"rope_type is 'longrope'; expected one of default"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            r"set it to 'default'",
        ),
        ({"quantization_config": {"quant_method": "exl3"}}, r"is quantized \(exl3\); expected float weights"),
        ({"architectures": ["DFlashDraftModel"]}, r"holds a drafter; expected a target"),
        ({"num_hidden_layers": 4}, r"lacks model\.layers\.3\."),
        ({"num_hidden_layers": 2}, r"unexpected model\.layers\.2\..* and 3 more"),
        ({"vocab_size": 98}, r"model\.embed_tokens\.weight \[97, 64\] \(config: \[98, 64\]\)"),
        ({"tie_word_embeddings": False}, r"lacks lm_head\.weight"),
    ],
)
def test_config_that_the_weights_do_not_fit(folder, changes, pattern):
    change_json(folder / "config.json", **changes)
    refused(folder, pattern)


def test_a_config_that_says_of_quantization_that_there_is_none(folder):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": None}))
    load_target(folder)


def test_a_file_that_is_no_checkpoint(folder):
    refused(folder / "model.safetensors", r"is no GGUF file .* give a \.gguf file or a Hugging Face folder")
