"""A llama GGUF as a transformers checkpoint: config, tensors by transformers' names, end-of-text ids."""

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from flashdraft.checkpoint.gguf import GGUFFile
from flashdraft.errors import CheckpointError

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FACTORS = "rope_freqs.weight"
_FACTORS = ("attention.scale", "logit_scale", "residual_scale", "embedding_scale")
_EOS_FIELDS = ("eos_token_id", "eot_token_id", "eom_token_id")


def transformers_name(name: str, others: Mapping[str, str] = MappingProxyType({})) -> str:
    """``blk.3.attn_q.weight`` -> ``model.layers.3.self_attn.q_proj.weight``; an unknown name stays.

    ``others``: what another architecture calls otherwise than llama.
    """
    names = {**_NAMES, **others}
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if not match or match[2] not in names:
        return name
    layer = "" if match[1] is None else f"model.layers.{match[1]}."
    return f"{layer}{names[match[2]]}.{match[3]}"


def unpermute(weight: Tensor, num_heads: int) -> Tensor:
    """Undo llama.cpp's reordering of query and key rows [num_heads * head_dim, ...].

    llama.cpp rotates neighbouring rows, transformers row i with row i + head_dim / 2; its converter
    permutes the rows of each head from [2, head_dim / 2] to [head_dim / 2, 2].
    """
    pairs = weight.reshape(num_heads, -1, 2, *weight.shape[1:])  # [num_heads, head_dim / 2, 2, ...]
    return pairs.transpose(1, 2).reshape(weight.shape)


def read_gguf_config(file: GGUFFile) -> LlamaConfig:
    """The config that the fields describe. Raises CheckpointError for what is missing or not supported."""
    field = Fields(file, "llama")
    heads, hidden_size = field("attention.head_count"), field("embedding_length")
    head_dim = field("attention.key_length", hidden_size // heads)
    refuse_scales(file, "llama", head_dim)
    if (rotated := field("rope.dimension_count", head_dim)) != head_dim:
        raise CheckpointError(f"{file.path} rotates {rotated} of {head_dim} head dimensions; expected all")
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=field("vocab_size", len(file.fields.get("tokenizer.ggml.tokens", ()))),
        hidden_size=hidden_size,
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=field("attention.head_count_kv", heads),
        head_dim=head_dim,
        max_position_embeddings=field("context_length"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        rope_parameters=rope_parameters(file, field, head_dim),
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        mlp_bias="blk.0.ffn_gate.bias" in file.tensors,
        tie_word_embeddings="output.weight" not in file.tensors,
        bos_token_id=file.fields.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=file.fields.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=file.fields.get("tokenizer.ggml.padding_token_id"),
    )


def gguf_eos_token_ids(file: GGUFFile) -> tuple[int, ...]:
    """Every id that ends a text or a turn, ascending."""
    found = (file.fields.get(f"tokenizer.ggml.{name}") for name in _EOS_FIELDS)
    return tuple(sorted({token_id for token_id in found if token_id is not None}))


class GGUFWeights:
    """The tensors of a llama GGUF (see :class:`flashdraft.checkpoint.weights.WeightSource`)."""

    def __init__(self, file: GGUFFile, config: LlamaConfig) -> None:
        self.label = str(file.path)
        self._file = file
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._num_heads = {"q_proj": heads, "k_proj": kv_heads or heads}
        self._names = {transformers_name(name): name for name in file.tensors if name != _ROPE_FACTORS}
        self.shapes = {name: file.tensors[stored].shape for name, stored in self._names.items()}

    def read(self, name: str) -> Tensor:
        """One tensor in float32, its rows in transformers' order."""
        tensor = self._file.read(self._names[name])
        num_heads = self._num_heads.get(name.split(".")[-2])
        return tensor if num_heads is None else unpermute(tensor, num_heads)


class Fields:
    """Reads ``<architecture>.<key>``. Raises CheckpointError for a mixture of experts where none may be."""

    def __init__(self, file: GGUFFile, architecture: str, may_be_sparse: bool = False) -> None:
        self.file, self.architecture = file, architecture
        if file.fields.get(f"{architecture}.expert_count") and not may_be_sparse:
            raise CheckpointError(
                f"{file.path} is a mixture of experts; expected a dense {architecture} model"
            )

    def __call__(self, key: str, default: Any = None) -> Any:
        name = f"{self.architecture}.{key}"
        value = self.file.fields.get(name, default)
        if value is None:
            raise CheckpointError(f"{self.file.path} lacks the field {name}; convert the model again")
        if isinstance(value, list):
            raise CheckpointError(f"{self.file.path}: {name} differs by layer, which is not supported")
        return value


def refuse_scales(file: GGUFFile, architecture: str, head_dim: int) -> None:
    """Raise CheckpointError for factors that other models of the architecture multiply by, and ours do not."""
    for key in _FACTORS:
        plain = head_dim**-0.5 if key == "attention.scale" else 1.0
        value = file.fields.get(f"{architecture}.{key}")
        if value and not math.isclose(value, plain, rel_tol=1e-4):
            raise CheckpointError(
                f"{file.path} has {architecture}.{key} {value}; expected {plain:g}, the only one supported: give the"
                " model as a Hugging Face folder"
            )


def rope_parameters(file: GGUFFile, field: Fields, head_dim: int) -> dict[str, Any]:
    """How the model rotates, in transformers' fields. Raises CheckpointError for a scaling that is not known here."""
    parameters = {"rope_type": "default", "rope_theta": field("rope.freq_base", 10000.0)}
    scaling = field("rope.scaling.type", "none")
    if scaling == "linear":
        return {**parameters, "rope_type": "linear", "factor": field("rope.scaling.factor")}
    if scaling != "none":
        raise CheckpointError(f"{file.path} has rope scaling {scaling!r}; expected none or linear")
    if _ROPE_FACTORS not in file.tensors:
        return parameters
    return parameters | _llama3_scaling(file, parameters["rope_theta"], head_dim)


def _llama3_scaling(file: GGUFFile, rope_theta: float, head_dim: int) -> dict[str, Any]:
    """Llama 3.1's scaling: the GGUF leaves its parameters out, so guess them and prove them by the factors.

    Formula: https://github.com/meta-llama/llama-models, ``apply_scaling``. Raises CheckpointError when the
    factors [head_dim / 2] are others.
    """
    stored = file.read(_ROPE_FACTORS)
    factor, low, high, original_len = stored.max().item(), 1.0, 4.0, 8192
    speeds = rope_theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    turns = original_len * speeds / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if stored.shape != expected.shape or not torch.allclose(stored, expected, rtol=1e-4):
        raise CheckpointError(
            f"{file.path} scales rope by factors that are not Llama 3.1's; give the model as a Hugging Face"
            " folder"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original_len,
    }
