"""gpt-oss in the layout of gpt-oss-20b against transformers: its floats, and its experts as MXFP4."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from against_transformers import (
    check_against_transformers,
    check_drafted,
    check_rollback,
    save_and_load,
)
from flashdraft.backends.graphs import why_unrecordable
from flashdraft.backends.registry import choose_backend
from flashdraft.batch import ForwardBatch
from flashdraft.checkpoint.load import load_target, outline_target
from flashdraft.errors import CheckpointError, UsageError
from flashdraft.models.gpt_oss import GptOssExperts

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 24,
    "max_position_embeddings": 512,
    "swiglu_limit": 0.4,  # which a few of so small values reach
    "eos_token_id": 2,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 150000,
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 16,
    },
}


def made(folder, std=0.2):
    return save_and_load(folder, GptOssForCausalLM, GptOssConfig(**SHAPE), std)


def test_gpt_oss(tmp_path):
    theirs, ours = made(tmp_path)
    assert dict(ours.named_parameters()).keys() == dict(theirs.named_parameters()).keys()
    check_against_transformers(theirs, ours)
    check_rollback(ours)
    check_drafted(ours)


def test_configs_that_do_not_tell_the_swiglu():
    """As classes of older releases have them; published files have the limit alone."""
    told = {"num_local_experts": 2, "hidden_size": 8, "intermediate_size": 4}
    experts = GptOssExperts(SimpleNamespace(**told))
    assert (experts.alpha, experts.limit) == (1.702, 7.0)
    experts = GptOssExperts(SimpleNamespace(**told, swiglu_limit=0.4, swiglu_alpha=1.5))
    assert (experts.alpha, experts.limit) == (1.5, 0.4)


def as_published(folder):
    """The experts of the floats in ``folder`` as random MXFP4, and what transformers makes of that."""
    torch.manual_seed(3)
    state, expected = {}, {}
    for file in folder.glob("*.safetensors"):
        state |= load_file(file)
        file.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    for name in [name for name in state if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, columns, rows = state.pop(name).shape
        blocks = torch.randint(256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
        scales = torch.randint(121, 126, blocks.shape[:3], dtype=torch.uint8)
        state |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        expected[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    save_file(state, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    told = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": told}))
    return expected


def test_experts_in_mxfp4(tmp_path):
    theirs, _ = made(tmp_path)
    expected = as_published(tmp_path)
    ours = load_target(tmp_path, "float32")
    state = ours.state_dict()
    assert len(expected) == 8
    for name, values in expected.items():
        assert torch.equal(state[name], values)
    theirs.load_state_dict(expected, strict=False)
    check_against_transformers(theirs, ours)


def test_experts_stay_in_mxfp4(tmp_path):
    """As floats they are those of the loaded ones; an outline, which the memory plan counts, has their size."""
    made(tmp_path)
    as_published(tmp_path)
    floats, kept, outline = (
        load_target(tmp_path), load_target(tmp_path, keep_codes=True), outline_target(tmp_path, keep_codes=True)
    )  # fmt: skip
    for layer, plain, drawn in zip(*(one.model.layers for one in (kept, floats, outline)), strict=True):
        for part, inputs in (("gate_up_proj", 64), ("down_proj", 32)):
            held, expected = getattr(layer.mlp.experts, part), getattr(plain.mlp.experts, part)
            assert torch.equal(held.dequantized(), expected.transpose(1, 2).flatten(0, 1))
            rows = expected.numel() // inputs
            assert held.nbytes == rows * (128 // 2 + 128 // 32), "rows are filled up to a chunk"
            assert getattr(drawn.mlp.experts, part).nbytes == held.nbytes
    batch = ForwardBatch.of_row([3, 14, 15, 92], 0, kept.device)
    with torch.inference_mode():
        found, wanted = (one.forward(batch, one.new_cache(1, 4)).hidden for one in (kept, floats))
    assert torch.equal(found, wanted)


def test_exponents_that_are_no_numbers(tmp_path):
    made(tmp_path)
    as_published(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.experts.down_proj"
    state[f"{name}_scales"][0, 0, 0] = 255
    save_file(state, tmp_path / "model.safetensors")
    for keep_codes in (False, True):
        with pytest.raises(CheckpointError, match=r"experts.down_proj .*fetch it again"):
            load_target(tmp_path, keep_codes=keep_codes)


def test_blocks_that_do_not_fit(tmp_path):
    made(tmp_path)
    as_published(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.experts.down_proj"
    state[f"{name}_scales"] = state[f"{name}_scales"][:, :-1].contiguous()
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"down_proj_blocks is \[4, 64, 1, 16\] with scales \[4, 63, 1\]"
    ):
        load_target(tmp_path, "float32")


def test_backends_that_cannot_run_it_say_so(tmp_path):
    _, ours = made(tmp_path)
    assert why_unrecordable(ours) == "its experts are chosen on the host"
    with pytest.raises(UsageError, match=r"cannot run this target: it needs .* layers it knows"):
        choose_backend("native", ours.bfloat16())
    assert choose_backend("auto", ours).__name__ == "EagerBackend"


@pytest.mark.parametrize("kind", ["gpt_oss", "gemma4", "olmo"])
def test_a_target_is_one_file_and_one_table_row(kind):
    """Nothing else of the package knows of it, but CUDA's layers where its own are of a new kind; see docs."""
    package = Path(__file__).parents[2] / "src" / "flashdraft"
    files = {file.relative_to(package).as_posix(): file.read_text() for file in package.rglob("*.py")}
    assert f"models/{kind}.py" in files
    knowing = {path for path, text in files.items() if kind in text} - {f"models/{kind}.py"}
    assert knowing - {"cuda/layers.py"} == {"models/base.py"}
