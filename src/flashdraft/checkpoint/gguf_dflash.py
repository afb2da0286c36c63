"""A drafter in a GGUF file, as llama.cpp writes DFlash and DFlash 2 (general.architecture "dflash"), in z-lab's fields.

Two things are otherwise than in z-lab's format (llama.cpp, conversion/qwen.py): layer ids are one higher, as they name
the layer that a feature enters, and the token of the masked slots is told among the tokenizer's fields.
"""

import re
from typing import Any

from torch import Tensor

from flashdraft.checkpoint.gguf import GGUFFile
from flashdraft.checkpoint.gguf_llama import Fields, rope_parameters, transformers_name
from flashdraft.errors import CheckpointError
from flashdraft.models.dflash_config import DFLASH, DFLASH2

_ARCHITECTURE = "dflash"
_NAMES = {
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_conv_proj": "attention_conv.kernel_projection",
    "ffn_conv_proj": "mlp_conv.kernel_projection",
}
_OWN = {
    "enc.output_norm.weight": "hidden_norm.weight",
    "selector_hidden.weight": "candidate_selector.hidden_projection.weight",
    "selector_predecessor.weight": "candidate_selector.predecessor_codebook",
    "selector_successor.weight": "candidate_selector.successor_codebook",
}
_BASE = re.compile(r"blk\.(\d+)\.(attn|ffn)_conv_base")
# z-lab's field -> the file's, where it may be missing.
_OPTIONAL = {
    "is_causal": "attention.causal",
    "sample_from_anchor": "sample_from_anchor",
    "conv_kernel_size": "conv_kernel_size",
    "conv_group_size": "conv_group_size",
    "selector_rank": "selector_rank",
    "selector_top_k": "selector_top_k",
    "output_multiplier": "logit_scale",
    "final_logit_softcapping": "final_logit_softcapping",
    "input_embedding_scale": "embedding_scale",
}


def read_drafter_fields(file: GGUFFile, target_config: Any) -> dict[str, Any]:
    """What z-lab's config.json would say of the drafter, with its tensors' names.

    The file does not tell how many layers the target has: that is ``target_config``'s. Raises CheckpointError for
    another kind of file, and for what is missing or not supported.
    """
    if (found := file.fields.get("general.architecture")) != _ARCHITECTURE:
        raise CheckpointError(
            f"{file.path} has architecture {found!r}; expected {_ARCHITECTURE!r}, as llama.cpp writes drafters: convert"
            " it again, or give the drafter as a folder"
        )
    if target_config is None:
        raise CheckpointError(
            f"{file.path} does not tell its target's layers and tokens; expected the target beside it: give it too"
        )
    if "d2t" in file.tensors:
        raise CheckpointError(
            f"{file.path} drafts among tokens of its own choice (d2t), which is not read from GGUF: give the drafter as"
            " a folder"
        )
    field = Fields(file, _ARCHITECTURE)
    heads, hidden_size = field("attention.head_count"), field("embedding_length")
    head_dim, num_layers = field("attention.key_length", hidden_size // heads), field("block_count")
    told = {key: file.fields.get(f"{_ARCHITECTURE}.{name}") for key, name in _OPTIONAL.items()}
    inner = {
        "mask_token_id": file.fields.get("tokenizer.ggml.mask_token_id"),
        "target_layer_ids": _feature_layers(file),
        **{key: value for key, value in told.items() if value is not None},
    }
    if inner["mask_token_id"] is None:
        raise CheckpointError(
            f"{file.path} lacks the field tokenizer.ggml.mask_token_id; convert the drafter again"
        )
    is_dflash2 = bool(told["selector_rank"] or told["conv_kernel_size"])
    return {
        "architectures": [DFLASH2 if is_dflash2 else DFLASH],
        "hidden_size": hidden_size,
        "intermediate_size": field("feed_forward_length"),
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": field("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": len(file.fields.get("tokenizer.ggml.tokens", ())) or target_config.vocab_size,
        "block_size": field("block_size"),
        "num_target_layers": target_config.num_hidden_layers,
        "max_position_embeddings": field("context_length"),
        "rms_norm_eps": field("attention.layer_norm_rms_epsilon"),
        "rope_parameters": rope_parameters(file, field, head_dim),
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "dflash_config": inner,
        "tensors": list(file.tensors),
        **_windows(file, num_layers),
    }


def _feature_layers(file: GGUFFile) -> list[int]:
    ids = file.fields.get(f"{_ARCHITECTURE}.target_layers")
    if not isinstance(ids, list) or not all(type(one) is int for one in ids):
        raise CheckpointError(
            f"{file.path}: {_ARCHITECTURE}.target_layers is {str(ids)[:100]}; expected numbers of layers: convert the"
            " drafter again"
        )
    return [one - 1 for one in ids]


def _windows(file: GGUFFile, num_layers: int) -> dict[str, Any]:
    """Which layers slide, by z-lab's names."""
    window = file.fields.get(f"{_ARCHITECTURE}.attention.sliding_window")
    if not window:
        return {}
    pattern = file.fields.get(f"{_ARCHITECTURE}.attention.sliding_window_pattern")
    if not isinstance(pattern, list) or len(pattern) != num_layers:
        raise CheckpointError(
            f"{file.path} has a window of {window}, and {_ARCHITECTURE}.attention.sliding_window_pattern"
            f" {str(pattern)[:100]}; expected true or false for each of {num_layers} layers: convert the drafter again"
        )
    kinds = ["sliding_attention" if slides else "full_attention" for slides in pattern]
    return {"sliding_window": window, "layer_types": kinds}


class GGUFDrafterWeights:
    """A drafter's tensors by z-lab's names (see :class:`flashdraft.checkpoint.weights.WeightSource`)."""

    def __init__(self, file: GGUFFile) -> None:
        self.label, self._file = str(file.path), file
        self._names = {_zlab_name(name): name for name in file.tensors}
        self.shapes = {name: file.tensors[stored].shape for name, stored in self._names.items()}

    def read(self, name: str) -> Tensor:
        """One tensor in float32."""
        return self._file.read(self._names[name])


def _zlab_name(name: str) -> str:
    if match := _BASE.fullmatch(name):
        return f"layers.{match[1]}.{'attention' if match[2] == 'attn' else 'mlp'}_conv.base_kernel"
    return _OWN.get(name) or transformers_name(name, _NAMES).removeprefix("model.")
