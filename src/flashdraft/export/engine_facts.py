"""What other engines can be asked for: their own lists, read from the source in their wheels.

``benchmarks/peers/engine_facts.py`` writes engine_facts.json anew from newer wheels.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from flashdraft.errors import UsageError

NAMES = {"vllm": "vLLM", "sglang": "SGLang"}
_SHOWN = 12
# What an engine calls a way to quantize, where checkpoints call it otherwise.
_CALLED: Mapping[str, tuple[str, ...]] = {
    "auto-round": ("inc", "auto-round"),
    "modelopt": ("modelopt", "modelopt_fp4", "modelopt_fp8"),
    "awq": ("awq", "auto_awq"),
    "gptq": ("gptq", "auto_gptq"),
}


@dataclass(frozen=True)
class EngineFacts:
    """One release of an engine."""

    engine: str
    version: str
    targets: frozenset[str]  # architectures whose layers hand out features
    drafters: frozenset[str]  # architectures of drafters
    quantizations: frozenset[str]
    flags: frozenset[str]

    @property
    def label(self) -> str:
        """For people, with its release."""
        return f"{NAMES[self.engine]} {self.version}"

    def check_target(self, architecture: str, raw: Mapping[str, Any]) -> None:
        """Raise UsageError for a target whose features, or whose way to be quantized, the engine does not have."""
        if architecture not in self.targets:
            near = sorted(self.targets, key=lambda name: (name[:4] != architecture[:4], name))
            raise UsageError(
                f"{self.label} gives no features of {architecture} targets; expected one of {len(near)}:"
                f" {', '.join(near[:_SHOWN])} ..."
            )
        told = (
            raw.get("quantization_config") or (raw.get("text_config") or {}).get("quantization_config") or {}
        )
        method = str(told.get("quant_method", "")).lower()
        if told and not set(_CALLED.get(method, (method,))) & self.quantizations:
            raise UsageError(
                f"{self.label} does not know weights quantized as {method or 'unknown'}; expected one of"
                f" {', '.join(sorted(self.quantizations))}"
            )


@cache
def engine_facts(engine: str) -> EngineFacts:
    """The facts of "vllm" or "sglang"."""
    told = json.loads((files("flashdraft.export") / "engine_facts.json").read_text(encoding="utf-8"))[engine]
    lists = {
        name: frozenset(told.get(name, ())) for name in ("targets", "drafters", "quantizations", "flags")
    }
    return EngineFacts(engine, told["version"], **lists)
