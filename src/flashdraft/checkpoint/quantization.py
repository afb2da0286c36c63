"""How a checkpoint says that its weights are quantized, and whether that is one of the ways that are read here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flashdraft.checkpoint.untrusted import read_object
from flashdraft.errors import CheckpointError

_COMPRESSED = (
    "float-quantized",
    "naive-quantized",
    "int-quantized",
    "pack-quantized",
    "mxfp4-pack-quantized",
    "dense",
)
# torchao's kinds with a code and a scale; activations are not rounded here.
_TORCHAO = (
    "Int8WeightOnlyConfig",
    "Float8WeightOnlyConfig",
    "Int8DynamicActivationInt8WeightConfig",
    "Float8DynamicActivationFloat8WeightConfig",
)
_NOT_SERVED = ("mlx", "exl3", "unknown")  # neither by vLLM 0.33 nor by SGLang 0.5.23
_READ = "FP8, compressed-tensors with 4 or 8 bits, AWQ, GPTQ, MXFP4 or torchao with 8 bits"


@dataclass(frozen=True)
class Quantization:
    """What ``quantization_config`` says, as far as the tensors do not say it themselves."""

    method: str
    block: tuple[int, int] | None = None  # rows and columns that share a scale, where blocks do
    group_size: int | None = None  # columns that share a scale, where groups do
    stored_zero_offset: int = 0  # what GPTQ's first format leaves out of each zero point
    bits: int = 4  # of a GPTQ code
    dtype: torch.dtype | None = None  # what torchao rounds dequantized weights to


def read_quantization(raw: dict[str, Any], folder: Path) -> Quantization | None:
    """What a target's or drafter's config.json says of its weights; None for floats.

    Raises CheckpointError for a way that is not read here: NVFP4, bitsandbytes, EXL3, MLX and so on.
    """
    told = raw.get("quantization_config") or raw.get("compression_config")
    told = told or (raw.get("text_config") or {}).get("quantization_config")
    if not told and (folder / "hf_quant_config.json").is_file():  # modelopt's own file, of older checkpoints
        told = {
            "quant_method": "modelopt",
            **(read_object(folder / "hf_quant_config.json").get("quantization") or {}),
        }
    if not told:
        return None
    is_mlx = "quant_method" not in told and {"group_size", "bits"} <= told.keys()
    method = "mlx" if is_mlx else str(told.get("quant_method", "unknown")).lower()
    algorithm, form = told.get("quant_algo"), told.get("format")
    groups = [group.get("weights") or {} for group in (told.get("config_groups") or {}).values()]
    sizes = [group.get("group_size") for group in groups if group.get("group_size")]
    blocks = [group.get("block_structure") for group in groups if group.get("block_structure")]
    bits = told.get("bits", told.get("w_bit", 4))
    packing = str(told.get("packing_format", "")).lower()
    if method == "fp8":
        return Quantization("scaled", block=_block(told.get("weight_block_size")))
    if method == "mxfp4":
        return Quantization("experts_mxfp4")
    if method == "modelopt" and algorithm in (None, "FP8"):
        return Quantization("scaled")
    if method == "compressed-tensors" and form in (*_COMPRESSED, None) and "W4A8" not in str(form):
        block = _block(blocks[0]) if blocks else None
        if form == "mxfp4-pack-quantized":
            return Quantization("mxfp4", group_size=32)
        return Quantization(
            "packed" if form == "pack-quantized" else "scaled", block, sizes[0] if sizes else None
        )
    if (method == "awq" and told.get("version", "gemm").lower() == "gemm" and bits == 4) or (
        method == "auto-round" and packing.endswith("awq")
    ):
        return Quantization("awq")
    if bits in (2, 4, 8) and (method == "gptq" or (method == "auto-round" and packing.endswith("gptq"))):
        is_v2 = told.get("checkpoint_format") == "gptq_v2"
        return Quantization("gptq", stored_zero_offset=0 if is_v2 else 1, bits=bits)
    kind = _torchao_kind(told)
    if method == "torchao" and kind in _TORCHAO:
        return Quantization("torchao", dtype=_own_dtype(raw))
    names = (method, algorithm, form or packing or kind or None, told.get("version"))
    name = ", ".join(str(one) for one in names if one)
    others = (
        "" if method in _NOT_SERVED else "vLLM and SGLang serve others as they are (flashdraft launch), or "
    )
    raise CheckpointError(
        f"{folder} is quantized ({name}); expected float weights, {_READ}: {others}give the original model"
    )


def _torchao_kind(told: dict[str, Any]) -> str:
    """The name of a torchao configuration: in transformers' nesting of it, or as a text."""
    kind = told.get("quant_type") or ""
    return str((kind.get("default") or {}).get("_type") if isinstance(kind, dict) else kind)


def _own_dtype(raw: dict[str, Any]) -> torch.dtype | None:
    """The type that a config says its float weights have."""
    for config in (raw, raw.get("text_config") or {}):
        for key in ("dtype", "torch_dtype"):
            if isinstance(found := getattr(torch, str(config.get(key)), None), torch.dtype):
                return found
    return None


def _block(sizes: Any) -> tuple[int, int] | None:
    if not sizes:
        return None
    rows, columns = sizes
    if not (isinstance(rows, int) and isinstance(columns, int) and rows > 0 and columns > 0):
        raise CheckpointError(
            f"a scale is said to be for a block of {str(sizes)[:100]}; expected two numbers of 1 or more"
        )
    return rows, columns
