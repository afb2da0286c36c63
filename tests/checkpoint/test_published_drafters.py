"""Drafters as they are published, with what their trainers leave in the files; each has bitten a user."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from flashdraft.checkpoint.convert import convert_drafter
from flashdraft.checkpoint.load import load_drafter, load_target, save_drafter
from flashdraft.errors import CheckpointError, IncompatibleDrafterError
from toys import toy_dflash


@pytest.fixture
def target_folder(folder):
    return folder


@pytest.fixture
def target(target_folder):
    return load_target(target_folder, "float32")


@pytest.fixture
def drafter(target, tmp_path):
    """A speculators folder of release 0.8, which has the drafter's own tensors alone."""
    save_drafter(toy_dflash(target), tmp_path / "z")
    convert_drafter(tmp_path / "z", "speculators", tmp_path / "s")
    return tmp_path / "s"


def add_tensors(folder, **tensors):
    file = folder / "model.safetensors"
    save_file(
        load_file(file) | {name.replace("__", "."): one.contiguous() for name, one in tensors.items()}, file
    )


def change_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def copies_of(target):
    rows = target.state_dict()["model.embed_tokens.weight"]
    return {"embed_tokens__weight": rows.bfloat16(), "lm_head__weight": target.head_weight()}


def test_copies_of_the_target_are_compared_and_left_out(target, target_folder, drafter, tmp_path):
    """speculators before 0.8 saved the embedding, and with a full vocabulary the head."""
    expected = load_drafter(drafter, target, "float32").state_dict()
    add_tensors(drafter, **copies_of(target))
    found = load_drafter(drafter, target, "float32").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    convert_drafter(drafter, "z-lab", tmp_path / "out", target_folder)
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == expected.keys()
    for load in (lambda: load_drafter(drafter), lambda: convert_drafter(drafter, "z-lab", tmp_path / "bare")):
        with pytest.raises(CheckpointError, match=r"copies of its target's tensors .*: give it too"):
            load()


def test_a_copy_that_differs_is_of_another_target(target, drafter):
    other = copies_of(target)["embed_tokens__weight"].clone()
    other[[3, 5]] += 1
    add_tensors(drafter, embed_tokens__weight=other)
    with pytest.raises(
        IncompatibleDrafterError, match=r"embed_tokens.weight of its own.* of which 2 rows differ"
    ):
        load_drafter(drafter, target)


@pytest.mark.parametrize("padding", [3, -2])
@pytest.mark.parametrize("rows", [None, 32])
def test_a_padded_vocabulary(target, tmp_path, padding, rows):
    """Trainers round the vocabulary up, or leave the target's own padding out."""
    save_drafter(toy_dflash(target, draft_vocab_size=rows, mask_token_id=90), tmp_path)
    size = target.config.vocab_size
    change_config(tmp_path, vocab_size=size + padding)
    if rows:
        table = load_file(tmp_path / "model.safetensors")["t2d"]
        add_tensors(tmp_path, t2d=torch.nn.functional.pad(table, (0, padding)))
    loaded = load_drafter(tmp_path, target)
    assert (loaded.config.vocab_size, loaded.config.draft_vocab_size) == (size, rows)
    change_config(tmp_path, vocab_size=size + 60)
    with pytest.raises(IncompatibleDrafterError, match=r"vocab_size 157 .target: 97"):
        load_drafter(tmp_path, target)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"mask_token_id": None}, "mask_token_id is null; expected the id"),
        ({"aux_hidden_state_layer_ids": None}, "aux_hidden_state_layer_ids is null; expected the layers"),
        ({"speculators_model_type": "dspark"}, "of another kind, DSpark; .*flashdraft launch"),
    ],
)
def test_what_speculators_configs_leave_open(target, drafter, changes, pattern):
    change_config(drafter, **changes)
    with pytest.raises(CheckpointError, match=pattern):
        load_drafter(drafter, target)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("DSparkDraftModel", "DSpark"),
        ("LlamaForCausalLMEagle3", "EAGLE-3"),
        ("LiLiCorrDraftModel", "LiLiCorr"),
    ],
)
def test_drafters_of_another_kind_are_called_by_its_name(target, tmp_path, name, kind):
    save_drafter(toy_dflash(target), tmp_path)
    change_config(tmp_path, architectures=[name])
    with pytest.raises(CheckpointError, match=f"of another kind, {kind};.*flashdraft launch"):
        load_drafter(tmp_path, target)


def test_tensors_of_another_kind_under_the_name_of_dflash(target, tmp_path):
    """To fetch it again would be of no use."""
    save_drafter(toy_dflash(target), tmp_path)
    add_tensors(tmp_path, prefix_gru__weight=torch.zeros(3))
    with pytest.raises(CheckpointError, match=r"of another kind, Domino; .*flashdraft launch"):
        load_drafter(tmp_path, target)


def test_rope_that_changes_with_the_text_is_refused(target, tmp_path):
    save_drafter(toy_dflash(target), tmp_path)
    change_config(tmp_path, rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    with pytest.raises(CheckpointError, match=r"rope_type is 'dynamic'.*set it to 'default'"):
        load_drafter(tmp_path, target)
