"""A GGUF target as a Hugging Face folder, so that vLLM, SGLang and transformers serve the very same weights.

What a straight conversion gets wrong, and this one does not: ``architectures`` is there, the norms' epsilon is the
decimal that was meant, digits are cut apart where the model's own tokenizer does, and every end token is named.
"""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from transformers import PreTrainedConfig

from flashdraft.checkpoint.load import EMBEDDED, eos_token_ids, load_target, load_tokenizer
from flashdraft.errors import UsageError


def export_target(path_or_name: str | Path, out: Path, dtype: str | torch.dtype = "bfloat16") -> None:
    """Write the target ("embedded" or a GGUF file), dequantized to ``dtype``, to the new folder ``out``.

    Raises UsageError for a source that is a folder already and for an ``out`` that is not empty, CheckpointError
    for a file that cannot be read.
    """
    if path_or_name != EMBEDDED and not Path(path_or_name).expanduser().is_file():
        raise UsageError(
            f"{path_or_name} is no GGUF file; expected one, or {EMBEDDED}: other engines take a Hugging Face folder"
            " or a hub name as it is"
        )
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty; expected a new folder: give another or remove it")
    target, tokenizer = load_target(path_or_name, dtype), load_tokenizer(path_or_name)
    out.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(dict(target.state_dict()), out)
    _write_json(out / "config.json", _config(target.config, target.dtype))
    for file in out.glob("*.safetensors"):
        file.chmod((out / "config.json").stat().st_mode)  # safetensors writes for the owner alone
    ends = sorted(eos_token_ids(path_or_name))
    _write_json(
        out / "generation_config.json", {"bos_token_id": target.config.bos_token_id, "eos_token_id": ends}
    )
    tokenizer.save_pretrained(out)
    # transformers 5 writes the name of its new base class, which transformers 4 does not know; both know this one.
    described = json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))
    _write_json(out / "tokenizer_config.json", {**described, "tokenizer_class": "PreTrainedTokenizerFast"})


def _config(config: Any, dtype: torch.dtype) -> dict[str, Any]:
    unsaid = PreTrainedConfig().to_dict()
    described = {k: v for k, v in config.to_dict().items() if k not in unsaid or unsaid[k] != v}
    described["dtype"] = str(dtype).removeprefix("torch.")
    rope = described.get("rope_parameters") or {}
    if "rope_theta" in rope:
        # The older spelling beside the newer one: transformers 4 reads nothing else.
        described["rope_theta"] = rope["rope_theta"]
        plain = rope.get("rope_type", "default") == "default"
        described["rope_scaling"] = None if plain else {k: v for k, v in rope.items() if k != "rope_theta"}
    return described


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
