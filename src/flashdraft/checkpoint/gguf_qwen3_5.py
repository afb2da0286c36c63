"""A qwen35 or qwen35moe GGUF as a transformers checkpoint: config and tensors by transformers' names.

Its converter (llama.cpp, conversion/qwen.py) adds 1 to the norms, stores decays as -exp(A_log), drops the convolution's
middle dimension, and orders value heads by their place under a key head, where transformers has them key head by key
head. An MTP head lies in layers behind the last one, and is left out.
"""

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import Qwen3_5MoeTextConfig, Qwen3_5TextConfig

from flashdraft.checkpoint.gguf import GGUFFile
from flashdraft.checkpoint.gguf_llama import Fields, refuse_scales
from flashdraft.checkpoint.gguf_qwen3 import Qwen3Weights
from flashdraft.errors import CheckpointError

# What llama.cpp calls otherwise than in llama: https://github.com/ggml-org/llama.cpp, gguf-py/gguf/constants.py.
_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_dt": "linear_attn.dt",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
# Without an ending of its own in the file, or with another one in transformers.
_PARAMETERS = (
    (re.compile(r"^blk\.(\d+)\.ssm_a$"), r"model.layers.\1.linear_attn.A_log"),
    (re.compile(r"\.dt\.bias$"), ".dt_bias"),
)
_VALUE_ROWS = ("in_proj_z.weight", "in_proj_a.weight", "in_proj_b.weight", "A_log", "dt_bias")


def read_qwen3_5_config(file: GGUFFile) -> Qwen3_5TextConfig | Qwen3_5MoeTextConfig:
    """The config that the fields describe. Raises CheckpointError for what is missing or not supported."""
    architecture = file.fields["general.architecture"]
    is_sparse = architecture == "qwen35moe"
    field = Fields(file, architecture, may_be_sparse=is_sparse)
    heads, hidden_size = field("attention.head_count"), field("embedding_length")
    head_dim = field("attention.key_length", hidden_size // heads)
    refuse_scales(file, architecture, head_dim)
    if (scaling := field("rope.scaling.type", "none")) != "none":
        raise CheckpointError(
            f"{file.path} has rope scaling {scaling!r}; expected none: give the model as a Hugging Face folder"
        )
    value_heads = field("ssm.time_step_rank")
    values: dict[str, Any] = {
        "vocab_size": field("vocab_size", len(file.fields.get("tokenizer.ggml.tokens", ()))),
        "hidden_size": hidden_size,
        "num_hidden_layers": field("block_count") - field("nextn_predict_layers", 0),
        "num_attention_heads": heads,
        "num_key_value_heads": field("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": field("context_length"),
        "rms_norm_eps": field("attention.layer_norm_rms_epsilon"),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": field("rope.freq_base", 10000.0),
            "partial_rotary_factor": field("rope.dimension_count", head_dim) / head_dim,
        },
        "full_attention_interval": field("full_attention_interval", 4),
        "linear_conv_kernel_dim": field("ssm.conv_kernel"),
        "linear_key_head_dim": field("ssm.state_size"),
        "linear_value_head_dim": field("ssm.inner_size") // value_heads,
        "linear_num_key_heads": field("ssm.group_count"),
        "linear_num_value_heads": value_heads,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": file.fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.fields.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": file.fields.get("tokenizer.ggml.padding_token_id"),
    }
    if not is_sparse:
        width = field("feed_forward_length")
        return Qwen3_5TextConfig(architectures=["Qwen3_5ForCausalLM"], intermediate_size=width, **values)
    return Qwen3_5MoeTextConfig(
        architectures=["Qwen3_5MoeForCausalLM"],
        num_experts=field("expert_count"),
        num_experts_per_tok=field("expert_used_count"),
        moe_intermediate_size=field("expert_feed_forward_length"),
        shared_expert_intermediate_size=field("expert_shared_feed_forward_length"),
        **values,
    )


class Qwen3_5Weights(Qwen3Weights):  # noqa: N801 - the name of the model
    """The tensors of a qwen35 or qwen35moe GGUF (see :class:`flashdraft.checkpoint.weights.WeightSource`)."""

    names = _NAMES

    def __init__(self, file: GGUFFile, config: Any) -> None:
        super().__init__(file, config)
        self._key_heads = config.linear_num_key_heads
        self._ratio = config.linear_num_value_heads // self._key_heads
        self._key_rows = 2 * self._key_heads * config.linear_key_head_dim  # of queries and keys
        for name in list(self.shapes):
            plain = name
            for pattern, replacement in _PARAMETERS:
                plain = pattern.sub(replacement, plain)
            layer = re.match(r"(?:model\.layers|blk)\.(\d+)\.", plain)
            if layer and int(layer[1]) >= config.num_hidden_layers:
                plain = f"mtp.{plain}"
            shape, read = self.shapes.pop(name), self._made.pop(name)
            if plain.endswith("conv1d.weight"):
                shape = (shape[0], 1, shape[-1])
            elif plain.endswith("shared_expert_gate.weight"):
                shape = (1, shape[-1])
            self.shapes[plain], self._made[plain] = shape, self._as_transformers(plain, shape, read)

    def _as_transformers(
        self, name: str, shape: tuple[int, ...], read: Callable[[], Tensor]
    ) -> Callable[[], Tensor]:
        def changed() -> Tensor:
            tensor = read().reshape(shape)
            if name.endswith("A_log"):
                tensor = (-tensor).log()
            elif name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
                tensor = tensor - 1
            if name.endswith(("in_proj_qkv.weight", "conv1d.weight")):
                tensor[self._key_rows :] = self._by_key_head(tensor[self._key_rows :], 0)
            elif name.endswith("linear_attn.out_proj.weight"):
                tensor = self._by_key_head(tensor, 1)
            elif name.endswith(_VALUE_ROWS):
                tensor = self._by_key_head(tensor, 0)
            return tensor

        return changed

    def _by_key_head(self, tensor: Tensor, dim: int) -> Tensor:
        """Value heads [ratio, key heads] along ``dim`` as [key heads, ratio]."""
        width = tensor.shape[dim] // (self._ratio * self._key_heads)
        heads = tensor.reshape(
            *tensor.shape[:dim], self._ratio, self._key_heads, width, *tensor.shape[dim + 1 :]
        )
        return heads.transpose(dim, dim + 1).reshape(tensor.shape)
