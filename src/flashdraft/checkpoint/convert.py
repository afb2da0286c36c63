"""A drafter's folder in another format: the config is told anew, the weights are copied as they are.

Formats are for other engines, which know no rows that are borrowed of the target: see draft_vocabulary.py.
"""

import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from flashdraft.checkpoint.draft_vocabulary import without_borrowing
from flashdraft.checkpoint.embedded import EMBEDDED, embedded_drafter
from flashdraft.checkpoint.hub import locate
from flashdraft.checkpoint.load import load_target, outline_target, target_rows, training_notes
from flashdraft.checkpoint.safetensors import INDEX, SafetensorsWeights, weight_files
from flashdraft.checkpoint.save import TRAINING_NOTES, check_is_new, write_folder
from flashdraft.checkpoint.speculators import from_zlab
from flashdraft.checkpoint.untrusted import read_object
from flashdraft.checkpoint.zlab import open_drafter, read_drafter
from flashdraft.errors import CheckpointError, UsageError

FORMATS = ("z-lab", "speculators", "transformers")
# What auto_map of z-lab's config names: AutoModel takes the class from this file of the folder.
MODELING_FILE = "dflash.py"


def convert_drafter(source: str | Path, to: str, out: Path, target: str | Path | None = None) -> None:
    """Write the drafter ``source`` (embedded, folder or hub name, any format that is read) to the new folder ``out``.

    A drafter that borrows rows of its ``target``'s head gets a copy of them; without a target it drafts among all
    tokens. Copies of the target's tensors are compared with it and left out. speculators' format names the target as
    its verifier. Raises UsageError for an unknown format and for a folder that is not empty, CheckpointError for a
    drafter that cannot be read or that the format cannot say.
    """
    if to not in FORMATS:
        raise UsageError(f"the format is {to!r}; expected {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    check_is_new(out)
    folder = embedded_drafter() if source == EMBEDDED else locate(source)
    # Loading is the check: every name and shape against the config.
    target_config = None if target is None else outline_target(target).config
    rows = None if target is None else target_rows(target)
    drafter = read_drafter(folder, target_config, torch.bfloat16, torch.device("cpu"), rows)
    config, tensors = drafter.config, None
    if to == "transformers" and config.is_dflash2:
        raise CheckpointError(
            "the drafter is DFlash 2, which this export for transformers does not run; expected plain DFlash: take"
            " z-lab's format, which the package dflash loads"
        )
    own = open_drafter(folder, config, rows)
    if config.borrows_head:
        head = None if target is None else load_target(target).head_weight()
        config, tensors = without_borrowing(drafter, own, head)
    elif own.shapes != SafetensorsWeights(folder).shapes:  # less copies of the target's
        tensors = {name: own.read(name) for name in own.shapes}
    told = from_zlab(config.to_dict(), *_named_target(target)) if to == "speculators" else config.to_dict()
    told |= {TRAINING_NOTES: notes} if (notes := training_notes(folder)) else {}
    if tensors is None:
        _copy(folder, told, out)
    else:
        write_folder(out, told, tensors, None)
    if to == "transformers":
        modeling = files("flashdraft.export") / "modeling_dflash.py"
        (out / MODELING_FILE).write_text(modeling.read_text(encoding="utf-8"), encoding="utf-8")


def _named_target(target: str | Path | None) -> tuple[str | None, list[str]]:
    """Where other engines find the target, and its class: its hub name or folder. None: not known."""
    if target is None or target == EMBEDDED or (place := locate(target, weights=False)).is_file():
        return None, []
    name = str(place.resolve()) if Path(target).expanduser().exists() else str(target).partition("@")[0]
    return name, list(read_object(place / "config.json").get("architectures") or [])


def _copy(folder: Path, config: dict[str, Any], out: Path) -> None:
    """The weights' files bit by bit, with ``config`` before them."""
    raw = read_object(folder / "config.json")
    kept = {name: raw[name] for name in ("dtype", "torch_dtype", "transformers_version") if name in raw}
    out.mkdir(parents=True, exist_ok=True)
    stored = weight_files(folder)
    for file in [*stored, folder / INDEX] if len(stored) > 1 else stored:
        shutil.copyfile(file, out / file.name)
    (out / "config.json").write_text(json.dumps({**config, **kept}, indent=2) + "\n", encoding="utf-8")
