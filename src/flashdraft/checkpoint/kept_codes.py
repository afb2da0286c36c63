"""Weights of a quantized checkpoint that stay in codes: which can, and a model whose linear maps hold them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flashdraft.checkpoint.weights import WeightSource
from flashdraft.errors import CheckpointError
from flashdraft.ops.quantized import CHUNK, QuantizedLinear, QuantizedWeight, packed

_SCALES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F8_E8M0": torch.float32}


@dataclass(frozen=True)
class Kept:
    """A matrix as :class:`QuantizedWeight` holds it, known from the file's header; ``read`` brings it."""

    shape: tuple[int, int]
    is_packed: bool
    num_groups: int
    scale_dtype: torch.dtype
    has_zeros: bool
    read: Callable[[torch.dtype], QuantizedWeight]

    def outline(self, dtype: torch.dtype) -> QuantizedWeight:
        """The same without values, on the meta device."""
        num_outputs, num_inputs = self.shape
        width, kind = (num_inputs // 4, torch.int16) if self.is_packed else (num_inputs, torch.float8_e4m3fn)
        codes = torch.empty(num_outputs, width, dtype=kind, device="meta")
        scales = torch.empty(self.num_groups, num_outputs, dtype=self.scale_dtype, device="meta")
        return QuantizedWeight(codes, scales, torch.empty_like(scales) if self.has_zeros else None, dtype)


def kept(
    shape: tuple[int, ...], is_packed: bool, num_groups: int, scale_type: str, has_zeros: bool,
    parts: Callable[[], tuple[Tensor, Tensor, Tensor | None]],
) -> Kept | None:  # fmt: skip
    """What ``parts`` brings: codes [num_outputs, num_inputs], scales and zeros [num_groups, num_outputs]; None where
    the kernels know no such groups, sizes or types."""
    scale_dtype = _SCALES.get(scale_type)
    if (
        len(shape) != 2
        or scale_dtype is None
        or num_groups < 1
        or shape[0] % 8
        or shape[1] % (16 * num_groups)
    ):
        return None
    if is_packed and (scale_dtype == torch.float32 or shape[1] % CHUNK):
        return None
    if num_groups > 1 and shape[1] // num_groups % CHUNK:
        return None

    def read(dtype: torch.dtype) -> QuantizedWeight:
        codes, scales, zeros = parts()
        scales = scales.to(scale_dtype).contiguous()
        zeros = None if zeros is None else zeros.to(scale_dtype).contiguous()
        return QuantizedWeight(packed(codes) if is_packed else codes.contiguous(), scales, zeros, dtype)

    return Kept((shape[0], shape[1]), is_packed, num_groups, scale_dtype, has_zeros, read)


def hold_codes(
    model: nn.Module, source: WeightSource, dtype: torch.dtype, device: torch.device | None
) -> WeightSource:
    """Linear maps of ``model`` whose weights ``source`` has in codes hold these on ``device`` (None: an outline).

    Gives the source of all that is left. Raises CheckpointError for codes and scales that are no finite numbers.
    """
    found: Mapping[str, Kept] = getattr(source, "kept", {})
    held = set()
    for name, module in list(model.named_modules()):
        one = found.get(f"{name}.weight")
        if one is None or type(module) is not nn.Linear or one.shape != tuple(module.weight.shape):
            continue
        weight = one.outline(dtype) if device is None else one.read(dtype).to(device)
        if device is not None and not weight.is_finite():
            raise CheckpointError(
                f"{source.label}: codes or scales of {name}.weight are no finite numbers: fetch it again"
            )
        model.set_submodule(name, QuantizedLinear(weight, module.bias))
        held.add(f"{name}.weight")
    return _Without(source, held)


class _Without:
    """``source`` less some of its tensors."""

    def __init__(self, source: WeightSource, names: set[str]) -> None:
        self.label, self.read = source.label, source.read
        self.shapes = {name: shape for name, shape in source.shapes.items() if name not in names}
