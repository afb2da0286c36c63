"""MTP heads: in a folder of their own, or beside the target that was published with one.

A head is the target's config and the ``mtp.*`` tensors. In its own folder the config.json says MTPDraftModel and
how long a block may be; in a target's folder it is the target's.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from flashdraft.checkpoint.dequantized import folder_weights
from flashdraft.checkpoint.hf_config import parse_config
from flashdraft.checkpoint.regrouped import RegroupedWeights
from flashdraft.checkpoint.save import write_folder
from flashdraft.checkpoint.untrusted import check_folder, check_sizes, damage_is_told, read_object
from flashdraft.checkpoint.weights import WeightSource, fill
from flashdraft.checkpoint.zlab import check_fits_target
from flashdraft.errors import CheckpointError
from flashdraft.models.mtp import MTPConfig, MTPModel

_ARCHITECTURE = "MTPDraftModel"
_PREFIX = "mtp."
_LARGEST_BLOCK = 16  # of a published head, whose config names none: it drafts on and on, worse and worse


def holds(folder: Path) -> bool:
    """Whether ``folder``'s config.json is that of an MTP head; a GGUF file is none.

    Raises CheckpointError when there is none.
    """
    return not folder.is_file() and read_object(folder / "config.json").get("architectures") == [
        _ARCHITECTURE
    ]


def read(folder: Path, target_config: Any, dtype: torch.dtype, device: torch.device) -> MTPModel:
    """The MTP head in ``folder``, its own or a target's, checked against the target's config unless that is None.

    Raises CheckpointError for a folder without a head and for a head that contradicts itself,
    IncompatibleDrafterError for one made for another target; all before any tensor is read.
    """
    with damage_is_told(str(folder)):
        source = _Head(folder_weights(folder))
        layer = parse_config(folder).get_text_config()
    if not source.shapes:
        raise CheckpointError(
            f"{folder} holds no MTP head (no {_PREFIX}* tensors); give a trained head's folder, or another drafter"
        )
    config = read_config(folder, target_config)
    with torch.device("meta"):
        model = MTPModel(config)
    fill(model, RegroupedWeights(source, layer), dtype, device)
    return model


def read_config(folder: Path, target_config: Any) -> MTPConfig:
    """The config of the head in ``folder``, no weights; checked and raising as :func:`read`."""
    file = folder / "config.json"
    check_folder(folder)
    check_sizes(read_object(file), str(file))
    with damage_is_told(str(file)):
        layer = parse_config(folder).get_text_config()
    if (num_layers := getattr(layer, "mtp_num_hidden_layers", 1)) != 1:
        raise CheckpointError(f"{folder} has an MTP head of {num_layers} layers; expected 1: not supported")
    block_size = getattr(layer, "block_size", _LARGEST_BLOCK)
    if not isinstance(block_size, int) or block_size < 2:
        raise CheckpointError(f"{folder / 'config.json'}: block_size is {block_size}; expected 2 or more")
    config = MTPConfig(layer, block_size)
    if target_config is not None:
        check_fits_target(config, target_config, str(folder))
    return config


def outline(folder: Path, target_config: Any) -> MTPModel:
    """The head as :func:`read` builds it, without weights."""
    with torch.device("meta"):
        return MTPModel(read_config(folder, target_config))


def outline_for(target_config: Any) -> MTPModel:
    """The head that a target of ``target_config`` is published with, without weights."""
    with torch.device("meta"):
        return MTPModel(MTPConfig(target_config, _LARGEST_BLOCK))


def save(
    head: MTPModel,
    folder: Path,
    dtype: torch.dtype | None = None,
    notes: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write ``head`` to ``folder``, its weights as ``dtype`` (None: as they are)."""
    state = {_PREFIX + name: tensor for name, tensor in head.state_dict().items()}
    write_folder(folder, head.config.to_dict(), state, dtype, notes)


class _Head:
    """The ``mtp.*`` tensors of a checkpoint, by the head's own names."""

    def __init__(self, source: WeightSource) -> None:
        self.source, self.label = source, source.label

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See :class:`flashdraft.checkpoint.weights.WeightSource`."""
        every = self.source.shapes.items()
        return {name.removeprefix(_PREFIX): shape for name, shape in every if name.startswith(_PREFIX)}

    def read(self, name: str) -> Tensor:
        """See :class:`flashdraft.checkpoint.weights.WeightSource`."""
        return self.source.read(_PREFIX + name)
