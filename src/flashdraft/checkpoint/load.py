"""The door: models, tokenizers and drafters from what the user names. Everything behind it is a format."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from flashdraft.checkpoint.dequantized import folder_weights
from flashdraft.checkpoint.embedded import (
    EMBEDDED,
    EMBEDDED_SAMPLING,
    embedded_drafter,
    embedded_mtp,
    embedded_target,
)
from flashdraft.checkpoint.gguf import GGUFFile
from flashdraft.checkpoint.gguf_gemma3 import Gemma3Weights, read_gemma3_config
from flashdraft.checkpoint.gguf_llama import GGUFWeights, gguf_eos_token_ids, read_gguf_config
from flashdraft.checkpoint.gguf_qwen3 import Qwen3Weights, read_qwen3_config
from flashdraft.checkpoint.gguf_qwen3_5 import Qwen3_5Weights, read_qwen3_5_config
from flashdraft.checkpoint.hf_config import (
    folder_eos_token_ids,
    folder_generation_defaults,
    read_config,
)
from flashdraft.checkpoint.hub import locate
from flashdraft.checkpoint.kept_codes import hold_codes
from flashdraft.checkpoint.regrouped import RegroupedWeights
from flashdraft.checkpoint.save import read_notes
from flashdraft.checkpoint.stored import leave_in_files
from flashdraft.checkpoint.target_copies import TargetRows, rows_by_name
from flashdraft.checkpoint.tokenizer import folder_tokenizer, gguf_tokenizer, with_call_marks
from flashdraft.checkpoint.untrusted import damage_is_told
from flashdraft.checkpoint.weights import WeightSource, check_device, check_dtype, fill
from flashdraft.checkpoint.zlab import read_drafter, read_drafter_config, save_dflash
from flashdraft.errors import CheckpointError, UsageError
from flashdraft.models.base import TargetModel, build_target
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.drafter_network import KINDS, DrafterNetwork, part_of

_GGUF_FORMATS: dict[str, tuple[Callable[[GGUFFile], Any], Callable[[GGUFFile, Any], WeightSource]]] = {
    "llama": (read_gguf_config, GGUFWeights),
    "gemma3": (read_gemma3_config, Gemma3Weights),
    "qwen3": (read_qwen3_config, Qwen3Weights),
    "qwen3moe": (read_qwen3_config, Qwen3Weights),
    "qwen35": (read_qwen3_5_config, Qwen3_5Weights),
    "qwen35moe": (read_qwen3_5_config, Qwen3_5Weights),
}
__all__ = [
    "EMBEDDED",
    "OWN_MTP",
    "check_pair",
    "eos_token_ids",
    "floats_fit",
    "generation_defaults",
    "load_drafter",
    "load_own_mtp",
    "load_target",
    "load_tokenizer",
    "outline_draft",
    "outline_drafter",
    "outline_own_mtp",
    "outline_target",
    "save_drafter",
    "target_rows",
    "training_notes",
]

_SHARE_OF_WEIGHTS = 0.8  # of a device's memory
OWN_MTP = "mtp"  # as a drafter: the MTP head published with the target; a folder of that name is "./mtp"


def load_target(
    path_or_name: str | Path = EMBEDDED,
    dtype: str | torch.dtype = "bfloat16",
    device: str | torch.device = "cpu",
    keep_codes: bool = False,
    leave_matrices: bool = False,
) -> TargetModel:
    """A target, frozen, ready to run, its weights as ``dtype`` in memory of its own.

    ``keep_codes``: matrices of a quantized folder whose codes kernels can read (FP8, 4 bits in groups of 128) stay in
    codes; all else of it becomes floats. ``leave_matrices``: those of the layers stay in their files, on a CPU, and are
    read at every use, for :func:`flashdraft.native.accelerate.accelerate` to pack one at a time.

    ``path_or_name``: "embedded", a Hugging Face folder, a GGUF file or a hub name. Quantized GGUF weights are
    dequantized in float32. Raises CheckpointError before any tensor is read for what is missing, truncated or
    contradicts itself, UsageError for a dtype or device that is not there.
    """
    where, wanted = check_device(device), check_dtype(dtype)
    if not Path(path_or_name).exists():
        outline_target(path_or_name, wanted)  # refuses what its config tells before any weight is fetched
    place = _locate_target(path_or_name)
    with damage_is_told(str(place)):
        config, open_weights = _open_target(place)
        source = open_weights()
        with torch.device("meta"):
            model = build_target(config)
        if keep_codes and wanted != torch.float32:
            source = hold_codes(model, source, wanted, where)
        if leave_matrices and where.type == "cpu":
            source = leave_in_files(model, source, wanted)
    fill(model, source, wanted, where)
    return model.eval().requires_grad_(False)


def outline_target(
    path_or_name: str | Path = EMBEDDED, dtype: str | torch.dtype = "bfloat16", keep_codes: bool = False
) -> TargetModel:
    """A target as :func:`load_target` builds it, without weights: shapes on the meta device, from its config alone.

    What ``keep_codes`` keeps is told by the headers of its files, where they are there.
    """
    place, wanted = _locate_target(path_or_name, weights=False), check_dtype(dtype)
    with damage_is_told(str(place)):
        config, open_weights = _open_target(place)
        with torch.device("meta"):
            model = build_target(config).to(wanted)
        if keep_codes and wanted != torch.float32 and place.is_dir() and any(place.glob("*.safetensors")):
            hold_codes(model, open_weights(), wanted, None)
        return model


def floats_fit(path_or_name: str | Path, dtype: str | torch.dtype, free_bytes: int) -> bool:
    """Whether a target's weights as ``dtype`` leave a fifth of ``free_bytes`` for keys, values and all else."""
    weights = sum(parameter.nbytes for parameter in outline_target(path_or_name, dtype).parameters())
    return weights <= _SHARE_OF_WEIGHTS * free_bytes


def outline_drafter(
    path_or_name: str | Path, target: TargetModel, dtype: str | torch.dtype = "bfloat16"
) -> DrafterNetwork:
    """A drafter as :func:`load_drafter` builds it, without weights: shapes on the meta device."""
    folder = embedded_drafter() if path_or_name == EMBEDDED else locate(path_or_name, weights=False)
    with damage_is_told(str(folder)), torch.device("meta"):
        if kind := _kind_in(folder):
            network: DrafterNetwork = kind.outline(folder, target.config).to(check_dtype(dtype))
            return network
        return DFlashModel(read_drafter_config(folder, target.config)).to(check_dtype(dtype))


def outline_own_mtp(
    target_name: str | Path, target: TargetModel, dtype: str | torch.dtype = "bfloat16"
) -> DrafterNetwork:
    """The head of :func:`load_own_mtp`, without weights: shapes on the meta device."""
    place = embedded_mtp() if target_name == EMBEDDED else locate(target_name, weights=False)
    with damage_is_told(str(place)):
        network: DrafterNetwork = part_of(OWN_MTP, "checkpoint").outline(place, target.config)
    network.to(check_dtype(dtype))
    return network


def outline_draft(
    draft: str | Path, target_name: str | Path, target: TargetModel, dtype: str | torch.dtype = "bfloat16"
) -> DrafterNetwork:
    """What ``draft`` names, a drafter or ``OWN_MTP``, without weights: shapes on the meta device."""
    if draft == OWN_MTP:
        return outline_own_mtp(target_name, target, dtype)
    return outline_drafter(draft, target, dtype)


def check_pair(target: str | Path, draft: str | Path, block_size: int = 1) -> TargetModel | None:
    """Refuse what the configs of a pair tell, before any weight of either is fetched or read.

    ``block_size``: of the blocks that it will be asked for. Gives the target's outline, None where it is not looked at.
    Raises what :func:`load_target`, :func:`load_drafter` and :func:`load_own_mtp` raise, and UsageError for larger
    blocks than the drafter has.
    """
    if block_size == 1 and (target, draft) in ((EMBEDDED, EMBEDDED), (EMBEDDED, OWN_MTP)):
        return None
    model = outline_target(target)
    drafter = outline_draft(draft, target, model)
    if not 1 <= block_size <= drafter.config.block_size:
        raise UsageError(f"block_size is {block_size}; expected 1 to {drafter.config.block_size}")
    return model


def _open_target(place: Path) -> tuple[Any, Callable[[], WeightSource]]:
    """The config of a GGUF file or folder, and what opens its weights."""
    if not place.is_dir():
        file = GGUFFile(place)
        read_fields, weights = _gguf_format(file)
        fields = read_fields(file)
        return fields, lambda: weights(file, fields)
    config = read_config(place)
    return config, lambda: RegroupedWeights(folder_weights(place), config)


def load_tokenizer(path_or_name: str | Path = EMBEDDED) -> Any:
    """The tokenizer of a target, a transformers PreTrainedTokenizerFast with its chat template.

    Raises CheckpointError when there is none or its kind is not supported.
    """
    place = _locate_target(path_or_name, weights=False)
    with damage_is_told(str(place)):
        found = folder_tokenizer(place) if place.is_dir() else gguf_tokenizer(GGUFFile(place))
        return with_call_marks(found)


def load_drafter(
    path_or_name: str | Path = EMBEDDED,
    target: TargetModel | None = None,
    dtype: str | torch.dtype = "bfloat16",
    device: str | torch.device = "cpu",
) -> DrafterNetwork:
    """A drafter network ("embedded", a folder, a GGUF file or a hub name), ready to run or train.

    The folder is in z-lab's or speculators' format, or holds an MTP head; a GGUF file is read with its target.

    With ``target``: raises IncompatibleDrafterError when it was made for another. Raises CheckpointError
    for what is missing, truncated or contradicts itself, UsageError for a dtype or device that is not
    there.
    """
    where, wanted = check_device(device), check_dtype(dtype)
    if target is not None and not Path(path_or_name).exists():
        outline_drafter(path_or_name, target)
    folder = embedded_drafter() if path_or_name == EMBEDDED else locate(path_or_name)
    target_config = None if target is None else target.config
    with damage_is_told(str(folder)):
        kind = _kind_in(folder)
    if kind:
        network: DrafterNetwork = kind.read(folder, target_config, wanted, where)
        network.eval()
        return network
    rows = None if target is None else rows_by_name(*_own_tensors(target))
    return read_drafter(folder, target_config, wanted, where, rows).eval()


def load_own_mtp(
    target_name: str | Path,
    target: TargetModel,
    dtype: str | torch.dtype = "bfloat16",
    device: str | torch.device = "cpu",
) -> DrafterNetwork:
    """The MTP head of the target that ``target_name`` names: among its weights, as Qwen3.5 has one, or embedded.

    Raises CheckpointError when there is none or it contradicts itself, UsageError for a dtype or device that is not
    there.
    """
    where, wanted = check_device(device), check_dtype(dtype)
    place = embedded_mtp() if target_name == EMBEDDED else locate(target_name)
    if place.is_file():
        raise CheckpointError(
            f"{place} is a GGUF file, and no MTP head is read from those; give a trained head's folder, or another"
            " drafter"
        )
    network: DrafterNetwork = part_of(OWN_MTP, "checkpoint").read(place, target.config, wanted, where)
    network.eval()
    return network


def save_drafter(
    drafter: DrafterNetwork,
    folder: str | Path,
    dtype: torch.dtype | None = None,
    notes: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write ``drafter`` to ``folder``, for :func:`load_drafter`; its weights as ``dtype`` (None: as they are).

    ``notes``: what its config.json tells of the training, for :func:`training_notes`.
    """
    if isinstance(drafter, DFlashModel):
        save_dflash(drafter, folder, dtype, notes)
    else:
        part_of(drafter.method, "checkpoint").save(drafter, Path(folder), dtype, notes)


def _kind_in(folder: Path) -> Any:
    """The ``checkpoint`` module of the kind of drafter that ``folder`` holds; None: DFlash, or no drafter."""
    parts = (part_of(method, "checkpoint") for method in KINDS)
    return next((part for part in parts if part.holds(folder)), None)


def training_notes(path_or_name: str | Path) -> dict[str, Any]:
    """What a drafter's config.json tells of its training; empty where it tells nothing."""
    folder = embedded_drafter() if path_or_name == EMBEDDED else locate(path_or_name, weights=False)
    return read_notes(folder)


def eos_token_ids(path_or_name: str | Path = EMBEDDED) -> tuple[int, ...]:
    """Every id that ends a text, ascending: what config, generation config and tokenizer say, together."""
    place = _locate_target(path_or_name, weights=False)
    with damage_is_told(str(place)):
        return folder_eos_token_ids(place) if place.is_dir() else gguf_eos_token_ids(GGUFFile(place))


def generation_defaults(path_or_name: str | Path = EMBEDDED) -> dict[str, Any]:
    """The sampling settings that the model's makers ship, by the names of SamplingParams; may be empty."""
    if path_or_name == EMBEDDED:
        return dict(EMBEDDED_SAMPLING)
    place = _locate_target(path_or_name, weights=False)
    with damage_is_told(str(place)):
        return folder_generation_defaults(place) if place.is_dir() else {}


def target_rows(path_or_name: str | Path) -> TargetRows:
    """The rows of a target's embedding and head as its files have them; opened when they are asked for."""

    def rows(ending: str) -> Tensor:
        source = _open_target(_locate_target(path_or_name))[1]()
        return rows_by_name(source.shapes, source.read)(ending)

    return rows


def _own_tensors(target: TargetModel) -> tuple[Iterable[str], Callable[[str], Tensor]]:
    state = target.state_dict()
    return state, state.__getitem__


def _gguf_format(file: GGUFFile) -> tuple[Callable[[GGUFFile], Any], Callable[[GGUFFile, Any], WeightSource]]:
    architecture = file.fields.get("general.architecture")
    if architecture not in _GGUF_FORMATS:
        raise CheckpointError(
            f"{file.path} has architecture {architecture!r}; expected {' or '.join(map(repr, _GGUF_FORMATS))}: give the"
            " model as a Hugging Face folder"
        )
    return _GGUF_FORMATS[architecture]


def _locate_target(path_or_name: str | Path, weights: bool = True) -> Path:
    return embedded_target() if path_or_name == EMBEDDED else locate(path_or_name, weights)
