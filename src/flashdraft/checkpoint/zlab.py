"""Drafters in z-lab's format: config.json of a DFlashDraftModel or DFlash2DraftModel, and model.safetensors.

Those in speculators' format and in GGUF files are read through it.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from flashdraft.checkpoint.dequantized import folder_weights
from flashdraft.checkpoint.gguf import GGUFFile
from flashdraft.checkpoint.gguf_dflash import GGUFDrafterWeights, read_drafter_fields
from flashdraft.checkpoint.hf_config import check_supported
from flashdraft.checkpoint.other_heads import check_method
from flashdraft.checkpoint.save import write_folder
from flashdraft.checkpoint.speculators import MARK, to_zlab
from flashdraft.checkpoint.target_copies import FittedTables, TargetRows, WithoutCopies
from flashdraft.checkpoint.untrusted import check_sizes, damage_is_told, read_object
from flashdraft.checkpoint.weights import WeightSource, fill
from flashdraft.errors import CheckpointError, IncompatibleDrafterError
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.dflash_config import DFLASH, DFLASH2, DFlashConfig
from flashdraft.models.drafter_network import DrafterConfig

_PADDING, _PADDED_SHARE = (
    1024,
    32,
)  # a vocabulary is padded by fewer tokens than that, and than a 32nd of its own
# Fields that other drafters of the family use, with the values that mean DFlash.
_PLAIN = {
    "use_swa": False,
    "sample_from_anchor": False,
    "shift_label": False,
    "attention_sink_bias": False,
    "attention_value_scale": 1.0,
}


def read_drafter(
    folder: Path,
    target_config: Any,
    dtype: torch.dtype,
    device: torch.device,
    rows: TargetRows | None = None,
) -> DFlashModel:
    """The drafter in ``folder`` or GGUF file, checked against the target's config unless that is None.

    ``rows``: the target's, which copies in the file are compared with. Raises CheckpointError for a drafter that
    contradicts itself, IncompatibleDrafterError for one made for another target; both before any tensor is read, but
    for copies.
    """
    config = read_drafter_config(folder, target_config)
    with damage_is_told(str(folder)):
        source = open_drafter(folder, config, rows)
        check_method({"tensors": list(source.shapes)}, folder)
        _check_fc(config, source)
        with torch.device("meta"):
            model = DFlashModel(config)
    fill(model, source, dtype, device)
    _check_draft_tokens(model, source.label)
    return model


def open_drafter(folder: Path, config: DFlashConfig, rows: TargetRows | None) -> WeightSource:
    """The drafter's own tensors: less its copies of the target's, which are compared with ``rows``."""
    stored = GGUFDrafterWeights(GGUFFile(folder)) if folder.is_file() else folder_weights(folder)
    source = WithoutCopies(stored, config)
    source.compare(rows)
    return FittedTables(source, config.vocab_size)


def read_drafter_config(folder: Path, target_config: Any) -> DFlashConfig:
    """The config of the drafter in ``folder``, in any format; checked and raising as :func:`read_drafter`."""
    file = folder if folder.is_file() else folder / "config.json"
    raw = read_drafter_fields(GGUFFile(folder), target_config) if folder.is_file() else read_object(file)
    check_sizes(raw, str(file))
    with damage_is_told(str(file)):
        if MARK in raw:
            check_method(raw, folder)
            raw = to_zlab(raw, None if target_config is None else target_config.num_hidden_layers)
        if target_config is not None:
            raw = _without_padding(raw, target_config.vocab_size)
        config = _parse_config(raw, folder)
    if target_config is not None:
        check_fits_target(config, target_config, str(folder))
    return config


def save_dflash(
    drafter: DFlashModel,
    folder: str | Path,
    dtype: torch.dtype | None = None,
    notes: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write ``drafter`` to ``folder`` in z-lab's format, its weights as ``dtype`` (None: as they are)."""
    write_folder(Path(folder), drafter.config.to_dict(), drafter.state_dict(), dtype, notes)


def check_fits_target(config: DrafterConfig, target_config: Any, label: str) -> None:
    """Raise IncompatibleDrafterError, naming all that differs, for a drafter made for another target."""
    pairs = (
        ("hidden_size", config.hidden_size, target_config.hidden_size),
        ("vocab_size", config.vocab_size, target_config.vocab_size),
        ("num_target_layers", config.num_target_layers, target_config.num_hidden_layers),
    )
    wrong = [f"{name} {found} (target: {expected})" for name, found, expected in pairs if found != expected]
    if wrong:
        raise IncompatibleDrafterError(
            f"drafter {label} was made for another target: it has {', '.join(wrong)}; give the drafter of"
            " this target, or none"
        )


def _parse_config(raw: dict[str, Any], folder: Path) -> DFlashConfig:
    """Read and check what does not depend on a target."""
    architectures = raw.get("architectures")
    check_method(raw, folder)
    if architectures not in ([DFLASH], [DFLASH2]):
        raise CheckpointError(
            f"{folder} holds {architectures}; expected a drafter, whose config.json has architectures"
            f" ['{DFLASH}'] or ['{DFLASH2}']"
        )
    _check_is_plain(raw, folder)
    try:
        config = DFlashConfig.from_dict(raw)
        check_supported(config, str(folder))
        wrong = _contradictions(config)
    except (StrictDataclassError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} is not a usable drafter config: {error}") from error
    if architectures == [DFLASH2] and not config.is_dflash2:
        wrong.append(
            "neither conv_kernel_size nor selector_rank in dflash_config (expected one of them above 0)"
        )
    if wrong:
        raise CheckpointError(
            f"drafter {folder} has {'; '.join(wrong)}: mend its config.json or fetch it again"
        )
    return config


def _without_padding(raw: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """``raw`` with the target's ``vocab_size``, where its own differs by what vocabularies are padded by.

    A drafter embeds and drafts through the target's rows, so its own number of them is of no use.
    """
    own = raw.get("vocab_size")
    if not isinstance(own, int) or not 0 < abs(own - vocab_size) < min(_PADDING, vocab_size / _PADDED_SHARE):
        return raw
    whole = {"draft_vocab_size": vocab_size} if raw.get("draft_vocab_size") == own else {}
    return {**raw, "vocab_size": vocab_size, **whole}


def _contradictions(config: DFlashConfig) -> list[str]:
    num_layers, ids = config.num_target_layers, list(config.target_layer_ids)
    taps, group_size = config.conv_kernel_size, config.conv_group_size
    checks = (
        (config.block_size >= 2, f"block_size {config.block_size} (expected 2 or more)"),
        (
            0 <= config.mask_token_id < config.vocab_size,
            f"mask_token_id {config.mask_token_id} (expected 0 to {config.vocab_size - 1}: a vocabulary id)",
        ),
        (
            1 <= (config.draft_vocab_size or 1) <= config.vocab_size,
            f"draft_vocab_size {config.draft_vocab_size} (expected 1 to {config.vocab_size})",
        ),
        (
            0 <= taps <= config.block_size,
            f"conv_kernel_size {taps} (expected 1 to {config.block_size}: a block's slots)",
        ),
        (
            not taps or (group_size > 0 and config.hidden_size % group_size == 0),
            f"conv_group_size {group_size} (expected a divisor of hidden_size {config.hidden_size})",
        ),
        (
            config.selector_rank >= 0,
            f"selector_rank {config.selector_rank} (expected 1 or more)",
        ),
        (
            not config.selector_rank
            or 1 <= config.selector_top_k <= (config.draft_vocab_size or config.vocab_size),
            f"selector_top_k {config.selector_top_k} (expected 1 or more, and no more than it drafts among)",
        ),
        (
            not config.borrows_head or config.draft_vocab_size,
            f"borrows_head without a draft vocabulary (expected draft_vocab_size below {config.vocab_size})",
        ),
        (
            ids and len(set(ids)) == len(ids) and all(0 <= layer < num_layers for layer in ids),
            f"target_layer_ids {ids} (expected different layers from 0 to {num_layers - 1})",
        ),
    )
    return [text for is_fine, text in checks if not is_fine]


def _check_draft_tokens(model: DFlashModel, label: str) -> None:
    if model.config.draft_vocab_size is None:
        return
    vocab_size, tokens = model.config.vocab_size, model.draft_tokens()
    if not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        raise CheckpointError(
            f"drafter {label}: d2t names tokens {int(tokens.min())} to {int(tokens.max())}; expected 0 to"
            f" {vocab_size - 1}: fetch it again"
        )
    if not torch.equal(model.t2d.nonzero().flatten(), tokens.sort().values):
        raise CheckpointError(f"drafter {label}: t2d and d2t name different tokens; fetch it again")


def _check_is_plain(raw: dict[str, Any], folder: Path) -> None:
    inner = raw.get("dflash_config") or {}
    found = {name: inner.get(name, raw.get(name)) for name in _PLAIN}
    if raw.get("use_sliding_window") and not raw.get("layer_types"):
        found["use_sliding_window"] = True
    wrong = [f"{name} {value!r}" for name, value in found.items() if value not in (None, _PLAIN.get(name))]
    if raw.get("hidden_act", "silu") != "silu":
        wrong.append(f"hidden_act {raw['hidden_act']!r}")
    if wrong:
        raise CheckpointError(
            f"drafter {folder} asks for {', '.join(wrong)}; expected DFlash without them: not supported"
        )


def _check_fc(config: DFlashConfig, source: WeightSource) -> None:
    num_inputs = source.shapes.get("fc.weight", (0, 0))[-1]
    num_features = len(config.target_layer_ids)
    if "fc.weight" in source.shapes and num_inputs != num_features * config.hidden_size:
        raise CheckpointError(
            f"drafter {source.label}: fc.weight takes {num_inputs} inputs; expected {num_features}"
            f" target_layer_ids x hidden_size {config.hidden_size} = {num_features * config.hidden_size}:"
            " config.json and weights must be from one drafter"
        )
