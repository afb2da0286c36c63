"""The fast form of a loaded network on this CPU: one C++ call a forward, with weights packed for it.

The PyTorch modules stay: they are the reference, the embedding, and what runs where the C++ part cannot.
"""

import ctypes

import torch
from torch import Tensor, nn

from flashdraft.errors import UsageError
from flashdraft.models.base import TargetModel
from flashdraft.models.dflash import DFlashLayer, DFlashModel
from flashdraft.models.llama import LlamaLayer, LlamaModel
from flashdraft.models.mlp import GatedMLP
from flashdraft.native.decoder import DrafterDecoder, TargetDecoder, why_unsupported
from flashdraft.native.drafter import NativeDrafter
from flashdraft.native.library import library
from flashdraft.native.packing import Kind
from flashdraft.native.target import NativeTarget

# How the layers are held, and the head: in 4 bits it would cost more accuracy than all layers together.
QUANTIZATIONS = {"int8": (Kind.INT8, Kind.INT8), "int4": (Kind.INT4, Kind.INT8)}


def accelerate(target: TargetModel, quantization: str | None = None) -> TargetModel:
    """The fast form of a bfloat16 ``target`` on the CPU, or itself where there is none. For frozen weights.

    ``quantization`` "int8" or "int4": the packed weights are quantized, from the type that the target has now; it is
    bfloat16 afterwards. Raises UsageError for a quantization that is unknown or cannot be had here.
    """
    lib = _library(target, quantization)
    if lib is None:
        return target
    assert isinstance(target, LlamaModel)
    own = Kind(lib.bf16_kind())
    kind, head_kind = QUANTIZATIONS[quantization] if quantization else (own, own)
    head = target.head_weight(), head_kind
    native = TargetDecoder(lib, target.model, target.rotary, target.config.head_dim, kind, head)
    return NativeTarget(target.bfloat16(), native)


def has_fast_form(outline: TargetModel) -> bool:
    """Whether :func:`accelerate` makes a bfloat16 target of these shapes, on the meta device too, one C++ call here."""
    return _why_unknown(outline) is None and library() is not None


def accelerate_drafter(
    model: DFlashModel, head: Tensor, quantization: str | None = None
) -> NativeDrafter | None:
    """The fast form of a drafter's network, which drafts through ``head`` [rows, hidden_size], or None.

    It is held in 8 bits at most, in 7 where those are faster, unless the CPU has matrix units: that can cost
    acceptance and nothing else. The rest as for :func:`accelerate`.
    """
    lib = _library(model, quantization)
    if lib is None:
        return None
    kind, head_kind = QUANTIZATIONS[quantization or "int8"]
    if quantization is None:  # of a dozen rows and more matrix units are quicker in bfloat16
        kind = head_kind = Kind.BF16 if lib.matrix_units() else Kind(lib.byte_kind())
    native = DrafterDecoder(lib, model, model.rotary, model.config.head_dim, kind, (head, head_kind))
    return NativeDrafter(model.bfloat16(), native)


def _library(model: nn.Module, quantization: str | None) -> ctypes.CDLL | None:
    """What runs ``model``; None where nothing does. Raises UsageError where a ``quantization`` needs it."""
    if quantization is not None and quantization not in QUANTIZATIONS:
        raise UsageError(f"quantization is {quantization!r}; expected {' or '.join(QUANTIZATIONS)}")
    reason = _why_not(model, quantization)
    lib = None if reason else library()
    if lib is None and quantization is not None:
        reason = reason or "it is not available on this machine"
        raise UsageError(f"quantization {quantization} needs the fast CPU path, but {reason}: leave it out")
    return lib


def _why_not(model: nn.Module, quantization: str | None) -> str | None:
    """None, or why the C++ part cannot run ``model``."""
    weight = next(model.parameters())
    if weight.device.type != "cpu":
        return f"the model is on {weight.device}"
    if quantization is None and weight.dtype != torch.bfloat16:
        return f"the model is {weight.dtype}"
    return _why_unknown(model)


def _why_unknown(model: nn.Module) -> str | None:
    """The same of its layers alone."""
    if not isinstance(model, LlamaModel | DFlashModel):
        return f"it does not know {type(model).__name__}"
    layers = list((model.model if isinstance(model, LlamaModel) else model).layers)
    if not all(type(layer) in (LlamaLayer, DFlashLayer) for layer in layers):  # a subclass may compute more
        return f"it does not know layers as {type(model).__name__} has them"
    if not all(isinstance(layer.mlp, GatedMLP) for layer in layers):
        return "it does not know layers of experts"
    if isinstance(model, DFlashModel) and model.config.scales_logits:
        return "it does not know drafters that multiply or cap their logits"
    return why_unsupported(layers, model.config.head_dim)
