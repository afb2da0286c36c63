"""The config of a speculators checkpoint told in z-lab's fields, and back. The tensors have the same names.

What differs (speculators 0.9, models/dflash and models/dflash2): ``aux_hidden_state_layer_ids`` count the embedding as
0 and are one higher, the layer's shape stands in ``transformer_layer_config``, full layers are never causal, and its
trainer counts a sliding window from the anchor. ``num_target_layers``, ``window_from_anchor`` and
``selector_anchor_sampled`` are fields of ours that its readers pass over; without them a file means what its trainer
did.
"""

from collections.abc import Sequence
from typing import Any

from flashdraft.errors import CheckpointError
from flashdraft.models.dflash_config import DFLASH, DFLASH2

MARK = "speculators_model_type"
_IDS = "aux_hidden_state_layer_ids"
_HEADS = {"conv_kernel_size": 2, "conv_group_size": 16, "selector_rank": 256, "selector_top_k": 16}
_OURS = ("selector_anchor_sampled",)
_UNKNOWN = ("selector_projects_head", "output_multiplier", "final_logit_softcapping", "input_embedding_scale")
_OF_A_LAYER = (
    "attention_bias",
    "attention_dropout",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_cache",
    "use_sliding_window",
    "vocab_size",
)


def to_zlab(raw: dict[str, Any], num_target_layers: int | None) -> dict[str, Any]:
    """A speculators ``config.json`` in z-lab's fields; ``num_target_layers`` where the file does not know.

    Raises CheckpointError for other algorithms.
    """
    layer = raw.get("transformer_layer_config") or {}
    is_dflash2 = raw.get(MARK) == "dflash2"
    if not (is_dflash2 or raw.get(MARK) == "dflash") or not layer:
        raise CheckpointError(
            f"the drafter is a speculators {raw.get(MARK)!r}; expected 'dflash' or 'dflash2' with a"
            " transformer_layer_config: serve it with another engine (flashdraft launch vllm, or sglang)"
        )
    if raw.get("target_hidden_size") not in (None, layer.get("hidden_size")):
        raise CheckpointError(
            f"the drafter's target_hidden_size is {raw['target_hidden_size']}; expected its own hidden_size"
            f" {layer.get('hidden_size')}"
        )
    for name, what in (
        ("mask_token_id", "the id that stands for MASK"),
        (_IDS, "the layers whose outputs it reads"),
    ):
        if raw.get(name) is None:
            raise CheckpointError(
                f"the drafter's {name} is null; expected {what}: write what it was trained with into its config.json"
            )
    ids = [layer_id - 1 for layer_id in raw[_IDS]]
    num_layers = raw.get("num_target_layers") or num_target_layers or max(ids, default=-1) + 1
    inner = {"mask_token_id": raw.get("mask_token_id"), "target_layer_ids": ids}
    if raw.get("sample_from_anchor"):
        inner["sample_from_anchor"] = True
    slides = "sliding_attention" in (layer.get("layer_types") or ())
    if slides and raw.get("window_from_anchor", True):
        inner["window_from_anchor"] = True
    zlab = {**layer, "block_size": raw.get("block_size", 8), "num_target_layers": num_layers}
    if (draft_vocab_size := raw.get("draft_vocab_size")) is not None:
        zlab["draft_vocab_size"] = draft_vocab_size
    inner |= {name: raw.get(name, theirs) for name, theirs in _HEADS.items() if is_dflash2}
    inner |= {name: raw[name] for name in _OURS if name in raw}
    zlab |= {"architectures": [DFLASH2 if is_dflash2 else DFLASH], "dflash_config": inner}
    if slides and raw.get("sliding_window_non_causal", is_dflash2):
        zlab["is_causal"] = False
    return zlab


def from_zlab(
    config: dict[str, Any], target: str | None = None, target_architectures: Sequence[str] = ()
) -> dict[str, Any]:
    """z-lab's ``config.json``, as :meth:`DFlashConfig.to_dict` writes it, in speculators' fields.

    ``target``: its verifier's hub name or folder, and the classes that its config names. Raises CheckpointError for
    what speculators has not: full layers that are causal within the block, DFlash 2 with one of its two parts, scaled
    embeddings and logits.
    """
    inner = config["dflash_config"]
    is_dflash2 = config["architectures"] == [DFLASH2]
    if is_dflash2 and not (inner["conv_kernel_size"] and inner["selector_rank"]):
        raise CheckpointError(
            f"the drafter has conv_kernel_size {inner['conv_kernel_size']} and selector_rank {inner['selector_rank']};"
            " expected both above 0, as in every dflash2 of speculators: stay with z-lab's format"
        )
    if scaled := [name for name in _UNKNOWN if name in inner]:
        raise CheckpointError(
            f"the drafter has {', '.join(scaled)}; expected a drafter without them, as every one of speculators: stay"
            " with z-lab's format"
        )
    if config.get("is_causal") and "full_attention" in config["layer_types"]:
        raise CheckpointError(
            "the drafter's full layers are causal (is_causal true); expected a drafter whose full layers see the whole"
            " block, as every one of speculators: stay with z-lab's format"
        )
    slides = "sliding_attention" in config["layer_types"]
    layer = {name: config[name] for name in _OF_A_LAYER if name in config}
    block_size, mask_token_id = config["block_size"], inner["mask_token_id"]
    proposal = {"proposal_type": "greedy", "speculative_tokens": block_size - 1}
    algorithm = "dflash2" if is_dflash2 else "dflash"
    return {
        "architectures": [DFLASH2 if is_dflash2 else "DFlashSpeculator"],
        MARK: algorithm,
        **{name: inner[name] for name in _HEADS if is_dflash2},
        **{name: inner[name] for name in _OURS if name in inner},
        _IDS: [layer_id + 1 for layer_id in inner["target_layer_ids"]],
        "block_size": block_size,
        "draft_vocab_size": config.get("draft_vocab_size", config["vocab_size"]),
        "mask_token_id": mask_token_id,
        "num_target_layers": config["num_target_layers"],
        "sample_from_anchor": False,
        # vLLM 0.32 reads this for every layer, so without sliding layers it has to say what full ones are.
        "sliding_window_non_causal": not slides or config.get("is_causal") is False,
        "speculators_config": {
            "algorithm": algorithm,
            "default_proposal_method": "greedy",
            "proposal_methods": [proposal],
            "verifier": {"name_or_path": target, "architectures": list(target_architectures)},
        },
        "target_hidden_size": config["hidden_size"],
        "transformer_layer_config": layer,
        "window_from_anchor": bool(inner.get("window_from_anchor")),
    }
