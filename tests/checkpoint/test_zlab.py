"""Drafters in z-lab's format: what is saved is what z-lab's own code loads; what does not fit is refused."""

import json
from pathlib import Path

import pytest
import torch
from dflash import DFlashDraftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flashdraft.checkpoint.load import load_drafter, load_target, save_drafter
from flashdraft.errors import CheckpointError, IncompatibleDrafterError
from toys import toy_dflash, toy_target


@pytest.fixture(scope="module")
def target():
    return toy_target()


@pytest.fixture
def saved(target, tmp_path):
    """A folder with a drafter for ``target``, of the caller's own to spoil."""
    save_drafter(toy_dflash(target), tmp_path / "drafter")
    return tmp_path / "drafter"


def change_config(folder, inner=None, **changes):
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    config["dflash_config"] |= inner or {}
    file.write_text(json.dumps(config))


def refused(folder, pattern, target=None, kind=CheckpointError):
    with pytest.raises(CheckpointError, match=pattern) as caught:
        load_drafter(folder, target)
    assert type(caught.value) is kind


def test_round_trip(target, saved):
    drafter = toy_dflash(target)
    loaded = load_drafter(saved, target, dtype="float32")
    assert loaded.config == drafter.config
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    for name, tensor in drafter.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_the_file_is_z_labs(target, tmp_path):
    drafter = toy_dflash(target, num_hidden_layers=5)
    save_drafter(drafter, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["DFlashDraftModel"]
    assert config["auto_map"] == {"AutoModel": "dflash.DFlashDraftModel"}
    assert (config["model_type"], config["dtype"]) == ("qwen3", "float32")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = list(file.keys())
    assert len(names) == 58
    modes = {(tmp_path / name).stat().st_mode for name in ("config.json", "model.safetensors")}
    assert len(modes) == 1
    assert {"fc.weight", "hidden_norm.weight", "norm.weight", "layers.4.self_attn.q_norm.weight"} <= set(
        names
    )
    theirs = DFlashDraftModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert theirs.block_size == drafter.config.block_size
    assert theirs.mask_token_id == drafter.config.mask_token_id
    assert tuple(theirs.target_layer_ids) == drafter.config.target_layer_ids
    assert theirs.state_dict().keys() == drafter.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, drafter.state_dict()[name]), name


def test_z_labs_own_file_is_read(target, tmp_path):
    """Saved by their class: another writer's config, shards, block_size inside dflash_config."""
    drafter = toy_dflash(target)
    save_drafter(drafter, tmp_path / "ours")
    theirs = DFlashDraftModel.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    config["dflash_config"]["block_size"] = config.pop("block_size")
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    loaded = load_drafter(tmp_path / "theirs", target, dtype="float32")
    assert loaded.config == drafter.config
    for name, tensor in drafter.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_save_as_bfloat16_beside_other_files(target, saved):
    (saved / "README.md").write_text("card")
    save_drafter(toy_dflash(target, seed=2, block_size=4), saved, dtype=torch.bfloat16)
    assert json.loads((saved / "config.json").read_text())["dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in load_file(saved / "model.safetensors").values()} == {torch.bfloat16}
    assert load_drafter(saved, target).config.block_size == 4
    assert {path.name for path in saved.iterdir()} == {"README.md", "config.json", "model.safetensors"}


def test_a_save_that_fails_leaves_the_old_drafter(target, saved, monkeypatch):
    before = (saved / "model.safetensors").read_bytes()
    drafter = toy_dflash(target, seed=2)
    monkeypatch.setattr(
        Path, "chmod", lambda *_: 1 / 0
    )  # the last step before the new files take their places
    with pytest.raises(ZeroDivisionError):
        save_drafter(drafter, saved)
    assert (saved / "model.safetensors").read_bytes() == before
    load_drafter(saved, target)
    assert {path.name for path in saved.iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"hidden_size": 36, "num_attention_heads": 3}, r"hidden_size 48 \(target: 36\)"),
        ({"vocab_size": 128}, r"vocab_size 97 \(target: 128\)"),
        ({"num_hidden_layers": 7}, r"num_target_layers 6 \(target: 7\)"),
        (
            {"vocab_size": 128, "num_hidden_layers": 7},
            r"vocab_size 97 \(target: 128\), num_target_layers 6 \(target: 7\)",
        ),
    ],
)
def test_made_for_another_target(saved, changes, pattern):
    other = toy_target(**changes)
    refused(saved, rf"was made for another target: it has {pattern}; give", other, IncompatibleDrafterError)
    load_drafter(saved)


@pytest.mark.parametrize(
    ("inner", "changes", "pattern"),
    [
        ({"mask_token_id": 97}, {}, r"mask_token_id 97 \(expected 0 to 96: a vocabulary id\)"),
        ({"mask_token_id": -1}, {}, r"mask_token_id -1"),
        (
            {"target_layer_ids": [1, 6]},
            {},
            r"target_layer_ids \[1, 6\] \(expected different layers from 0 to 5\)",
        ),
        ({"target_layer_ids": [-1, 3]}, {}, r"target_layer_ids \[-1, 3\]"),
        ({"target_layer_ids": []}, {}, r"target_layer_ids \[\]"),
        ({"target_layer_ids": [2, 2]}, {}, r"target_layer_ids \[2, 2\]"),
        ({"target_layer_ids": 3}, {}, r"not a usable drafter config: .*int"),
        ({}, {"block_size": None}, r"not a usable drafter config: .*None"),
        ({}, {"block_size": 1}, r"block_size 1 \(expected 2 or more\)"),
        ({"mask_token_id": 97}, {"block_size": 1}, r"block_size 1 .*; mask_token_id 97"),
        (
            {"target_layer_ids": [1, 2, 3]},
            {},
            r"fc\.weight takes 96 inputs; expected 3 .* x hidden_size 48 = 144",
        ),
        ({}, {"num_attention_heads": 3}, r"3 attention heads cannot share 2"),
        ({}, {"num_hidden_layers": 3}, r"lacks layers\.2\.input_layernorm\.weight"),
        ({}, {"intermediate_size": 65}, r"mlp\.gate_proj\.weight \[64, 48\] \(config: \[65, 48\]\)"),
        ({}, {"architectures": ["LlamaForCausalLM"]}, r"holds \['LlamaForCausalLM'\]; expected a drafter"),
        ({}, {"architectures": ["DFlash2DraftModel"]}, r"neither conv_kernel_size nor selector_rank"),
        ({"conv_kernel_size": 9}, {}, r"conv_kernel_size 9 \(expected 1 to 8: a block's slots\)"),
        (
            {"conv_kernel_size": 2, "conv_group_size": 5},
            {},
            r"conv_group_size 5 \(expected a divisor of hidden_size 48\)",
        ),
        ({"selector_rank": 4, "selector_top_k": 98}, {}, r"selector_top_k 98 \(expected 1 or more"),
        ({"selector_rank": 4}, {}, r"lacks candidate_selector\.predecessor_codebook"),
        (
            {"projector_type": "dspark"},
            {},
            r"of another kind, DSpark; expected DFlash, .*vLLM, SGLang",
        ),
        ({}, {"architectures": ["Qwen3DSparkModel"]}, r"of another kind, DSpark"),
        ({}, {"architectures": ["LiLiCorrDraftModel"]}, r"of another kind, LiLiCorr"),
        ({}, {"architectures": ["DominoDraftModel"]}, r"of another kind, Domino"),
        ({}, {"architectures": ["XPressDraftModel"]}, r"of another kind, xPress"),
        ({}, {"architectures": ["LlamaForCausalLMEagle3"]}, r"of another kind, EAGLE-3"),
        ({}, {"layer_types": ["sliding_attention"] * 2}, r"sliding_attention"),
        ({}, {"layer_types": None, "use_sliding_window": True}, r"asks for use_sliding_window True"),
        ({"use_swa": True, "output_multiplier": 0.5}, {}, r"asks for use_swa True; expected"),
        ({}, {"layer_types": ["sliding_attention"], "sliding_window": 4}, r"expected 2 of full_attention or"),
        ({}, {"layer_types": ["chunked"] * 2, "sliding_window": 4}, r"chunked.* do not go together"),
        ({"sample_from_anchor": True}, {}, r"asks for sample_from_anchor True"),
        ({}, {"hidden_act": "gelu"}, r"asks for hidden_act 'gelu'"),
        ({}, {"hidden_size": None}, r"hidden_size"),
    ],
)
def test_contradicts_itself(saved, inner, changes, pattern):
    change_config(saved, inner, **changes)
    if changes.get("hidden_size", 0) is None:
        config = json.loads((saved / "config.json").read_text())
        del config["hidden_size"]
        (saved / "config.json").write_text(json.dumps(config))
    refused(saved, pattern)


def test_neutral_fields_are_fine(target, saved):
    change_config(
        saved, {"causal": False, "output_multiplier": 1.0}, is_causal=False, use_sliding_window=False
    )
    load_drafter(saved, target)


def test_truncated_missing_and_foreign_weights(saved):
    file = saved / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    refused(saved, rf"is truncated: found {len(whole) - 100} bytes, expected at least {len(whole)}")
    state = load_file_bytes(whole, saved)
    state["markov_head.markov_w1"] = torch.zeros(2)
    save_file(state, file)
    refused(saved, r"of another kind, DSpark")
    file.unlink()
    refused(saved, r"neither model\.safetensors nor")
    (saved / "config.json").unlink()
    refused(saved, r"config\.json is missing")


def load_file_bytes(content, folder):
    (folder / "copy").write_bytes(content)
    state = load_file(folder / "copy")
    (folder / "copy").unlink()
    return state


def test_a_target_is_told_from_a_drafter(saved, folder):
    refused(folder, r"holds \['LlamaForCausalLM'\]; expected a drafter")
    with pytest.raises(CheckpointError, match=r"holds a drafter; expected a target"):
        load_target(saved)
