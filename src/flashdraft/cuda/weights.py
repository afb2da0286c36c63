"""Products of one input as one product: their weights lie one after the other, and the modules' own are views of it."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from flashdraft.ops.device_memory import give_back_kept
from flashdraft.ops.quantized import QuantizedWeight, joined, kind_of

Weight = Tensor | QuantizedWeight


@dataclass(frozen=True)
class Product:
    """A linear map: ``weights`` [num_outputs, num_inputs] each, outputs one after the other; ``bias`` of all or None.

    There are several weights only where some are kept otherwise than the others.
    """

    weights: tuple[Weight, ...]
    bias: Tensor | None = None

    @property
    def num_outputs(self) -> int:
        """Of all weights."""
        return sum(len(weight) for weight in self.weights)

    @property
    def num_inputs(self) -> int:
        """Of each weight."""
        return int(self.weights[0].shape[1])

    @classmethod
    def of(cls, modules: Sequence[Any]) -> "Product":
        """All of ``modules``, linear maps, outputs in their order. Their weights become views: none exists twice."""
        runs = [list(run) for _, run in groupby(modules, key=lambda module: _kind(module.weight))]
        biases = [module.bias for module in modules]
        bias = None
        if any(one is not None for one in biases):
            like = next(one for one in biases if one is not None)
            bias = torch.cat(
                [
                    like.new_zeros(len(module.weight)) if one is None else one.detach()
                    for one, module in zip(biases, modules, strict=True)
                ]
            )
        weights = []
        for run in runs:
            weights.append(_together(run))
            if len(run) > 1:  # what it was made of is gone
                give_back_kept()
        return cls(tuple(weights), bias)

    def last(self, num_outputs: int) -> "Product":
        """The last outputs alone."""
        weights: list[Weight] = []
        left = num_outputs
        for weight in reversed(self.weights):
            taken = min(left, len(weight))
            if taken:
                weights.insert(0, weight[len(weight) - taken :])
            left -= taken
        return Product(tuple(weights), None if self.bias is None else self.bias[-num_outputs:])


def _kind(weight: Weight) -> Hashable:
    """Weights of one kind can lie in one piece."""
    return kind_of(weight) if isinstance(weight, QuantizedWeight) else weight.dtype


def _together(modules: Sequence[Any]) -> Weight:
    """The weights of ``modules``, of one kind, in one piece of which the modules' own become views."""
    weights = [module.weight for module in modules]
    if isinstance(weights[0], QuantizedWeight):
        whole, at = joined(weights), 0
        for module in modules:
            module.weight, at = whole[at : at + len(module.weight)], at + len(module.weight)
        return whole
    weight = weights[0].detach() if len(weights) == 1 else _one_piece([one.detach() for one in weights])
    for module, part in zip(modules, torch.split(weight, [len(one) for one in weights]), strict=True):
        module.weight = nn.Parameter(part, requires_grad=False)
    return weight


def _one_piece(parts: Sequence[Tensor]) -> Tensor:
    """``parts`` [.., num_inputs] one after the other; where they lie so already, themselves."""
    first, size = parts[0], sum(part.numel() for part in parts)
    ends = [part.data_ptr() + part.nbytes for part in parts]
    storage = first.untyped_storage()
    follow = all(end == part.data_ptr() for end, part in zip(ends, parts[1:], strict=False))
    if follow and all(part.untyped_storage().data_ptr() == storage.data_ptr() for part in parts):
        rows = size // first.shape[1]
        return first.as_strided((rows, first.shape[1]), (first.shape[1], 1))
    return torch.cat(list(parts))


def apart(x: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """``x`` with dimension ``dim`` taken apart into ``sizes``, of which one may be -1."""
    split: Tensor = x.unflatten(dim, sizes)  # type: ignore[no-untyped-call]
    return split


def heads_of(x: Tensor, head_dim: int) -> Tensor:
    """[num_tokens, heads * head_dim] -> [num_tokens, heads, head_dim]."""
    return apart(x, 1, (-1, head_dim))
