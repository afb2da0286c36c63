"""Every public drafter of autumn 2026 that is known to us, in its published config, and what becomes of it here.

    python tests/published_pairs.py        # prints the table of docs/guides/models.md

Sizes are tiny; the fields are those of the published files, which decide what is run, handed over or refused.
"""

import json
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashdraft.checkpoint.load import check_pair
from flashdraft.errors import FlashdraftError
from flashdraft.export.config import LaunchConfig
from flashdraft.export.launch import read_pair
from flashdraft.export.sglang import sglang_command
from flashdraft.export.vllm import vllm_command

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
INT4 = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "packing_format": "auto_round:auto_gptq"}


def flat(kind: str, architecture: str, **more: Any) -> Config:
    """A target whose config is its language model's."""
    return {**SIZES, "model_type": kind, "architectures": [architecture], **more}


def nested(kind: str, architecture: str, **more: Any) -> Config:
    """A target with a vision tower."""
    text = {**SIZES, "model_type": f"{kind}_text", **more.pop("text", {})}
    return {"model_type": kind, "architectures": [architecture], "text_config": text, **more}


QWEN3 = flat("qwen3", "Qwen3ForCausalLM")
QWEN3_MOE = flat("qwen3_moe", "Qwen3MoeForCausalLM", **EXPERTS)
QWEN3_5 = nested("qwen3_5", "Qwen3_5ForConditionalGeneration", text=DELTA)
SHARED = {"shared_expert_intermediate_size": 32}
QWEN3_5_MOE = nested("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", text={**DELTA, **EXPERTS, **SHARED})
TARGETS: Mapping[str, Config] = {
    "Qwen3-4B, 8B": QWEN3,
    "Qwen3-8B-FP8": QWEN3 | {"quantization_config": BLOCK_FP8},
    "Qwen3-30B-A3B": QWEN3_MOE,
    "Qwen3-Coder-30B-A3B": QWEN3_MOE | {"shared_expert_intermediate_size": 0},
    "Qwen3-Coder-Next": flat("qwen3_next", "Qwen3NextForCausalLM", **DELTA, **EXPERTS, **SHARED),
    "Qwen3.5-4B, 9B, 27B; Qwen3.6-27B": QWEN3_5,
    "Qwen3.8-27B": QWEN3_5,
    "Qwen3.6-27B-NVFP4": QWEN3_5 | {"quantization_config": NVFP4},
    "Qwen3.6-27B int4 (AutoRound)": QWEN3_5 | {"quantization_config": INT4},
    "Qwen3.5-35B-A3B, 122B-A10B, 397B-A17B; Qwen3.6-35B-A3B": QWEN3_5_MOE,
    "Qwen3.5-35B-A3B-FP8": QWEN3_5_MOE | {"quantization_config": BLOCK_FP8},
    "Llama-3.1-8B-Instruct": flat("llama", "LlamaForCausalLM"),
    "gemma-4-31B, 26B-A4B, 12B": nested("gemma4", "Gemma4ForConditionalGeneration"),
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


DFLASH = drafter()
DFLASH2 = drafter(
    "DFlash2DraftModel",
    {"conv_kernel_size": 4, "conv_group_size": 64, "selector_rank": 8, "selector_top_k": 4},
)
DSPARK = drafter("DSparkDraftModel")
# Drafters by their names on the hub, what they are, and the target of TARGETS.
PAIRS: tuple[tuple[str, Config, str], ...] = (
    ("z-lab/Qwen3-4B-DFlash-b16, Qwen3-8B-DFlash-b16", DFLASH, "Qwen3-4B, 8B"),
    ("RedHatAI, mgoin and others: Qwen3-8B-speculator.dflash", speculators(), "Qwen3-4B, 8B"),
    ("krishnateja95/Qwen3-8B-FP8-Dflash", speculators(), "Qwen3-8B-FP8"),
    ("RedHatAI/Qwen3-4B, 8B .dflash2 (speculators)", speculators("dflash2"), "Qwen3-4B, 8B"),
    ("deepseek-ai/dspark_qwen3_8b_block7", drafter("Qwen3DSparkModel"), "Qwen3-4B, 8B"),
    ("RedHatAI: Qwen3-30B-A3B speculators", speculators(), "Qwen3-30B-A3B"),
    ("z-lab/Qwen3-Coder-30B-A3B-DFlash", DFLASH, "Qwen3-Coder-30B-A3B"),
    ("z-lab/Qwen3-Coder-Next-DFlash", DFLASH, "Qwen3-Coder-Next"),
    ("z-lab/Qwen3.5-4B, 9B, 27B, Qwen3.6-27B -DFlash", DFLASH, "Qwen3.5-4B, 9B, 27B; Qwen3.6-27B"),
    ("z-lab/Qwen3.6-27B-DFlash", DFLASH, "Qwen3.6-27B-NVFP4"),
    ("z-lab/Qwen3.6-27B-DFlash", DFLASH, "Qwen3.6-27B int4 (AutoRound)"),
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
            command(read_pair(str(target), str(draft)), LaunchConfig())
        except FlashdraftError:
            continue
        engines.append(name)
    try:
        check_pair(target, draft)
    except FlashdraftError as error:
        sentence = str(error).replace(str(target), "TARGET").replace(str(draft), "DRAFTER")
        return "hands over" if engines else "refuses", sentence, ", ".join(engines)
    quantized = "quantization_config" in json.loads((target / "config.json").read_text())
    return "runs dequantized" if quantized else "runs", "", ", ".join(engines)


def rows(folder: Path) -> list[tuple[str, str, str, str, str]]:
    """(drafter, target, verdict, sentence, engines) of every pair; their configs are written to ``folder``."""
    found = []
    for i, (name, config, target) in enumerate(PAIRS):
        places = folder / f"{i}-target", folder / f"{i}-drafter"
        for place, told in zip(places, (TARGETS[target], config), strict=True):
            place.mkdir()
            (place / "config.json").write_text(json.dumps(told))
        found.append((name, target, *what_becomes(*places)))
    return found


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
