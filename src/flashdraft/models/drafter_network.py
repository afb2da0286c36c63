"""What all networks that draft have in common, and which kinds there are beside DFlash. A new one is a row here."""

from abc import abstractmethod
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from flashdraft.cache.kv_cache import KVCache, KVShape


@dataclass(frozen=True)
class Kind:
    """Where the parts of a kind of drafter are: modules, which nothing else imports."""

    checkpoint: str  # holds, outline, read, save: its folders
    spec_decode: str  # open_drafter: from a network to its drafter
    train: str  # new_network, context_entries, block_hidden: how it is trained


# By ``DrafterNetwork.method``.
KINDS = {"mtp": Kind("flashdraft.checkpoint.mtp", "flashdraft.spec_decode.mtp", "flashdraft.train.mtp")}


class DrafterConfig(Protocol):
    """What every drafter's config tells."""

    @property
    def block_size(self) -> int:
        """The largest block, anchor included."""
        ...

    @property
    def target_layer_ids(self) -> tuple[int, ...]:
        """Target layers whose outputs it wants."""
        ...

    @property
    def hidden_size(self) -> int:
        """Its own, and the target's."""
        ...

    @property
    def vocab_size(self) -> int:
        """The target's."""
        ...

    @property
    def num_target_layers(self) -> int:
        """Layers of the target that it was made for."""
        ...


class DrafterNetwork(nn.Module):
    """A network that drafts for a target. Unless it says otherwise it drafts through all of the target's head."""

    method: ClassVar[str]  # as ``train --method`` names it
    is_chained: ClassVar[bool] = False  # whether it drafts token by token, as far as it is asked to
    config: Any  # a DrafterConfig
    fc: nn.Linear  # of the features
    layers: nn.ModuleList

    def __init__(self) -> None:
        super().__init__()
        self.candidate_selector: Any = None  # what chooses among a slot's candidates by the token before them

    @abstractmethod
    def kv_shapes(self) -> list[KVShape]:
        """What each of its layers keeps of a token."""

    @abstractmethod
    def init_weights(self, generator: torch.Generator | None = None, std: float = 0.02) -> None:
        """Random weights to start training from, matrices normal(0, ``std``)."""

    def new_cache(self, batch_size: int, max_len: int) -> KVCache:
        """An empty cache for ``batch_size`` requests of ``max_len`` tokens, drafts included."""
        return KVCache(self.kv_shapes(), batch_size, max_len, self.fc.weight.dtype, self.fc.weight.device)

    @property
    def draft_vocab_size(self) -> int | None:
        """Tokens that it drafts among, or None: all."""
        return None

    def scaled(self, logits: Tensor) -> Tensor:
        """What the head's outputs mean."""
        return logits

    def head_rows(self, head: Tensor) -> Tensor:
        """What it drafts through, [num_rows, hidden_size], where the target has ``head``."""
        return head

    def head_tokens(self, rows: Tensor) -> Tensor:
        """The target's token ids of rows [...] of what it drafts through."""
        return rows


def part_of(method: str, part: str) -> Any:
    """The module that is ``part`` (a field of :class:`Kind`) of a kind."""
    return import_module(getattr(KINDS[method], part))
