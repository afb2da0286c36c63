"""A qwen3 or qwen3moe GGUF as a transformers checkpoint: config and tensors by transformers' names.

llama.cpp rotates these models as transformers does, so no rows are reordered; experts are stacked, gates and ups apart.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3MoeConfig

from flashdraft.checkpoint.gguf import GGUFFile
from flashdraft.checkpoint.gguf_llama import Fields, refuse_scales, rope_parameters, transformers_name
from flashdraft.errors import CheckpointError

# What llama.cpp calls otherwise than in llama: https://github.com/ggml-org/llama.cpp, gguf-py/gguf/constants.py.
_NAMES = {
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate_inp": "mlp.gate",
}
_GATE, _UP, _DOWN = ("ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight")
_GATE_UP = "ffn_gate_up_exps.weight"  # both in one tensor, as newer converters can write them


def read_qwen3_config(file: GGUFFile) -> Qwen3Config | Qwen3MoeConfig:
    """The config that the fields describe. Raises CheckpointError for what is missing or not supported."""
    architecture = file.fields["general.architecture"]
    is_sparse = architecture == "qwen3moe"
    field = Fields(file, architecture, may_be_sparse=is_sparse)
    heads, hidden_size = field("attention.head_count"), field("embedding_length")
    head_dim = field("attention.key_length", hidden_size // heads)
    refuse_scales(file, architecture, head_dim)
    values: dict[str, Any] = {
        "vocab_size": field("vocab_size", len(file.fields.get("tokenizer.ggml.tokens", ()))),
        "hidden_size": hidden_size,
        "intermediate_size": field("feed_forward_length"),
        "num_hidden_layers": field("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": field("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": field("context_length"),
        "rms_norm_eps": field("attention.layer_norm_rms_epsilon"),
        "rope_parameters": rope_parameters(file, field, head_dim),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": file.fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.fields.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": file.fields.get("tokenizer.ggml.padding_token_id"),
    }
    if not is_sparse:
        return Qwen3Config(architectures=["Qwen3ForCausalLM"], **values)
    return Qwen3MoeConfig(
        architectures=["Qwen3MoeForCausalLM"],
        num_experts=field("expert_count"),
        num_experts_per_tok=field("expert_used_count"),
        moe_intermediate_size=field("expert_feed_forward_length"),
        norm_topk_prob=True,  # as llama.cpp computes it
        **values,
    )


class Qwen3Weights:
    """The tensors of a qwen3 or qwen3moe GGUF (see :class:`flashdraft.checkpoint.weights.WeightSource`)."""

    names: Mapping[str, str] = _NAMES

    def __init__(self, file: GGUFFile, config: Any) -> None:  # noqa: ARG002 - as every format's
        self.label = str(file.path)
        self._made: dict[str, Callable[[], Tensor]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, tensor in file.tensors.items():
            prefix, _, kind = name.partition(".") if not name.startswith("blk.") else _layer_of(name)
            layer = f"model.layers.{prefix}.mlp.experts"
            if kind == _GATE:
                gate, up = name, name.removesuffix(_GATE) + _UP
                if up not in file.tensors or file.tensors[up].shape != tensor.shape:
                    raise CheckpointError(f"{file.path} lacks {up} in the shape of {name}; fetch it again")
                experts, width, hidden_size = tensor.shape
                self.shapes[f"{layer}.gate_up_proj"] = (experts, 2 * width, hidden_size)
                self._made[f"{layer}.gate_up_proj"] = _joined(file, gate, up)
            elif kind != _UP:
                joined = {_DOWN: f"{layer}.down_proj", _GATE_UP: f"{layer}.gate_up_proj"}
                plain = joined.get(kind) or transformers_name(name, self.names)
                self.shapes[plain], self._made[plain] = tensor.shape, _whole(file, name)

    def read(self, name: str) -> Tensor:
        """One tensor in float32."""
        return self._made[name]()


def _layer_of(name: str) -> tuple[str, str, str]:
    _, layer, kind = name.split(".", 2)
    return layer, ".", kind


def _whole(file: GGUFFile, name: str) -> Callable[[], Tensor]:
    return lambda: file.read(name)


def _joined(file: GGUFFile, gate: str, up: str) -> Callable[[], Tensor]:
    return lambda: torch.cat((file.read(gate), file.read(up)), dim=1)
