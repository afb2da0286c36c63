"""A gemma3 GGUF as a transformers checkpoint: config and tensors by transformers' names."""

from typing import Any

from torch import Tensor
from transformers import Gemma3TextConfig

from flashdraft.checkpoint.gguf import GGUFFile
from flashdraft.checkpoint.gguf_llama import Fields, transformers_name
from flashdraft.errors import CheckpointError

# What llama.cpp calls otherwise than in llama: https://github.com/ggml-org/llama.cpp, gguf-py/gguf/constants.py.
_NAMES = {
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
# Of the released models, where a file leaves it out: every sixth layer is full, and sliding ones rotate faster.
_PATTERN, _LOCAL_THETA = 6, 10000.0
_LAYERS_OF_27B = 62  # its queries are scaled by hidden size / heads, all others' by the head's size


def read_gemma3_config(file: GGUFFile) -> Gemma3TextConfig:
    """The config that the fields describe. Raises CheckpointError for what is missing or not supported."""
    field = Fields(file, "gemma3")
    heads, hidden_size = field("attention.head_count"), field("embedding_length")
    head_dim, num_layers = field("attention.key_length", 256), field("block_count")
    pattern = field("attention.sliding_window_pattern", _PATTERN)
    scaling = field("rope.scaling.type", "none")
    if scaling not in ("none", "linear") or "output.weight" in file.tensors:
        raise CheckpointError(
            f"{file.path} has rope scaling {scaling!r} or a head of its own; expected none or linear, and a tied head"
        )
    full: dict[str, Any] = {"rope_type": "default", "rope_theta": field("rope.freq_base", 1e6)}
    if scaling == "linear":
        full |= {"rope_type": "linear", "factor": field("rope.scaling.factor")}
    local = {"rope_type": "default", "rope_theta": field("rope.freq_base_swa", _LOCAL_THETA)}
    return Gemma3TextConfig(
        architectures=["Gemma3ForCausalLM"],
        vocab_size=field("vocab_size", len(file.fields.get("tokenizer.ggml.tokens", ()))),
        hidden_size=hidden_size,
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        num_key_value_heads=field("attention.head_count_kv", heads),
        head_dim=head_dim,
        query_pre_attn_scalar=hidden_size // heads if num_layers == _LAYERS_OF_27B else head_dim,
        max_position_embeddings=field("context_length"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        sliding_window=field("attention.sliding_window"),
        layer_types=[
            "sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(num_layers)
        ],
        rope_parameters={"sliding_attention": local, "full_attention": full},
        tie_word_embeddings=True,
        bos_token_id=file.fields.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=file.fields.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=file.fields.get("tokenizer.ggml.padding_token_id"),
    )


class Gemma3Weights:
    """The tensors of a gemma3 GGUF (see :class:`flashdraft.checkpoint.weights.WeightSource`)."""

    def __init__(self, file: GGUFFile, config: Gemma3TextConfig) -> None:  # noqa: ARG002 - as every format's
        self.label = str(file.path)
        self._file = file
        self._names = {transformers_name(name, _NAMES): name for name in file.tensors}
        self.shapes = {name: file.tensors[stored].shape for name, stored in self._names.items()}

    def read(self, name: str) -> Tensor:
        """One tensor in float32. The file has the norms' factors, transformers their distance from 1."""
        tensor = self._file.read(self._names[name])
        return tensor - 1 if name.endswith("norm.weight") else tensor
