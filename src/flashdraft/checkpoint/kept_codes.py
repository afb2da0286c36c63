"""Weights of a quantized checkpoint that stay in codes: which can, and a model whose linear maps hold them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashdraft.checkpoint.weights import WeightSource, Without
from flashdraft.errors import CheckpointError
from flashdraft.models.mlp import Experts, SparseMLP
from flashdraft.ops.device_memory import give_back_kept
from flashdraft.ops.quantized import (
    CHUNK,
    FLOAT4_GROUP,
    UNIT,
    QuantizedLinear,
    QuantizedWeight,
    arranged,
    joined,
    packed,
)

_SCALES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F8_E8M0": torch.float32}
_SMALL = 1 << 21  # elements of a matrix that a GPU reads as floats in less time than it launches a kernel


@dataclass(frozen=True)
class Kept:
    """A matrix as :class:`QuantizedWeight` holds it, known from the file's header; ``read`` brings it."""

    shape: tuple[int, int]
    is_packed: bool
    num_groups: int
    scale_dtype: torch.dtype  # in which codes and scales are multiplied
    stored_dtype: torch.dtype  # of the file's scales
    has_zeros: bool
    read: Callable[[torch.dtype], QuantizedWeight]
    padding: int = 0  # inputs behind those of ``shape``
    is_float4: bool = False

    def held_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """What scales count as in a weight of ``dtype``.

        The product of a float8 and a bfloat16 is exact in float32, so that a bfloat16 weight has the same bits with
        either. Kernels need half the instructions for bfloat16.
        """
        is_exact = not self.is_packed and self.stored_dtype == dtype == torch.bfloat16
        return torch.bfloat16 if is_exact else self.scale_dtype

    def outline(self, dtype: torch.dtype) -> QuantizedWeight:
        """The same without values, on the meta device."""
        num_outputs, num_inputs = self.shape[0], self.shape[1] + self.padding
        width, kind = (num_inputs // 4, torch.int16) if self.is_packed else (num_inputs, torch.uint8)
        codes = torch.empty(num_outputs, width, dtype=kind, device="meta")
        stored = torch.uint8 if self.is_float4 else torch.float32
        scales = torch.empty(self.num_groups, num_outputs, dtype=stored, device="meta")
        zeros = torch.empty_like(scales) if self.has_zeros else None
        return QuantizedWeight(codes, scales, zeros, dtype, self.held_dtype(dtype), self.padding)


def kept(
    shape: tuple[int, ...], is_packed: bool, num_groups: int, scale_type: str, has_zeros: bool,
    parts: Callable[[], tuple[Tensor, Tensor, Tensor | None]], stored_type: str | None = None,
) -> Kept | None:  # fmt: skip
    """What ``parts`` brings: codes [num_outputs, num_inputs], scales and zeros [num_groups, num_outputs].

    ``scale_type``: in which they are multiplied; ``stored_type``: of the file's scales where that is another.
    ``shape`` [..., num_inputs]: outputs may be several matrices'. None where kernels know no such groups, sizes, types.
    """
    scale_dtype, stored_dtype = _SCALES.get(scale_type), _SCALES.get(stored_type or scale_type)
    num_outputs, num_inputs = math.prod(shape[:-1]), shape[-1]
    if (
        scale_dtype is None
        or stored_dtype is None
        or num_groups < 1
        or num_inputs % num_groups
        or num_inputs % UNIT
    ):
        return None
    if is_packed and (scale_dtype == torch.float32 or num_inputs % CHUNK):
        return None
    if num_groups > 1 and num_inputs // num_groups % CHUNK:
        return None

    def read(dtype: torch.dtype) -> QuantizedWeight:
        codes, scales, zeros = parts()
        scales = scales.to(scale_dtype).float().contiguous()
        zeros = None if zeros is None else zeros.float().contiguous()
        codes = packed(codes) if is_packed else arranged(codes)
        return QuantizedWeight(codes, scales, zeros, dtype, made.held_dtype(dtype))

    made = Kept((num_outputs, num_inputs), is_packed, num_groups, scale_dtype, stored_dtype, has_zeros, read)
    return made


def kept_float4(
    shape: tuple[int, int, int], parts: Callable[[], Iterator[tuple[Tensor, Tensor]]]
) -> Kept | None:
    """MXFP4 experts of ``shape`` [num_experts, num_outputs, num_inputs].

    ``parts`` brings one after the other: codes [num_outputs, num_inputs], and exponents of 2 biased by 127
    [num_outputs, num_inputs / FLOAT4_GROUP]. None where there are no inputs.
    """
    num_experts, num_outputs, num_inputs = shape
    padding = -num_inputs % CHUNK
    num_groups = (num_inputs + padding) // FLOAT4_GROUP
    if not num_groups:
        return None

    def read(dtype: torch.dtype) -> QuantizedWeight:
        words = torch.empty(num_experts * num_outputs, (num_inputs + padding) // 4, dtype=torch.int16)
        scales = torch.empty(num_groups, len(words), dtype=torch.uint8)
        for expert, (codes, exponents) in enumerate(parts()):
            rows = slice(expert * num_outputs, (expert + 1) * num_outputs)
            words[rows] = packed(F.pad(codes, (0, padding)))
            scales[:, rows] = F.pad(exponents, (0, padding // FLOAT4_GROUP)).T
        return QuantizedWeight(words, scales, None, dtype, torch.float32, padding)

    held = num_experts * num_outputs, num_inputs
    return Kept(held, True, num_groups, torch.float32, torch.float32, False, read, padding, is_float4=True)


def stacked(parts: Sequence[Kept]) -> Kept | None:
    """The outputs of ``parts`` one after the other, or None where they are kept in different ways."""
    first = parts[0]
    kinds = {
        (one.shape[1], one.is_float4, one.is_packed, one.num_groups, one.scale_dtype, one.has_zeros)
        for one in parts
    }
    if len(kinds) > 1 or len({one.stored_dtype for one in parts}) > 1:
        return None

    def read(dtype: torch.dtype) -> QuantizedWeight:
        return joined([one.read(dtype) for one in parts])

    return replace(first, shape=(sum(one.shape[0] for one in parts), first.shape[1]), read=read)


def small_shared(model: nn.Module) -> set[nn.Module]:
    """Linear maps of ``model``'s shared experts that are not worth codes.

    As floats, gates and ups are one product with the router.
    """
    shared = [one.shared_expert for one in model.modules() if isinstance(one, SparseMLP)]
    maps = (one for each in shared if each is not None for one in each.modules() if type(one) is nn.Linear)
    return {one for one in maps if one.weight.numel() <= _SMALL}


def hold_codes(
    model: nn.Module, source: WeightSource, dtype: torch.dtype, device: torch.device | None
) -> WeightSource:
    """Linear maps and experts of ``model`` whose weights ``source`` has in codes hold these on ``device``.

    But those of :func:`small_shared`. ``device`` None: an outline. Gives the source of all that is left. Raises
    CheckpointError for codes and scales that are no finite numbers.
    """
    found: Mapping[str, Kept] = getattr(source, "kept", {})
    held, small = set(), small_shared(model)

    def read(name: str, for_linear: bool = False) -> QuantizedWeight:
        held.add(name)
        weight = found[name].outline(dtype) if device is None else found[name].read(dtype)
        weight = weight.in_tiles() if for_linear else weight
        if device is None:
            return weight.in_pairs() if for_linear else weight
        weight = weight.to(device)
        if not weight.is_finite():
            raise CheckpointError(
                f"{source.label}: codes or scales of {name} are no finite numbers, or too large: fetch it again"
            )
        give_back_kept()  # what this took for a moment
        weight = weight.for_kernels()
        return weight.in_pairs() if for_linear else weight

    for name, module in list(model.named_modules()):
        if module in small:
            continue
        if type(module) is nn.Linear and _fits(found.get(f"{name}.weight"), tuple(module.weight.shape)):
            model.set_submodule(name, QuantizedLinear(read(f"{name}.weight", for_linear=True), module.bias))
        elif isinstance(module, Experts):
            parts = [f"{name}.{part}_proj" for part in ("gate_up", "down")]
            if all(_fits(found.get(part), one) for part, one in zip(parts, module.shapes(), strict=True)):
                model.set_submodule(name, module.in_codes(*(read(part) for part in parts)))
    return Without(source, held)


def _fits(one: Kept | None, shape: tuple[int, ...]) -> bool:
    return one is not None and one.shape == shape
