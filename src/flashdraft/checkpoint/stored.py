"""Matrices that stay in their checkpoint's files until they are packed."""

from functools import partial

import torch
from torch import Tensor, nn

from flashdraft.checkpoint.weights import WeightSource, Without, check_finite
from flashdraft.ops.stored import StoredLinear


def leave_in_files(model: nn.Module, source: WeightSource, dtype: torch.dtype) -> WeightSource:
    """Linear maps of the layers of ``model`` read their weights from ``source``; the source of all that is left."""
    left: set[str] = set()
    for name, module in list(model.named_modules()):
        weight = f"{name}.weight"
        if type(module) is not nn.Linear or module.bias is not None or ".layers." not in name:
            continue
        shape = module.out_features, module.in_features
        if source.shapes.get(weight) == shape:  # others are told when the model is filled
            model.set_submodule(name, StoredLinear(partial(_read, source, weight), shape, dtype))
            left.add(weight)
    return Without(source, left)


def _read(source: WeightSource, name: str, dtype: torch.dtype) -> Tensor:
    weight = source.read(name).to(dtype)
    check_finite(weight, name, source.label)
    return weight
