"""Gives a loaded model its fast form on this CPU: one C++ call a forward (native/), with weights packed for it.

The PyTorch modules stay: they are the reference, the embedding, and what runs where the C++ part cannot.
"""

import torch
from torch import Tensor, nn

from flashdraft.errors import UsageError
from flashdraft.models.dflash import DFlashLayer, DFlashModel
from flashdraft.models.llama import LlamaLayer, LlamaModel
from flashdraft.models.mlp import GatedMLP
from flashdraft.native.decoder import NativeDrafter, NativeTarget, why_unsupported
from flashdraft.native.library import library
from flashdraft.native.packing import Kind

# How the layers are held, and the head: in 4 bits it would cost more accuracy than all layers together.
QUANTIZATIONS = {"int8": (Kind.INT8, Kind.INT8), "int4": (Kind.INT4, Kind.INT8)}


def accelerate(model: nn.Module, quantization: str | None = None, head: Tensor | None = None) -> bool:
    """Attach the fast form to a bfloat16 ``model`` on the CPU; True when it has one now. For frozen weights.

    ``quantization`` "int8" or "int4": the packed weights are quantized, from the type that the model has now; the
    model is bfloat16 afterwards. ``head``: [rows, hidden_size], what a drafter drafts through. A drafter is held in
    8 bits at most, unless the CPU has matrix units: that can cost acceptance and nothing else.
    Raises UsageError for a quantization that is unknown or cannot be had here.
    """
    if quantization is not None and quantization not in QUANTIZATIONS:
        raise UsageError(f"quantization is {quantization!r}; expected {' or '.join(QUANTIZATIONS)}")
    reason = _attach(model, quantization, head)
    if reason is None:
        return True
    if quantization is not None:
        raise UsageError(f"quantization {quantization} needs the fast CPU path, but {reason}: leave it out")
    return False


def _attach(model: nn.Module, quantization: str | None, head: Tensor | None) -> str | None:
    """None, or why it cannot be."""
    weight = next(model.parameters())
    if weight.device.type != "cpu":
        return f"the model is on {weight.device}"
    if quantization is None and weight.dtype != torch.bfloat16:
        return f"the model is {weight.dtype}"
    if not isinstance(model, LlamaModel | DFlashModel):
        return f"it does not know {type(model).__name__}"
    stack = model.model if isinstance(model, LlamaModel) else model
    if not all(isinstance(layer, LlamaLayer | DFlashLayer) for layer in stack.layers):
        return f"it does not know layers as {type(model).__name__} has them"
    if not all(isinstance(layer.mlp, GatedMLP) for layer in stack.layers):
        return "it does not know layers of experts"
    if isinstance(model, DFlashModel) and model.config.scales_logits:
        return "it does not know drafters that multiply or cap their logits"
    if reason := why_unsupported(stack.layers, model.config.head_dim):
        return reason
    lib = library()
    if lib is None:
        return "it is not available on this machine"
    if isinstance(model, LlamaModel):
        kind, head_kind = QUANTIZATIONS[quantization] if quantization else (Kind.BF16, Kind.BF16)
        its_head = model.head_weight(), head_kind
        model.native = NativeTarget(lib, model.model, model.rotary, model.config.head_dim, kind, its_head)
    else:
        assert head is not None, "a drafter drafts through a head"
        kind, head_kind = QUANTIZATIONS[quantization or "int8"]
        if (
            quantization is None and lib.matrix_units()
        ):  # of a dozen rows and more they are quicker in bfloat16
            kind = head_kind = Kind.BF16
        its_head = head, head_kind
        model.native = NativeDrafter(lib, model, model.rotary, model.config.head_dim, kind, its_head)
    model.bfloat16()
    return None
