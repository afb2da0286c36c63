"""Products of one input as one product: their weights lie one after the other, and the modules' own are views of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Product:
    """A linear map: ``weight`` [num_outputs, num_inputs], ``bias`` [num_outputs] or None."""

    weight: Tensor
    bias: Tensor | None = None

    @classmethod
    def of(cls, modules: Sequence[nn.Linear]) -> "Product":
        """All of ``modules``, outputs in their order. Their parameters become views, so that no weight exists twice."""
        if len(modules) == 1:
            bias = modules[0].bias
            return cls(modules[0].weight.detach(), None if bias is None else bias.detach())
        sizes = [len(module.weight) for module in modules]
        weight = _one_piece([module.weight.detach() for module in modules])
        for module, part in zip(modules, torch.split(weight, sizes), strict=True):
            module.weight = nn.Parameter(part, requires_grad=False)
        biases = [module.bias for module in modules]
        if all(bias is None for bias in biases):
            return cls(weight)
        zeros = [weight.new_zeros(size) for size in sizes]
        return cls(
            weight,
            torch.cat(
                [zero if bias is None else bias.detach() for bias, zero in zip(biases, zeros, strict=True)]
            ),
        )


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
