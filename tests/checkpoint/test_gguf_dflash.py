"""GGUF drafters as llama.cpp writes them, by gguf's own writer and quantizer: the same drafter as in a folder."""

import gguf
import numpy as np
import pytest
import torch

from flashdraft.checkpoint.convert import convert_drafter
from flashdraft.checkpoint.load import (
    load_drafter,
    load_target,
    outline_drafter,
    save_drafter,
    training_notes,
)
from flashdraft.errors import CheckpointError, IncompatibleDrafterError, UsageError
from flashdraft.export.launch import read_pair
from gguf_files import STORED_NAMES, add_field
from tiny_pair import save_tiny_pair
from toys import toy_dflash, toy_dflash2, toy_target

F32, Q8_0 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0
NAMES = STORED_NAMES | {
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "attention_conv.kernel_projection": "attn_conv_proj",
    "mlp_conv.kernel_projection": "ffn_conv_proj",
}
OWN = {
    "fc.weight": "fc.weight",
    "norm.weight": "output_norm.weight",
    "hidden_norm.weight": "enc.output_norm.weight",
    "candidate_selector.hidden_projection.weight": "selector_hidden.weight",
    "candidate_selector.predecessor_codebook": "selector_predecessor.weight",
    "candidate_selector.successor_codebook": "selector_successor.weight",
}


@pytest.fixture(scope="module")
def target():
    return toy_target(hidden_size=32)


def stored_as(name):
    if name in OWN:
        return OWN[name]
    _, layer, part = name.split(".", 2)
    if part.endswith("base_kernel"):
        return f"blk.{layer}.{'attn' if part.startswith('attention') else 'ffn'}_conv_base"
    return f"blk.{layer}.{NAMES[part.removesuffix('.weight')]}.weight"


def fields_of(config):
    inner = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "rope.dimension_sections": [8, 0, 0, 0],
        "block_size": config.block_size,
        "target_layers": [one + 1 for one in config.target_layer_ids],
    }
    if config.layer_types:
        inner["attention.sliding_window"] = config.sliding_window
        inner["attention.sliding_window_pattern"] = [k == "sliding_attention" for k in config.layer_types]
    if config.is_causal is not None:
        inner["attention.causal"] = config.is_causal
    if config.is_dflash2:
        names = ("conv_kernel_size", "conv_group_size", "selector_rank", "selector_top_k")
        inner |= {name: getattr(config, name) for name in names}
    told = {f"dflash.{name}": value for name, value in inner.items()}
    return told | {"tokenizer.ggml.mask_token_id": config.mask_token_id}


def write(path, drafter, kind=F32, changes=None, extra=()):
    writer = gguf.GGUFWriter(path, "dflash")
    for key, value in (fields_of(drafter.config) | (changes or {})).items():
        if value is not None:
            add_field(writer, key, value)
    for name, tensor in drafter.state_dict().items():
        is_matrix = tensor.dim() == 2 and tensor.shape[-1] % 32 == 0
        as_kind = kind if is_matrix else F32
        values = gguf.quants.quantize(tensor.numpy(), as_kind)
        writer.add_tensor(stored_as(name), values, raw_dtype=as_kind)
        if as_kind != F32:
            tensor.copy_(torch.from_numpy(gguf.quants.dequantize(values, as_kind)))
    for name in extra:
        writer.add_tensor(name, np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


SLIDING = {"layer_types": ("sliding_attention", "full_attention"), "sliding_window": 24}


@pytest.mark.parametrize("kind", [F32, Q8_0], ids=["F32", "Q8_0"])
@pytest.mark.parametrize(
    ("make", "changes"),
    [(toy_dflash, {}), (toy_dflash, SLIDING), (toy_dflash, {"is_causal": True}), (toy_dflash2, SLIDING)],
    ids=["full", "sliding", "causal", "dflash2"],
)
def test_equals_the_folder(target, tmp_path, make, changes, kind):
    drafter = make(target, **changes)
    before = {name: tensor.clone() for name, tensor in drafter.state_dict().items()}
    path = write(tmp_path / "drafter.gguf", drafter, kind)  # and leaves what the quantizer makes of it
    assert any(not torch.equal(t, before[n]) for n, t in drafter.state_dict().items()) == (kind == Q8_0)
    save_drafter(drafter, tmp_path / "folder")
    expected, found = (load_drafter(one, target, "float32") for one in (tmp_path / "folder", path))
    assert found.config == expected.config == drafter.config
    assert outline_drafter(path, target).config == drafter.config
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def test_it_is_converted_to_a_folder(tmp_path):
    place, folder = save_tiny_pair(tmp_path)
    target = load_target(place, "float32")
    path = write(tmp_path / "drafter.gguf", load_drafter(folder, target, "float32"))
    assert training_notes(path) == {}
    convert_drafter(path, "z-lab", tmp_path / "again", place)
    for name, tensor in load_drafter(folder, target).state_dict().items():
        assert torch.equal(load_drafter(tmp_path / "again", target).state_dict()[name], tensor), name
    with pytest.raises(UsageError, match=r"is a GGUF file; .*flashdraft convert --draft"):
        read_pair(place, str(path))


@pytest.mark.parametrize(
    ("changes", "extra", "pattern"),
    [
        ({"tokenizer.ggml.mask_token_id": None}, (), r"lacks the field tokenizer\.ggml\.mask_token_id"),
        ({"dflash.target_layers": None}, (), r"target_layers is None; expected numbers of layers"),
        ({"dflash.target_layers": [0, 1]}, (), r"target_layer_ids \[-1, 0\] \(expected different layers"),
        ({"dflash.block_size": None}, (), r"lacks the field dflash\.block_size"),
        ({"dflash.attention.sliding_window": 8}, (), r"expected true or false for each of 2 layers"),
        ({"dflash.sample_from_anchor": True}, (), r"asks for sample_from_anchor True"),
        ({}, ("d2t",), r"drafts among tokens of its own choice \(d2t\)"),
        ({}, ("markov_w1.weight",), r"another kind, DSpark"),
        ({}, ("layer_fusion",), r"unexpected layer_fusion"),
    ],
)
def test_what_does_not_fit_is_refused(target, tmp_path, changes, extra, pattern):
    path = write(tmp_path / "drafter.gguf", toy_dflash(target), changes=changes, extra=extra)
    with pytest.raises(CheckpointError, match=pattern):
        load_drafter(path, target)


def test_another_target_and_none(target, tmp_path):
    path = write(tmp_path / "drafter.gguf", toy_dflash(target))
    with pytest.raises(IncompatibleDrafterError, match=r"hidden_size 32 \(target: 48\)"):
        load_drafter(path, toy_target(hidden_size=48))
    with pytest.raises(CheckpointError, match=r"expected the target beside it"):
        load_drafter(path)
    with pytest.raises(CheckpointError, match=r"expected the target beside it"):
        convert_drafter(path, "z-lab", tmp_path / "out")
