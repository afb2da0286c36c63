"""flashdraft: DFlash speculative decoding, from training a drafter to serving it.

The public names are loaded on first use, so that ``flashdraft --help`` does not pay for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashdraft.checkpoint.load import load_drafter, load_target, load_tokenizer
    from flashdraft.errors import FlashdraftError
    from flashdraft.generate import generate
    from flashdraft.llm import LLM
    from flashdraft.sampling_params import SamplingParams

__version__ = "0.1.0"

_HOMES = {
    "LLM": "flashdraft.llm",
    "SamplingParams": "flashdraft.sampling_params",
    "FlashdraftError": "flashdraft.errors",
    "generate": "flashdraft.generate",
    "load_drafter": "flashdraft.checkpoint.load",
    "load_target": "flashdraft.checkpoint.load",
    "load_tokenizer": "flashdraft.checkpoint.load",
}

__all__ = [
    "LLM",
    "FlashdraftError",
    "SamplingParams",
    "__version__",
    "generate",
    "load_drafter",
    "load_target",
    "load_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'flashdraft' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    # Kept here so that the submodule of the same name (flashdraft.generate) never shadows the function.
    globals()[name] = value
    return value
