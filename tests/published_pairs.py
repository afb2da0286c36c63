"""Every public drafter of autumn 2026 that is known to us, in its published config, and what becomes of it here.

    python tests/published_pairs.py        # prints the table of docs/guides/models.md

Sizes are tiny; the fields are those of the published files, which decide what is run, handed over or refused.
"""

import json
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from flashdraft.checkpoint.load import check_pair
from flashdraft.errors import FlashdraftError
from flashdraft.export.config import LaunchConfig
from flashdraft.export.launch import read_pair
from flashdraft.export.sglang import sglang_command
from flashdraft.export.vllm import vllm_command
from gguf_files import add_field

Config = dict[str, Any]

SIZES: Config = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 97,
    "max_position_embeddings": 512,
}
DELTA: Config = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "full_attention_interval": 2,
}
EXPERTS: Config = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
BLOCK_FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
W4A16 = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}}
TORCHAO_INT4 = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}}
MLX = {"group_size": 64, "bits": 4}
INT4 = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "packing_format": "auto_round:auto_gptq"}


@dataclass(frozen=True)
class Header:
    """A GGUF file of these fields, without tensors: what a config tells of other checkpoints."""

    architecture: str
    fields: Mapping[str, Any]

    def write(self, path: Path) -> Path:
        """Write it, by gguf's own writer."""
        writer = gguf.GGUFWriter(path, self.architecture)
        for key, value in self.fields.items():
            add_field(writer, key, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def gguf_fields(architecture: str, **more: Any) -> dict[str, Any]:
    """The fields that every language model's file has."""
    told = {
        "context_length": SIZES["max_position_embeddings"],
        "embedding_length": SIZES["hidden_size"],
        "feed_forward_length": SIZES["intermediate_size"],
        "block_count": SIZES["num_hidden_layers"],
        "attention.head_count": SIZES["num_attention_heads"],
        "attention.head_count_kv": SIZES["num_key_value_heads"],
        "attention.key_length": SIZES["head_dim"],
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1e7,
        "vocab_size": SIZES["vocab_size"],
        **more,
    }
    return {f"{architecture}.{key}": value for key, value in told.items()}


def gguf_target(architecture: str) -> Header:
    """Qwen3.5's, as llama.cpp converts it."""
    delta = {
        "full_attention_interval": 2,
        "ssm.conv_kernel": 4,
        "ssm.state_size": 16,
        "ssm.group_count": 2,
        "ssm.time_step_rank": 4,
        "ssm.inner_size": 64,
        "rope.dimension_count": 4,
    }
    experts = {
        "expert_count": 4,
        "expert_used_count": 2,
        "expert_feed_forward_length": 32,
        "expert_shared_feed_forward_length": 32,
    }
    more = delta | (experts if architecture.endswith("moe") else {})
    return Header(architecture, gguf_fields(architecture, **more))


GGUF_DFLASH2 = {"conv_kernel_size": 4, "conv_group_size": 64, "selector_rank": 8, "selector_top_k": 4}


def gguf_drafter(architecture: str, **more: Any) -> Header:
    """A DFlash drafter, as llama.cpp converts it."""
    told = gguf_fields(architecture, block_size=16, target_layers=[2, 3], **more)
    return Header(architecture, told | {"tokenizer.ggml.mask_token_id": 90})


def flat(kind: str, architecture: str, **more: Any) -> Config:
    """A target whose config is its language model's."""
    return {**SIZES, "model_type": kind, "architectures": [architecture], **more}


def nested(kind: str, architecture: str, **more: Any) -> Config:
    """A target with a vision tower."""
    text = {**SIZES, "model_type": f"{kind}_text", **more.pop("text", {})}
    return {"model_type": kind, "architectures": [architecture], "text_config": text, **more}


GEMMA4: Config = {
    "global_head_dim": 32,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
    "final_logit_softcapping": 30.0,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
QWEN3 = flat("qwen3", "Qwen3ForCausalLM")
QWEN3_MOE = flat("qwen3_moe", "Qwen3MoeForCausalLM", **EXPERTS)
QWEN3_5 = nested("qwen3_5", "Qwen3_5ForConditionalGeneration", text=DELTA)
SHARED = {"shared_expert_intermediate_size": 32}
QWEN3_5_MOE = nested("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", text={**DELTA, **EXPERTS, **SHARED})
TARGETS: Mapping[str, Config | Header] = {
    "Qwen3-4B, 8B": QWEN3,
    "Qwen3-8B-FP8": QWEN3 | {"quantization_config": BLOCK_FP8},
    "Qwen3-30B-A3B": QWEN3_MOE,
    "Qwen3-Coder-30B-A3B": QWEN3_MOE | {"shared_expert_intermediate_size": 0},
    "Qwen3-Coder-Next": flat("qwen3_next", "Qwen3NextForCausalLM", **DELTA, **EXPERTS, **SHARED),
    "Qwen3.5-4B, 9B, 27B; Qwen3.6-27B": QWEN3_5,
    "Qwen3.8-27B": QWEN3_5,
    "Qwen3.6-27B-NVFP4": QWEN3_5 | {"quantization_config": NVFP4},
    "Qwen3.5-122B-A10B-NVFP4": QWEN3_5_MOE | {"quantization_config": NVFP4},
    "Qwen3.6-27B-FP8": QWEN3_5 | {"quantization_config": BLOCK_FP8},
    "Qwen3.6-27B AWQ": QWEN3_5 | {"quantization_config": AWQ},
    "Qwen3.6-27B w4a16 (llm-compressor)": QWEN3_5 | {"quantization_config": W4A16},
    "Qwen3.6-27B int4 (torchao)": QWEN3_5 | {"quantization_config": TORCHAO_INT4},
    "Qwen3.6-27B 4bit (MLX)": QWEN3_5 | {"quantization_config": MLX, "quantization": MLX},
    "Qwen3.6-27B GGUF": gguf_target("qwen35"),
    "Qwen3.6-35B-A3B GGUF": gguf_target("qwen35moe"),
    "Qwen3.6-27B int4 (AutoRound)": QWEN3_5 | {"quantization_config": INT4},
    "Qwen3.5-35B-A3B, 122B-A10B, 397B-A17B; Qwen3.6-35B-A3B": QWEN3_5_MOE,
    "Qwen3.5-35B-A3B-FP8": QWEN3_5_MOE | {"quantization_config": BLOCK_FP8},
    "Llama-3.1-8B-Instruct": flat("llama", "LlamaForCausalLM"),
    "gemma-4-31B, 26B-A4B, 12B": nested("gemma4", "Gemma4ForConditionalGeneration", text=GEMMA4),
    "gpt-oss-20b, 120b": flat("gpt_oss", "GptOssForCausalLM", quantization_config={"quant_method": "mxfp4"}),
    "Kimi-K2.5, K2.6": nested("kimi_k25", "KimiK25ForConditionalGeneration"),
    "MiniMax-M2.5": flat("minimax_m2", "MiniMaxM2ForCausalLM"),
    "GLM-5.2, 5.3": flat("glm_moe_dsa", "GlmMoeDsaForCausalLM"),
    "GLM-5.3-Flash": nested("glm5_next", "Glm5NextForConditionalGeneration"),
    "Laguna-S-2.1": flat("laguna", "LagunaForCausalLM"),
    "Muse-Glimmer-30B": nested("muse_glimmer", "MuseGlimmerForConditionalGeneration"),
    "DeepSeek-V4-Flash": flat("deepseek_v4", "DeepseekV4ForCausalLM"),
    "Inkling": nested("inkling", "InklingForConditionalGeneration"),
    "Mellum2": flat("mellum", "MellumForCausalLM"),
}


def drafter(architecture: str = "DFlashDraftModel", inner: Config | None = None, **more: Any) -> Config:
    """z-lab's format."""
    told = {"mask_token_id": 90, "target_layer_ids": [1, 2], **(inner or {})}
    own = {"architectures": [architecture], "model_type": "qwen3", "block_size": 16, "num_target_layers": 4}
    return {**SIZES, "num_hidden_layers": 2, **own, "dflash_config": told, **more}


def speculators(method: str = "dflash") -> Config:
    """speculators' format."""
    return {
        "architectures": ["DFlashDraftModel"],
        "speculators_model_type": method,
        "transformer_layer_config": {**SIZES, "num_hidden_layers": 2, "model_type": "qwen3"},
        "aux_hidden_state_layer_ids": [2, 3],
        "mask_token_id": 90,
        "block_size": 8,
        "draft_vocab_size": 97,
        "sliding_window_non_causal": True,
    }


def eagle3() -> Config:
    """An EAGLE-3 head, as SpecForge writes it."""
    return {
        **SIZES,
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "num_hidden_layers": 1,
    }


DFLASH = drafter()
DFLASH2 = drafter(
    "DFlash2DraftModel",
    {"conv_kernel_size": 4, "conv_group_size": 64, "selector_rank": 8, "selector_top_k": 4},
)
DSPARK = drafter("DSparkDraftModel")
# Drafters by their names on the hub, what they are, and the target of TARGETS.
PAIRS: tuple[tuple[str, Config | Header, str], ...] = (
    ("z-lab/Qwen3-4B-DFlash-b16, Qwen3-8B-DFlash-b16", DFLASH, "Qwen3-4B, 8B"),
    ("RedHatAI, mgoin and others: Qwen3-8B-speculator.dflash", speculators(), "Qwen3-4B, 8B"),
    ("krishnateja95/Qwen3-8B-FP8-Dflash", speculators(), "Qwen3-8B-FP8"),
    ("RedHatAI/Qwen3-4B, 8B .dflash2 (speculators)", speculators("dflash2"), "Qwen3-4B, 8B"),
    ("deepseek-ai/dspark_qwen3_8b_block7", drafter("Qwen3DSparkModel"), "Qwen3-4B, 8B"),
    ("huang3eng/Qwen3-8B-Domino-b16", drafter(inner={"projector_type": "domino"}), "Qwen3-4B, 8B"),
    ("AngelSlim, RedHatAI: Qwen3-8B EAGLE-3", eagle3(), "Qwen3-4B, 8B"),
    ("RedHatAI: Qwen3-30B-A3B speculators", speculators(), "Qwen3-30B-A3B"),
    ("z-lab/Qwen3-Coder-30B-A3B-DFlash", DFLASH, "Qwen3-Coder-30B-A3B"),
    ("z-lab/Qwen3-Coder-Next-DFlash", DFLASH, "Qwen3-Coder-Next"),
    ("z-lab/Qwen3.5-4B, 9B, 27B, Qwen3.6-27B -DFlash", DFLASH, "Qwen3.5-4B, 9B, 27B; Qwen3.6-27B"),
    ("z-lab/Qwen3.6-27B-DFlash", DFLASH, "Qwen3.6-27B-NVFP4"),
    ("z-lab/Qwen3.6-27B-DFlash", DFLASH, "Qwen3.6-27B int4 (AutoRound)"),
    ("z-lab/Qwen3.6-27B-DFlash", DFLASH, "Qwen3.6-27B-FP8"),
    ("z-lab/Qwen3.6-27B-DFlash", DFLASH, "Qwen3.6-27B AWQ"),
    ("z-lab/Qwen3.6-27B-DFlash", DFLASH, "Qwen3.6-27B w4a16 (llm-compressor)"),
    ("z-lab/Qwen3.6-27B-DFlash", DFLASH, "Qwen3.6-27B int4 (torchao)"),
    ("z-lab/Qwen3.6-27B-DFlash", DFLASH, "Qwen3.6-27B 4bit (MLX)"),
    ("z-lab/Qwen3.6-27B-DFlash", DFLASH, "Qwen3.6-27B GGUF"),
    ("z-lab/Qwen3.6-35B-A3B-DFlash", DFLASH, "Qwen3.6-35B-A3B GGUF"),
    ("Anbeeld, AtomicChat and others: Qwen3.6-27B-DFlash GGUF", gguf_drafter("dflash"), "Qwen3.6-27B GGUF"),
    (
        "Lucebox, Radamanthys11: the same of before June (dflash-draft)",
        gguf_drafter("dflash-draft"),
        "Qwen3.6-27B GGUF",
    ),
    ("incoai/Qwen3.8-27B-DFlash2-GGUF", gguf_drafter("dflash", **GGUF_DFLASH2), "Qwen3.8-27B"),
    ("z-lab/Qwen3.5-122B-A10B-DFlash", DFLASH, "Qwen3.5-122B-A10B-NVFP4"),
    ("asf0/Qwen3.8-27B-DFlash (speculators)", speculators(), "Qwen3.8-27B"),
    ("z-lab/Qwen3.8-27B-DFlash2", DFLASH2, "Qwen3.8-27B"),
    ("RedHatAI/Qwen3.8-27B dspark-preview", speculators("dspark"), "Qwen3.8-27B"),
    (
        "z-lab, modal-labs: Qwen3.5-35B-A3B, 122B-A10B, 397B-A17B, Qwen3.6-35B-A3B -DFlash",
        DFLASH,
        "Qwen3.5-35B-A3B, 122B-A10B, 397B-A17B; Qwen3.6-35B-A3B",
    ),
    ("z-lab/Qwen3.5-35B-A3B-DFlash", DFLASH, "Qwen3.5-35B-A3B-FP8"),
    ("z-lab/LLaMA3.1-8B-Instruct-DFlash-UltraChat", DFLASH, "Llama-3.1-8B-Instruct"),
    (
        "z-lab/gemma-4-31B-it, 26B-A4B-it, gemma4-12B-it -DFlash",
        drafter(final_logit_softcapping=30.0),
        "gemma-4-31B, 26B-A4B, 12B",
    ),
    ("RedHatAI/gemma-4-31B .dflash, .dflash2", speculators("dflash2"), "gemma-4-31B, 26B-A4B, 12B"),
    ("z-lab/gpt-oss-20b, 120b -DFlash", DFLASH, "gpt-oss-20b, 120b"),
    ("z-lab/Kimi-K2.5, K2.6 -DFlash", DFLASH, "Kimi-K2.5, K2.6"),
    ("z-lab/MiniMax-M2.5-DFlash", DFLASH, "MiniMax-M2.5"),
    ("incoai/GLM-5.3-DFlash2", DFLASH2, "GLM-5.2, 5.3"),
    ("RedHatAI: GLM-5.2, 5.3 dspark", speculators("dspark"), "GLM-5.2, 5.3"),
    ("incoai/GLM-5.3-Flash-DFlash2", DFLASH2, "GLM-5.3-Flash"),
    ("poolside/Laguna-S-2.1-DFlash", drafter("DFlashLagunaForCausalLM"), "Laguna-S-2.1"),
    ("z-lab/Muse-Glimmer-30B-DFlash2", DFLASH2, "Muse-Glimmer-30B"),
    ("RedHatAI/DeepSeek-V4-Flash .dflash", speculators(), "DeepSeek-V4-Flash"),
    ("deepseek-ai: V4 DSpark", DSPARK, "DeepSeek-V4-Flash"),
    ("modal-labs/Inkling-DFlash", DFLASH, "Inkling"),
    ("RedHatAI/Mellum2 .dflash", speculators(), "Mellum2"),
)


def what_becomes(target: Path, draft: Path) -> tuple[str, str, str]:
    """(verdict, the sentence of a refusal, engines that ``launch`` hands the pair to)."""
    engines = []
    for name, command in (("vLLM", vllm_command), ("SGLang", sglang_command)):
        try:
            pair = read_pair(str(target), str(draft))
            command(pair, LaunchConfig(block_size=4 if pair.method == "eagle3" else None))  # which says none
        except FlashdraftError:
            continue
        engines.append(name)
    try:
        check_pair(target, draft)
    except FlashdraftError as error:
        sentence = str(error).replace(str(target), "TARGET").replace(str(draft), "DRAFTER")
        return "hands over" if engines else "refuses", sentence, ", ".join(engines)
    quantized = (
        target.is_file()
        or draft.is_file()
        or "quantization_config" in json.loads((target / "config.json").read_text())
    )
    return "runs dequantized" if quantized else "runs", "", ", ".join(engines)


def rows(folder: Path) -> list[tuple[str, str, str, str, str]]:
    """(drafter, target, verdict, sentence, engines) of every pair; their configs are written to ``folder``."""
    found = []
    for i, (name, config, target) in enumerate(PAIRS):
        places = folder / f"{i}-target", folder / f"{i}-drafter"
        made = [_write(place, told) for place, told in zip(places, (TARGETS[target], config), strict=True)]
        found.append((name, target, *what_becomes(*made)))
    return found


def _write(place: Path, told: Config | Header) -> Path:
    if isinstance(told, Header):
        return told.write(place.with_suffix(".gguf"))
    place.mkdir()
    (place / "config.json").write_text(json.dumps(told))
    return place


def table(folder: Path) -> str:
    """The Markdown of docs/guides/models.md; every refusal's sentence is told once, below."""
    lines = ["| drafter | target | flashdraft | `launch` |", "| --- | --- | --- | --- |"]
    sentences: dict[str, int] = {}
    for name, target, verdict, sentence, engines in rows(folder):
        short = re.sub(r"model_type '\w+'", "its model_type", sentence.partition("; expected")[0])
        mark = f" ({sentences.setdefault(short, len(sentences) + 1)})" if short else ""
        lines.append(f"| {name} | {target} | {verdict}{mark} | {engines or 'no'} |")
    lines.append("")
    lines += [f"{number}. {sentence}" for sentence, number in sentences.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        sys.stdout.write(table(Path(place)))
