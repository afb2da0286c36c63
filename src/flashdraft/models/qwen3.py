"""Qwen3, dense or sparse (qwen3_moe): a Llama whose attention norms queries and keys, head by head."""

from typing import Any

from flashdraft.errors import CheckpointError
from flashdraft.models.llama import LlamaAttention, LlamaModel
from flashdraft.ops.norm import RMSNorm


class Qwen3Attention(LlamaAttention):
    """Grouped-query attention; queries and keys are normed before RoPE."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)


class Qwen3Model(LlamaModel):
    """A Qwen3 target. Raises CheckpointError for one whose layers see a sliding window."""

    attention_class = Qwen3Attention

    def __init__(self, config: Any) -> None:
        window = getattr(config, "sliding_window", None)
        kinds = getattr(config, "layer_types", None) or (["sliding_attention"] if window else [])
        if unknown := sorted({*kinds} - {"full_attention"}):
            raise CheckpointError(
                f"the target has layers of type {', '.join(unknown)}; expected full_attention only, as every"
                " published Qwen3: set use_sliding_window to false if the window is longer than your texts"
            )
        super().__init__(config)
