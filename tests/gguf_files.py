"""GGUF files of tiny random models, by gguf's own writer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
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
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
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
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
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
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
