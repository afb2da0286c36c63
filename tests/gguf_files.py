"""GGUF files of tiny random models, by gguf's own writer."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

TOKENS = [*"abcdefghijklmnopqrstuvwxyz0123456789", "Ġ", "Ċ", "th", "<|start|>", "<|end|>"]

STORED_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_llama_gguf(
    path: Path,
    model: LlamaForCausalLM,
    fields: dict[str, Any] | None = None,
    extra_tensors: dict[str, np.ndarray] | None = None,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> Path:
    """A transformers Llama as llama.cpp's converter writes it; fields can be replaced (None: left out)."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    values = llama_fields(config) | tokenizer_fields() | (fields or {})
    for key, value in values.items():
        if value is not None:
            add_field(writer, key, value)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = permute(tensor, name, config).numpy()
        as_kind = kind if array.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(stored_name(name), gguf.quants.quantize(array, as_kind), raw_dtype=as_kind)
    for name, array in (extra_tensors or {}).items():
        writer.add_tensor(name, array)
    _finish(writer)
    return path


def llama_fields(config: Any) -> dict[str, Any]:
    return {
        "llama.vocab_size": config.vocab_size,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.rope.dimension_count": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "llama.rope.freq_base": float(config.rope_parameters["rope_theta"]),
    }


def tokenizer_fields() -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3 if token.startswith("<|") else 1 for token in TOKENS],
        "tokenizer.ggml.merges": ["t h"],
        "tokenizer.ggml.bos_token_id": TOKENS.index("<|start|>"),
        "tokenizer.ggml.eos_token_id": TOKENS.index("<|end|>"),
        "tokenizer.ggml.padding_token_id": TOKENS.index("<|end|>"),
    }


def add_field(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if key == "general.alignment":
        writer.add_custom_alignment(value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def stored_name(name: str, names: Mapping[str, str] = STORED_NAMES) -> str:
    module, _, kind = name.rpartition(".")
    if module.startswith("model.layers."):
        _, _, layer, part = module.split(".", 3)
        return f"blk.{layer}.{names[part]}.{kind}"
    return f"{names[module]}.{kind}"


def permute(tensor: Tensor, name: str, config: Any) -> Tensor:
    """llama.cpp's order of query and key rows: [2, head_dim / 2] of a head becomes [head_dim / 2, 2]."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(
        name.split(".")[-2]
    )
    if heads is None:
        return tensor
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(tensor.shape).contiguous()


GEMMA3_NAMES = STORED_NAMES | {
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
# Scores fall with the id, as SentencePiece gives them; bytes and control tokens first.
PIECES = ["<pad>", "<eos>", "<bos>", "<unk>", "<turn>", *(f"<0x{byte:02X}>" for byte in range(256))]
PIECES += ["th", "▁t", "he", "▁th", "▁the", "the", "an", "and", "▁an", "▁and", "nd", "▁▁", "▁", *"thean.d\n1"]


def sentencepiece_fields() -> dict[str, Any]:
    first = PIECES.index("th")
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": PIECES,
        "tokenizer.ggml.scores": [-1000.0] * first + [-float(i) for i in range(len(PIECES) - first)],
        "tokenizer.ggml.token_type": [3] * 3 + [2, 4] + [6] * 256 + [1] * (len(PIECES) - first),
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }


def write_gemma3_gguf(path: Path, model: Any, fields: dict[str, Any] | None = None) -> Path:
    """A transformers Gemma 3 as llama.cpp's converter writes it, in float32; the norms are stored as factors."""
    config = model.config
    writer = gguf.GGUFWriter(path, "gemma3")
    values = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.sliding_window": config.sliding_window,
        "rope.freq_base": float(config.rope_parameters["full_attention"]["rope_theta"]),
        "rope.scaling.type": "linear",
        "rope.scaling.factor": 8.0,
    }
    named = (
        {f"gemma3.{key}": value for key, value in values.items()} | sentencepiece_fields() | (fields or {})
    )
    for key, value in named.items():
        if value is not None:
            add_field(writer, key, value)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        array = (tensor + 1 if name.endswith("norm.weight") else tensor).numpy()
        writer.add_tensor(stored_name(name, GEMMA3_NAMES), array)
    _finish(writer)
    return path


QWEN3_NAMES = STORED_NAMES | {
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate": "ffn_gate_inp",
}


def write_qwen3_gguf(path: Path, model: Any, max_tensors: int = 0) -> None:
    """A transformers Qwen3 or Qwen3-MoE as llama.cpp's converter writes it, ``max_tensors`` a file (0: all in one)."""
    config, is_sparse = model.config, model.config.model_type == "qwen3_moe"
    architecture = "qwen3moe" if is_sparse else "qwen3"
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=max_tensors)
    fields = {key.removeprefix("llama."): value for key, value in llama_fields(config).items()}
    del fields["rope.dimension_count"]
    if is_sparse:
        fields |= {
            "expert_count": config.num_experts,
            "expert_used_count": config.num_experts_per_tok,
            "expert_feed_forward_length": config.moe_intermediate_size,
        }
    named = {f"{architecture}.{key}": value for key, value in fields.items()}
    for key, value in (named | tokenizer_fields() | {"tokenizer.ggml.pre": "qwen2"}).items():
        add_field(writer, key, value)
    for name, tensor in model.state_dict().items():
        prefix, _, kind = name.rpartition(".mlp.experts.")
        block = "blk." + prefix.removeprefix("model.layers.")
        if kind == "gate_up_proj":
            gate, up = tensor.chunk(2, dim=1)
            writer.add_tensor(f"{block}.ffn_gate_exps.weight", gate.contiguous().numpy())
            writer.add_tensor(f"{block}.ffn_up_exps.weight", up.contiguous().numpy())
        elif kind == "down_proj":
            writer.add_tensor(f"{block}.ffn_down_exps.weight", tensor.numpy())
        elif not (name == "lm_head.weight" and config.tie_word_embeddings):
            writer.add_tensor(stored_name(name, QWEN3_NAMES), tensor.numpy())
    _finish(writer)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


QWEN3_5_NAMES = QWEN3_NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "linear_attn.in_proj_qkv": "attn_qkv",
    "linear_attn.in_proj_z": "attn_gate",
    "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.in_proj_b": "ssm_beta",
    "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.dt_proj": "ssm_dt",
    "linear_attn.norm": "ssm_norm",
    "linear_attn.out_proj": "ssm_out",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
}


def write_qwen3_5_gguf(
    path: Path,
    model: Any,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    max_tensors: int = 0,
    with_mtp: bool = False,
    joins_experts: bool = False,
) -> None:
    """A transformers Qwen3.5, dense or sparse, as llama.cpp's converter writes it (conversion/qwen.py)."""
    config = model.config
    is_sparse = config.model_type == "qwen3_5_moe_text"
    writer = gguf.GGUFWriter(path, "qwen35moe" if is_sparse else "qwen35", split_max_tensors=max_tensors)
    for key, value in (
        _qwen3_5_fields(config, with_mtp) | tokenizer_fields() | {"tokenizer.ggml.pre": "qwen35"}
    ).items():
        add_field(writer, key.replace("llama.", f"{writer.arch}."), value)
    for name, tensor in model.state_dict().items():
        for stored, values in _as_qwen35(name, tensor, config, joins_experts):
            plain = values.dim() == 1 or "conv1d" in stored
            as_kind = gguf.GGMLQuantizationType.F32 if plain else kind
            writer.add_tensor(stored, gguf.quants.quantize(values.numpy(), as_kind), raw_dtype=as_kind)
    if with_mtp:
        block = f"blk.{config.num_hidden_layers}"
        for part in ("nextn.eh_proj", "nextn.enorm", "attn_norm", "attn_q"):
            writer.add_tensor(f"{block}.{part}.weight", np.ones((4, 32), np.float32))
    _finish(writer)


def _qwen3_5_fields(config: Any, with_mtp: bool) -> dict[str, Any]:
    plain = {"intermediate_size": 0, **config.to_dict(), "rope_parameters": config.rope_parameters}
    fields = llama_fields(SimpleNamespace(**plain))
    fields["llama.block_count"] += with_mtp
    rotated = config.rope_parameters["partial_rotary_factor"]
    fields |= {
        "llama.rope.dimension_count": int(config.head_dim * rotated),
        "llama.rope.dimension_sections": [11, 11, 10, 0],
        "llama.full_attention_interval": config.layer_types.index("full_attention") + 1,
        "llama.ssm.conv_kernel": config.linear_conv_kernel_dim,
        "llama.ssm.state_size": config.linear_key_head_dim,
        "llama.ssm.group_count": config.linear_num_key_heads,
        "llama.ssm.time_step_rank": config.linear_num_value_heads,
        "llama.ssm.inner_size": config.linear_value_head_dim * config.linear_num_value_heads,
    }
    if with_mtp:
        fields["llama.nextn_predict_layers"] = 1
    if config.model_type == "qwen3_5_moe_text":
        fields |= {
            "llama.expert_count": config.num_experts,
            "llama.expert_used_count": config.num_experts_per_tok,
            "llama.expert_feed_forward_length": config.moe_intermediate_size,
            "llama.expert_shared_feed_forward_length": config.shared_expert_intermediate_size,
        }
    return fields


def _as_qwen35(name: str, tensor: Tensor, config: Any, joins_experts: bool) -> list[tuple[str, Tensor]]:
    """What one of transformers' tensors becomes in the file."""
    prefix, _, kind = name.partition(".mlp.experts.")
    block = "blk." + prefix.removeprefix("model.layers.")
    if kind == "gate_up_proj" and not joins_experts:
        gate, up = (half.contiguous() for half in tensor.chunk(2, dim=1))
        return [(f"{block}.ffn_gate_exps.weight", gate), (f"{block}.ffn_up_exps.weight", up)]
    if kind:
        return [(f"{block}.ffn_{'down' if kind == 'down_proj' else 'gate_up'}_exps.weight", tensor)]
    if name.endswith("norm.weight") and "linear_attn" not in name:
        tensor = tensor + 1
    tensor = _tiled(name, tensor.squeeze(), config)
    if name.endswith("A_log"):
        return [
            (
                stored_name(name.replace("A_log", "norm.weight"), QWEN3_5_NAMES).replace("norm.weight", "a"),
                -tensor.exp(),
            )
        ]
    return [(stored_name(name.replace("dt_bias", "dt_proj.bias"), QWEN3_5_NAMES), tensor)]


def _tiled(name: str, tensor: Tensor, config: Any) -> Tensor:
    """Value heads in the order in which ggml repeats key heads: the first of each, then the second of each."""
    heads, ratio = config.linear_num_key_heads, config.linear_num_value_heads // config.linear_num_key_heads
    part = name.rpartition("linear_attn.")[2]
    if part in ("in_proj_qkv.weight", "conv1d.weight"):
        of_keys = 2 * heads * config.linear_key_head_dim
        values = tensor[of_keys:].unflatten(0, (heads, ratio, -1)).transpose(0, 1).flatten(0, 2)
        return torch.cat([tensor[:of_keys], values])
    if part == "out_proj.weight":
        return tensor.unflatten(1, (heads, ratio, -1)).transpose(1, 2).flatten(1, 3).contiguous()
    if part in ("in_proj_z.weight", "in_proj_a.weight", "in_proj_b.weight", "A_log", "dt_bias"):
        return tensor.unflatten(0, (heads, ratio, -1)).transpose(0, 1).flatten(0, 2)
    return tensor
