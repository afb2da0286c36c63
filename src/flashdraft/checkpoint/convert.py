"""A drafter's folder in another format: the config is told anew, the weights are copied as they are.

Formats are for other engines, which know no rows that are borrowed of the target: see draft_vocabulary.py.
"""

import json
import shutil
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashdraft.checkpoint.draft_vocabulary import without_borrowing
from flashdraft.checkpoint.embedded import EMBEDDED, embedded_drafter
from flashdraft.checkpoint.hub import locate
from flashdraft.checkpoint.load import load_target, outline_target, target_rows
from flashdraft.checkpoint.safetensors import INDEX, SafetensorsWeights, weight_files
from flashdraft.checkpoint.save import TRAINING_NOTES, check_is_new, read_notes, write_folder
from flashdraft.checkpoint.speculators import from_zlab
from flashdraft.checkpoint.untrusted import read_object
from flashdraft.checkpoint.zlab import open_drafter, read_drafter
from flashdraft.errors import CheckpointError, UsageError
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.dflash_config import DFlashConfig

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
    own = open_drafter(folder, config, rows)
    if config.borrows_head:
        head = None if target is None else load_target(target).head_weight()
        config, tensors = without_borrowing(drafter, own, head)
    elif folder.is_file() or own.shapes != SafetensorsWeights(folder).shapes:  # less copies of the target's
        tensors = {name: own.read(name) for name in own.shapes}
    if config.selector_projects_head:
        whose = EMBEDDED if target is None and source == EMBEDDED else target
        tensors = tensors or {name: own.read(name) for name in own.shapes}
        config, tensors = _with_codebooks(drafter, config, tensors, whose)
    told = from_zlab(config.to_dict(), *_named_target(target)) if to == "speculators" else config.to_dict()
    told |= {TRAINING_NOTES: notes} if (notes := read_notes(folder)) else {}
    if tensors is None:
        _copy(folder, told, out)
    else:
        write_folder(out, told, tensors, None)
    if to == "transformers":
        modeling = files("flashdraft.export") / "modeling_dflash.py"
        (out / MODELING_FILE).write_text(modeling.read_text(encoding="utf-8"), encoding="utf-8")


def _with_codebooks(
    drafter: DFlashModel, config: DFlashConfig, tensors: dict[str, Tensor], target: str | Path | None
) -> tuple[DFlashConfig, dict[str, Tensor]]:
    """Config and tensors with the codebooks that the selector makes of the target's head: others know no projection."""
    if target is None:
        raise CheckpointError(
            "the drafter's selector is a projection of its target's head, which other engines do not know; expected the"
            " target too, so that its tables can be written: add --target"
        )
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith("cessor_projection")}
    assert drafter.candidate_selector is not None
    first, last = drafter.candidate_selector.codebooks(load_target(target).head_weight())
    tables = {"predecessor_codebook": first, "successor_codebook": last}
    named = {f"candidate_selector.{name}": table.detach() for name, table in tables.items()}
    return replace(config, selector_projects_head=False), {**kept, **named}


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
