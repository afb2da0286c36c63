"""A drafter's folder on disk, written so that a reader finds whole files, the old or the new."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from flashdraft.checkpoint.safetensors import SINGLE
from flashdraft.checkpoint.untrusted import read_object
from flashdraft.errors import UsageError
from flashdraft.whole_files import put_in_place

TRAINING_NOTES = "flashdraft_training"  # in a config.json: how the drafter was trained


def read_notes(folder: Path) -> dict[str, Any]:
    """What the config.json of a drafter's ``folder`` tells of its training; empty where nothing, as in a GGUF file."""
    notes = {} if folder.is_file() else read_object(folder / "config.json").get(TRAINING_NOTES)
    return notes if isinstance(notes, dict) else {}


def check_is_new(folder: Path) -> None:
    """Raise UsageError where ``folder`` holds something."""
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty; expected a new folder: give another or remove it")


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    notes: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write config.json and model.safetensors to ``folder``, floats as ``dtype`` (None: as they are).

    Each file is written aside and renamed, the config last; other files of the folder stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        for name, tensor in state.items()
    }
    floats = [
        tensor.dtype for tensor in weights.values() if tensor.is_floating_point()
    ]  # tables of tokens are not
    stored = str(floats[0]).removeprefix("torch.")
    facts = {**config, "dtype": stored, "transformers_version": transformers.__version__}
    if notes:
        facts[TRAINING_NOTES] = dict(notes)
    weights_aside, config_aside = folder / f".{SINGLE}.new", folder / ".config.json.new"
    try:
        config_aside.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        save_file(weights, weights_aside, metadata={"format": "pt"})
        weights_aside.chmod(config_aside.stat().st_mode)  # safetensors writes for the owner alone
        put_in_place(weights_aside, folder / SINGLE)
        put_in_place(config_aside, folder / "config.json")
    finally:
        weights_aside.unlink(missing_ok=True)
        config_aside.unlink(missing_ok=True)
