"""Checkpoints quantized as the libraries do that people use, and what those libraries dequantize them to.

compressed-tensors packs and unpacks by its own code, block FP8 is unpacked by transformers'. AutoAWQ and GPTQ need a
GPU or a build, so their layouts are written out: awq/modules/linear/gemm.py (0.2.9), gptqmodel's TorchQuantLinear.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

Packed = tuple[dict[str, Tensor], Tensor]  # the stored parts by their names' ends, and the dequantized matrix
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def quantize_folder(folder: Path, kind: str, size: int = 16) -> dict[str, Tensor]:
    """Quantize the matrices of every layer in place, in groups of ``size``; all tensors as the libraries dequantize."""
    state = load_file(folder / "model.safetensors")
    stored, whole = {}, {}
    for name, tensor in state.items():
        if tensor.dim() != 2 or ".layers." not in name or name.endswith(".gate.weight"):
            stored[name] = whole[name] = tensor
            continue
        parts, whole[name] = PACKERS[kind](tensor, size)
        module = name.removesuffix(".weight")
        stored |= {f"{module}.{end}": part.contiguous() for end, part in parts.items()}
    stored["model.layers.0.self_attn.k_proj.k_scale"] = torch.ones(1)  # of a cache that is not kept so here
    save_file(stored, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": _sized(CONFIGS[kind], size)})
    )
    return whole


def _sized(told: dict[str, Any], size: int) -> dict[str, Any]:
    """A config's groups and blocks of 16, of ``size``."""
    sized = {"group_size": size, "weight_block_size": [size, size]}
    return {
        key: _sized(value, size) if isinstance(value, dict) else sized.get(key, value) if value else value
        for key, value in told.items()
    }


def block_fp8(weight: Tensor, size: int = 16) -> Packed:
    """Qwen's own -FP8 and DeepSeek's: a scale for 16 x 16 here, for 128 x 128 there."""
    rows, columns = weight.shape
    blocks = weight.reshape(rows // size, size, columns // size, size)
    scale = (blocks.abs().amax((1, 3)) / 448).bfloat16()
    codes = (blocks / scale.float()[:, None, :, None]).reshape(rows, columns).to(torch.float8_e4m3fn)
    dequantized = Fp8Dequantize(None)._dequantize_one(codes, scale, torch.float32)
    return {"weight": codes, "weight_scale_inv": scale}, dequantized


def compressed(**told: Any) -> Any:
    """compressed-tensors of the arguments ``told``, by its own compressor and decompressor."""
    form = told.pop("format")

    def pack(weight: Tensor, size: int = 16) -> Packed:
        in_groups = {"group_size": size} if told.get("group_size") == 16 else {}
        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**{**told, **in_groups}))
        size = in_groups.get("group_size") or told.get("group_size") or weight.shape[1]
        groups = weight.unflatten(1, (-1, size))
        state = {"weight": weight}
        if not told["symmetric"]:
            low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
            state["weight_scale"] = ((high - low) / (2 ** told["num_bits"] - 1)).bfloat16()
            zero = -(2 ** (told["num_bits"] - 1)) - (low / state["weight_scale"].float()).round()
            state["weight_zero_point"] = zero.to(torch.int8)
        else:
            largest = {"fp8": 448.0, "fp4": 6.0}.get(f"{told['type'][:1]}p{told['num_bits']}", 0)
            state["weight_scale"] = (
                groups.abs().amax(-1) / (largest or 2 ** (told["num_bits"] - 1) - 1)
            ).bfloat16()
            if form == "mxfp4-pack-quantized":
                state["weight_scale"] = state["weight_scale"].float().log2().ceil().exp2().bfloat16()
        compressor = BaseCompressor.get_value_from_registry(form)
        parts = compressor.compress(state, scheme)
        return parts, compressor.decompress(parts, scheme)["weight"].float()

    return pack


def awq(weight: Tensor, size: int = 16) -> Packed:
    """AutoAWQ's gemm layout: asymmetric, groups of 16 columns here."""
    scales, zeros, codes = asymmetric(weight, size, 15)
    values = (codes - zeros.repeat_interleave(size, 0)) * scales.repeat_interleave(size, 0)
    parts = {"qweight": in_words(codes, AWQ_ORDER), "qzeros": in_words(zeros, AWQ_ORDER), "scales": scales}
    return parts, values.T.float()


def gptq(
    weight: Tensor, size: int = 16, bits: int = 4, zero_offset: int = 1, is_sorted: bool = True
) -> Packed:
    """GPTQ's layout, with the columns in an order of their own (desc_act) where ``is_sorted``."""
    turned = (lambda x, dim: x.flip(dim)) if is_sorted else (lambda x, _: x)
    scales, zeros, codes = asymmetric(turned(weight, 1), size, 2**bits - 1)
    zeros, codes = zeros.clamp(min=1), turned(codes, 0)
    order = turned(torch.arange(weight.shape[1]), 0) // size
    values = (codes - zeros[order]) * scales[order]
    plain = tuple(range(32 // bits))
    parts = {
        "qweight": in_words(codes.T, plain, bits).T,
        "qzeros": in_words(zeros - zero_offset, plain, bits),
        "scales": scales,
        "g_idx": order.int(),
    }
    return parts, values.T.float()


def asymmetric(weight: Tensor, size: int, largest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scales and zero points [groups, rows], codes [columns, rows]."""
    groups = weight.float().T.unflatten(0, (-1, size))
    low, high = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
    scales = ((high - low) / largest).half()
    zeros = (-low / scales).round().int()
    codes = (groups / scales.unsqueeze(1) + zeros.unsqueeze(1)).round().clamp(0, largest).int().flatten(0, 1)
    return scales, zeros, codes


def in_words(codes: Tensor, order: tuple[int, ...], bits: int = 4) -> Tensor:
    """Codes [n, m] in int32 words; ``order``: which of a word's codes lies lowest, and so on."""
    words = torch.zeros(codes.shape[0], codes.shape[1] * bits // 32, dtype=torch.int32)
    for place, code in enumerate(order):
        words |= codes[:, code :: len(order)].int() << (bits * place)
    return words


def _group(**weights: Any) -> dict[str, Any]:
    return {
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "quant_method": "compressed-tensors",
    }


_FP8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
_W4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16, "symmetric": True}
_W8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
_INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
_MXFP4 = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "symmetric": True}
_FORMS = {
    "fp8-dynamic": (_FP8, "float-quantized"),
    "w4a16": (_W4, "pack-quantized"),
    "w4a16-asymmetric": ({**_W4, "symmetric": False}, "pack-quantized"),
    "w8a16": (_W8, "pack-quantized"),
    "w8a8": (_INT8, "int-quantized"),
    "mxfp4": (_MXFP4, "mxfp4-pack-quantized"),
}
PACKERS = {
    "block-fp8": block_fp8,
    "awq": awq,
    "gptq": gptq,
    "gptq-8-bits": partial(gptq, bits=8),
    "gptq-v2": partial(gptq, zero_offset=0),
    "gptq-in-order": partial(gptq, is_sorted=False),
    **{kind: compressed(format=form, **told) for kind, (told, form) in _FORMS.items()},
}
CONFIGS: dict[str, Any] = {
    "block-fp8": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [16, 16],
    },
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm", "zero_point": True},
    "gptq": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 16,
        "desc_act": True,
        "checkpoint_format": "gptq",
    },
    "gptq-8-bits": {"quant_method": "gptq", "bits": 8, "group_size": 16},
    "gptq-v2": {"quant_method": "gptq", "bits": 4, "group_size": 16, "checkpoint_format": "gptq_v2"},
    "gptq-in-order": {"quant_method": "gptq", "bits": 4, "group_size": 16},
    **{kind: {**_group(**told), "format": form} for kind, (told, form) in _FORMS.items()},
}
