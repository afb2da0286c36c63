"""Published measurements of DFlash on GPUs, and the shapes of their pairs: what the roofline is held against.

Figures: DFlash (arXiv 2602.06036v2), tables 3 and 11, greedy, blocks of 16. Table 3: SGLang on one B200. Table 11 names
no GPU in what we have of it; it is read as a B200's, as the model card's tables are.
"""

from dataclasses import dataclass
from typing import Any

from flashdraft.errors import UsageError


@dataclass(frozen=True)
class PublishedRow:
    """One published cell; None: not told."""

    pair: str
    task: str
    concurrency: int
    acceptance_length: float
    speedup: float | None
    plain_tokens_per_s: float | None  # of plain decoding
    source: str

    @property
    def is_fitted(self) -> bool:
        """Whether the roofline is fitted to it; the others test the fit, on a pair that it has not seen."""
        return self.source == "table 3"


PUBLISHED_GPU = "B200"
PUBLISHED_BLOCK_SIZE = 16
PUBLISHED = (
    PublishedRow("qwen3-4b", "math500", 1, 8.01, 4.8, 316, "table 3"),
    PublishedRow("qwen3-4b", "math500", 4, 8.01, 4.3, None, "table 3"),
    PublishedRow("qwen3-4b", "math500", 8, 8.01, 4.1, None, "table 3"),
    PublishedRow("qwen3-4b", "math500", 16, 8.01, 3.5, None, "table 3"),
    PublishedRow("qwen3-4b", "math500", 32, 8.01, 2.9, 7136, "table 3"),
    PublishedRow("qwen3-4b", "humaneval", 1, 6.63, 4.0, None, "table 3"),
    PublishedRow("qwen3-4b", "humaneval", 32, 6.63, 2.2, None, "table 3"),
    PublishedRow("qwen3-8b", "math500", 1, 8.01, 5.1, 230, "table 3"),
    PublishedRow("qwen3-8b", "math500", 4, 8.01, 4.5, None, "table 3"),
    PublishedRow("qwen3-8b", "math500", 8, 8.01, 4.5, None, "table 3"),
    PublishedRow("qwen3-8b", "math500", 16, 8.01, 3.9, None, "table 3"),
    PublishedRow("qwen3-8b", "math500", 32, 8.01, 2.8, 5694, "table 3"),
    PublishedRow("qwen3.5-27b", "math500", 8, 7.7, 3.8, None, "table 11"),
    PublishedRow("qwen3.5-27b", "humaneval", 8, 9.1, 3.9, None, "table 11"),
)

_QWEN3: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
}
_QWEN3_8B = _QWEN3 | {"hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False}
_QWEN3_4B = _QWEN3 | {"hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True}
_QWEN35_27B: dict[str, Any] = {
    "model_type": "qwen3_5_text",
    "vocab_size": 248320,
    "hidden_size": 5120,
    "intermediate_size": 17408,
    "num_hidden_layers": 64,
    "num_attention_heads": 24,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 48,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
    "tie_word_embeddings": False,
}
TARGETS = {"qwen3-4b": _QWEN3_4B, "qwen3-8b": _QWEN3_8B, "qwen3.5-27b": _QWEN35_27B}
_DRAFT_LAYERS = {"qwen3-4b": 5, "qwen3-8b": 5, "qwen3.5-27b": 6}


def pair_configs(name: str) -> tuple[Any, Any]:
    """(transformers config, DFlashConfig) of a published pair. Raises UsageError for an unknown one."""
    from transformers import AutoConfig

    from flashdraft.models.dflash_config import DFlashConfig, build_target_layer_ids

    if name not in TARGETS:
        raise UsageError(f"there is no pair {name!r}; expected one of: {', '.join(TARGETS)}")
    values = dict(TARGETS[name])
    target = AutoConfig.for_model(values.pop("model_type"), **values)
    draft = DFlashConfig(
        hidden_size=target.hidden_size,
        intermediate_size=target.intermediate_size,
        num_hidden_layers=_DRAFT_LAYERS[name],
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=target.vocab_size,
        block_size=PUBLISHED_BLOCK_SIZE,
        mask_token_id=target.vocab_size - 1,
        target_layer_ids=build_target_layer_ids(target.num_hidden_layers, 5),
        num_target_layers=target.num_hidden_layers,
        max_position_embeddings=40960,
    )
    return target, draft
