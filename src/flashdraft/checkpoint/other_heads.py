"""Drafters of other methods than ours, known by name: what they are and who serves them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashdraft.errors import CheckpointError

# Words of architectures, algorithm names and tensors -> the method, and who serves it (state of November 2026).
_METHODS = {
    ("dspark", "markov_head", "markov_w1"): ("DSpark", "vLLM, SGLang and llama.cpp"),
    ("domino", "prefix_gru"): ("Domino", "SGLang and others"),
    ("lilicorr",): ("LiLiCorr", "vLLM, SGLang and llama.cpp"),
    ("xpress",): ("xPress", "vLLM 0.33"),
    ("eagle3", "eagle-3"): ("EAGLE-3", "vLLM, SGLang and TensorRT-LLM"),
    ("peagle", "p-eagle"): ("P-EAGLE", "vLLM and others"),
}
_TELLING = ("architectures", "projector_type", "speculators_model_type", "tensors")


def check_method(raw: Mapping[str, Any], folder: Path) -> None:
    """Raise CheckpointError, with the method's name, for a drafter of another method.

    ``raw``: its config.json, or what is known of it under the same names; ``tensors``: its tensors' names.
    """
    known = {**(raw.get("dflash_config") or {}), **raw}
    told = " ".join(str(known.get(name) or "") for name in _TELLING).lower()
    for words, (method, servers) in _METHODS.items():
        if any(word in told for word in words):
            raise CheckpointError(
                f"{folder} holds a drafter of another kind, {method}; expected DFlash, DFlash 2 or an MTP head:"
                f" {servers} can serve it (flashdraft launch), here take a DFlash drafter of the same target or none"
            )
