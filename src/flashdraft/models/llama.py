"""Llama: SmolLM2 and every other checkpoint of model_type llama."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from flashdraft.batch import ForwardBatch
from flashdraft.models.base import KVSource, LayerSource, TargetModel, TargetOutput
from flashdraft.models.mlp import feed_forward
from flashdraft.ops.attention import FULL_ATTENTION, AttentionSpec
from flashdraft.ops.norm import RMSNorm
from flashdraft.ops.rope import Rotary, rotate


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """[batch, num_tokens, heads * head_dim] -> [batch, heads, num_tokens, head_dim]."""
    return x.view(*x.shape[:-1], -1, head_dim).transpose(1, 2)


class LlamaAttention(nn.Module):
    """Grouped-query attention with RoPE."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        q_size = config.num_attention_heads * self.head_dim
        kv_size = config.num_key_value_heads * self.head_dim
        bias = getattr(config, "attention_bias", False)  # Mistral's configs do not say it
        self.q_proj = nn.Linear(config.hidden_size, q_size, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=bias)
        self.o_proj = nn.Linear(q_size, config.hidden_size, bias=bias)
        self.q_norm: nn.Module = nn.Identity()  # models that norm queries and keys put theirs here
        self.k_norm: nn.Module = nn.Identity()

    def keys_values(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Keys (normed, rotated) and values of ``x``, each [batch, kv_heads, num_tokens, head_dim]."""
        k = rotate(self.k_norm(split_heads(self.k_proj(x), self.head_dim)), *rope)
        return k, split_heads(self.v_proj(x), self.head_dim)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], source: LayerSource) -> Tensor:
        """[batch, num_tokens, hidden_size] -> the same; what ``x`` attends to is the source's affair."""
        q = rotate(self.q_norm(split_heads(self.q_proj(x), self.head_dim)), *rope)
        found = source.attend(q, *self.keys_values(x, rope))
        out: Tensor = self.o_proj(found.transpose(1, 2).flatten(2))
        return out


class LlamaLayer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, config: Any, attention_class: type[LlamaAttention], layer_idx: int = 0) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = attention_class(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = feed_forward(config, layer_idx)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], source: LayerSource) -> Tensor:
        """[batch, num_tokens, hidden_size] -> the same."""
        x = x + self.self_attn(self.input_layernorm(x), rope, source)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class LlamaDecoder(nn.Module):
    """Embedding, layers and final norm (``model.*`` in checkpoints)."""

    layer_class: Any = LlamaLayer

    def __init__(self, config: Any, attention_class: type[LlamaAttention]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            self.layer_class(config, attention_class, i) for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class LlamaModel(TargetModel):
    """A Llama target."""

    attention_class: type[LlamaAttention] = LlamaAttention
    decoder_class: Any = LlamaDecoder

    def __init__(self, config: Any) -> None:
        super().__init__()
        if not hasattr(config, "head_dim"):  # some families' configs leave it to be computed
            config.head_dim = config.hidden_size // config.num_attention_heads
        self.config = config
        self.model = self.decoder_class(config, self.attention_class)
        self.lm_head: nn.Linear | None = None
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.rotary = self.rotary_of(config)

    @cached_property
    def specs(self) -> list[AttentionSpec]:  # type: ignore[override]
        """See :class:`TargetModel`; made when they are first asked for, since they may hold parameters."""
        return self.specs_of(self.config)

    def rotary_of(self, config: Any) -> Any:
        """Rotary positions; models that rotate layer types differently have one for each."""
        return Rotary(config)

    def specs_of(self, config: Any) -> list[AttentionSpec]:
        """What each layer's attention is."""
        return [FULL_ATTENTION] * int(config.num_hidden_layers)

    def forward(
        self, batch: ForwardBatch, cache: KVSource, feature_layers: Sequence[int] = ()
    ) -> TargetOutput:
        """See :meth:`TargetModel.forward`."""
        x = self.embed(batch.token_ids)
        rope = self.rotary(batch.positions, x.dtype)
        sources = cache.open(batch, self.specs)
        features: dict[int, Tensor] = {}
        for layer_idx, (layer, source) in enumerate(zip(self.model.layers, sources, strict=True)):
            x = layer(x, rope, source)
            if layer_idx in feature_layers:
                features[layer_idx] = x
        return TargetOutput.of(self.model.norm(x), features, feature_layers)

    def embed(self, token_ids: Tensor) -> Tensor:
        """See :meth:`TargetModel.embed`."""
        return F.embedding(token_ids, self.model.embed_tokens.weight)

    def head_weight(self) -> Tensor:
        """See :meth:`TargetModel.head_weight`."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
