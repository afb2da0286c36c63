"""OLMo 2 and 3: norms stand behind attention and feed-forward network; queries and keys are normed over all heads.

OLMo 3 has sliding layers with a full one after every third; positions of full layers alone may be scaled.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from flashdraft.batch import ForwardBatch
from flashdraft.models.base import KVSource, LayerSource, TargetOutput
from flashdraft.models.layer_kinds import rotary_of_kind, run_by_kind, windows_of
from flashdraft.models.llama import LlamaAttention, LlamaDecoder, LlamaModel, split_heads
from flashdraft.models.mlp import GatedMLP
from flashdraft.ops.attention import AttentionSpec
from flashdraft.ops.norm import RMSNorm
from flashdraft.ops.rope import Rotary


class JointNorm(RMSNorm):
    """RMSNorm over all heads of a token together."""

    def forward(self, x: Tensor) -> Tensor:
        """[batch, heads, num_tokens, head_dim] -> the same."""
        return split_heads(super().forward(x.transpose(1, 2).flatten(2)), x.shape[-1])


class OlmoAttention(LlamaAttention):
    """Grouped-query attention; queries and keys are normed before RoPE."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.q_norm = JointNorm(config.num_attention_heads * config.head_dim, config.rms_norm_eps)
        self.k_norm = JointNorm(config.num_key_value_heads * config.head_dim, config.rms_norm_eps)


class OlmoLayer(nn.Module):
    """One decoder layer, normed behind both of its halves."""

    def __init__(self, config: Any, attention_class: type[LlamaAttention], _layer_idx: int = 0) -> None:
        super().__init__()
        self.self_attn = attention_class(config)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_feedforward_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], source: LayerSource) -> Tensor:
        """[batch, num_tokens, hidden_size] -> the same."""
        x = x + self.post_attention_layernorm(self.self_attn(x, rope, source))
        out: Tensor = x + self.post_feedforward_layernorm(self.mlp(x))
        return out


class OlmoDecoder(LlamaDecoder):
    """Embedding, layers and final norm."""

    layer_class = OlmoLayer


class Olmo2Model(LlamaModel):
    """An OLMo 2 target."""

    attention_class = OlmoAttention
    decoder_class = OlmoDecoder


class Olmo3Model(Olmo2Model):
    """An OLMo 3 target."""

    def rotary_of(self, config: Any) -> dict[str, Rotary]:
        """One for sliding layers, one for full ones."""
        return {kind: rotary_of_kind(config, kind, config.head_dim) for kind in sorted({*config.layer_types})}

    def specs_of(self, config: Any) -> list[AttentionSpec]:
        """Sliding layers have a window."""
        return [AttentionSpec(window) for window in windows_of(config)]

    def forward(
        self, batch: ForwardBatch, cache: KVSource, feature_layers: Sequence[int] = ()
    ) -> TargetOutput:
        """See :meth:`TargetModel.forward`."""
        return run_by_kind(self, self.embed(batch.token_ids), batch, cache, feature_layers)
