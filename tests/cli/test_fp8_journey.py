"""The whole way with a target as Qwen3.5-35B-A3B-FP8 is published: vision tower, block FP8, experts, MTP head."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

from command_line import Run
from flashdraft.models.mtp import MTPConfig, MTPModel
from journey import from_training_to_another_engine
from quantized_files import CONFIGS, block_fp8
from tiny_pair import byte_tokenizer

TEXT = {
    "vocab_size": 259,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "full_attention_interval": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "eos_token_id": 257,
}
VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
}
# As the published config's modules_to_not_convert: what stays in bfloat16.
_FLOATS = re.compile(
    r"(\.gate|shared_expert_gate|in_proj_[ab]|conv1d|embed_tokens|lm_head|fc|norm)\.weight$|visual"
)


def one_by_one(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Experts as FP8 checkpoints have them."""
    apart = {}
    for name, tensor in state.items():
        prefix, _, kind = name.rpartition(".")
        if kind == "gate_up_proj":
            for i, both in enumerate(tensor):
                gate, up = both.chunk(2)
                apart |= {f"{prefix}.{i}.gate_proj.weight": gate, f"{prefix}.{i}.up_proj.weight": up}
        elif kind == "down_proj" and prefix.endswith("experts"):
            apart |= {f"{prefix}.{i}.down_proj.weight": one for i, one in enumerate(tensor)}
        else:
            apart[name] = tensor
    return apart


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("fp8") / "target"
    torch.manual_seed(0)
    config = Qwen3_5MoeConfig(text_config=TEXT, vision_config=VISION, tie_word_embeddings=False)
    model = Qwen3_5MoeForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
        elif name.endswith("A_log"):
            torch.nn.init.normal_(parameter, mean=-3.0)
    head = MTPModel(MTPConfig(config.get_text_config(), 4))
    head.init_weights(torch.Generator().manual_seed(1), std=0.1)
    state = model.state_dict() | {f"mtp.{name}": tensor for name, tensor in head.state_dict().items()}
    stored: dict[str, Any] = {}
    for name, tensor in one_by_one(state).items():
        if tensor.dim() != 2 or _FLOATS.search(name):
            stored[name] = tensor.float() if name.endswith("A_log") else tensor.bfloat16()
            continue
        module = name.removesuffix(".weight")
        stored |= {f"{module}.{end}": part for end, part in block_fp8(tensor.detach())[0].items()}
    folder.mkdir()
    save_file(
        {name: tensor.detach().contiguous().clone() for name, tensor in stored.items()},
        folder / "model.safetensors",
    )
    raw = {**config.to_dict(), "architectures": ["Qwen3_5MoeForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps({**raw, "quantization_config": CONFIGS["block-fp8"]}))
    byte_tokenizer().save_pretrained(folder)
    assert any(name.endswith("experts.3.down_proj.weight_scale_inv") for name in stored)
    assert any(name.startswith("mtp.") and name.endswith("weight_scale_inv") for name in stored)
    return str(folder)


@pytest.mark.slow
def test_from_training_to_another_engine(target: str, run: Run, tmp_path: Path) -> None:
    from_training_to_another_engine(target, run, tmp_path, more_drafts=("mtp",))
