"""The JSON files of a Hugging Face folder: config, generation config, end-of-text ids. Reads no tensor."""

import logging
import math
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from flashdraft.checkpoint.quantization import read_quantization
from flashdraft.checkpoint.untrusted import check_folder, check_sizes, damage_is_told, read_object
from flashdraft.errors import CheckpointError
from flashdraft.models.base import ARCHITECTURES

_ROPE_TYPES = ("default", "linear", "yarn", "llama3", "proportional")
_SAMPLING_FIELDS = ("temperature", "top_p", "top_k", "min_p")


def _read_if_there(file: Path) -> dict[str, Any]:
    return read_object(file) if file.exists() else {}


def read_config(folder: Path) -> Any:
    """The transformers config of a target's folder.

    Raises CheckpointError for a config that is missing, contradicts itself, or asks for what targets do not
    do.
    """
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs and not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json, but {ggufs[0].name}: give that file instead")
    check_folder(folder)
    raw = read_object(folder / "config.json")
    check_sizes(raw, str(folder / "config.json"))
    drafters = {"DFlashDraftModel", "DFlash2DraftModel", "MTPDraftModel"}
    if drafters & set(raw.get("architectures") or ()) or "speculators_model_type" in raw:
        raise CheckpointError(
            f"{folder} holds a drafter; expected a target model: give it as the draft instead"
        )
    _check_architecture(raw, folder)
    with damage_is_told(str(folder / "config.json")):
        read_quantization(raw, folder)
    return parse_config(folder)


def _check_architecture(raw: dict[str, Any], folder: Path) -> None:
    """Refuse a model that is not known here, before transformers has a say: it would ask for code of the folder."""
    if (kind := raw.get("model_type")) not in ARCHITECTURES:
        raise CheckpointError(
            f"{folder}: model_type {kind!r} is not supported as a target; expected one of:"
            f" {', '.join(sorted(ARCHITECTURES))}; vLLM and SGLang serve others (flashdraft launch)"
        )


def parse_config(folder: Path) -> Any:
    """What transformers makes of the folder's config.json. Raises CheckpointError where that is of no use."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (StrictDataclassError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder / 'config.json'} is not a usable config: {reason}") from error
    text = config.get_text_config()
    if getattr(text, "is_heterogeneous", False):
        # Whole-model figures are then those of the sliding layers; transformers would say so once to everybody.
        text.allow_global_per_layer_attribute_access = True
        logging.getLogger("transformers.integrations.heterogeneity.configuration_utils").setLevel(
            logging.ERROR
        )
    check_supported(text, str(folder / "config.json"))
    return config


def check_supported(config: Any, label: str) -> None:
    """Refuse what our layers would compute differently. Raises CheckpointError."""
    heads, kv_heads = (getattr(config, f"num_{kind}_heads", 1) for kind in ("attention", "key_value"))
    if kv_heads < 1 or heads % kv_heads:
        raise CheckpointError(f"{label}: {heads} attention heads cannot share {kv_heads} key-value heads")
    activation = getattr(config, "hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise CheckpointError(
            f"{label}: hidden_act is {activation!r}; expected 'silu', the only one supported"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    by_layer_type = [one for one in rope.values() if isinstance(one, dict)]
    for rope_type in (one.get("rope_type", "default") for one in by_layer_type or [rope]):
        if rope_type not in _ROPE_TYPES:
            mend = ""
            if (
                rope_type == "dynamic"
            ):  # frequencies that change with the text's length, keys of one text among them
                mend = (
                    ": for texts within max_position_embeddings set it to 'default', which is the same there"
                )
            raise CheckpointError(
                f"{label}: rope_type is {rope_type!r}; expected one of {', '.join(_ROPE_TYPES)}{mend}"
            )


def folder_eos_token_ids(folder: Path) -> tuple[int, ...]:
    """Every id that ends a text: of generation config, config and tokenizer together, ascending."""
    found = {_tokenizer_eos(folder)}
    for name in ("generation_config.json", "config.json"):
        content = _read_if_there(folder / name)
        for ids in (content.get("eos_token_id"), (content.get("text_config") or {}).get("eos_token_id")):
            told = ids if isinstance(ids, list) else [ids]
            if any(isinstance(one, bool) or not isinstance(one, int | None) for one in told):
                raise CheckpointError(
                    f"{folder / name}: eos_token_id is {str(ids)[:100]}; expected token ids: mend it or fetch it again"
                )
            found |= set(told)
    return tuple(sorted(token_id for token_id in found if token_id is not None))


def _tokenizer_eos(folder: Path) -> int | None:
    token = _read_if_there(folder / "tokenizer_config.json").get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    added = _read_if_there(folder / "tokenizer.json").get("added_tokens") or ()
    return next((entry["id"] for entry in added if entry["content"] == text), None)


def folder_generation_defaults(folder: Path) -> dict[str, Any]:
    """What generation_config.json asks for, by the names of SamplingParams; empty when it says nothing."""
    config = _read_if_there(folder / "generation_config.json")
    told = {name: config[name] for name in _SAMPLING_FIELDS if config.get(name) is not None}
    for name, value in told.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise CheckpointError(
                f"{folder / 'generation_config.json'}: {name} is {str(value)[:100]}; expected a number: mend it or"
                " fetch it again"
            )
    return told
