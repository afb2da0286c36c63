"""Gemma 4, the language model: sliding and full layers with heads of their own sizes, dense or with experts beside.

Beyond Gemma 3: a full layer has wider and fewer key-value heads, whose values may be its keys before their norm, and
rotates a part of each head; the last layers may read an earlier layer's keys and values; each layer's output has a
factor; logits are capped. The small models' embeddings of each layer (E2B, E4B) are not supported.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashdraft.cache.kv_cache import KVShape
from flashdraft.models.base import LayerSource
from flashdraft.models.gemma3 import Gemma3Model
from flashdraft.models.layer_kinds import SLIDING, rotary_of_kind
from flashdraft.models.llama import split_heads
from flashdraft.models.mlp import Experts, GatedMLP
from flashdraft.ops.attention import AttentionSpec
from flashdraft.ops.norm import RMSNorm, rms_norm
from flashdraft.ops.rope import Rotary, rotate

_GELU = partial(F.gelu, approximate="tanh")


def _num_keeping(config: Any) -> int:
    """Layers with keys and values of their own, the first ones."""
    return int(config.num_hidden_layers - config.num_kv_shared_layers)


class Gemma4Attention(nn.Module):
    """Grouped-query attention; queries, keys and values are normed, and scores not scaled."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        own, hidden_size = config.per_layer_config[layer_idx], config.hidden_size
        self.head_dim, self.eps = own.head_dim, config.rms_norm_eps
        q_size, kv_size = (n * self.head_dim for n in (config.num_attention_heads, own.num_key_value_heads))
        bias = config.attention_bias
        self.q_proj = nn.Linear(hidden_size, q_size, bias=bias)
        self.q_norm = RMSNorm(self.head_dim, self.eps)
        self.shares = layer_idx >= _num_keeping(config)
        self.v_proj: nn.Linear | None = None
        if not self.shares:
            self.k_proj = nn.Linear(hidden_size, kv_size, bias=bias)
            self.k_norm = RMSNorm(self.head_dim, self.eps)
            if not config.attention_k_eq_v or config.layer_types[layer_idx] == SLIDING:
                self.v_proj = nn.Linear(hidden_size, kv_size, bias=bias)
        self.o_proj = nn.Linear(q_size, hidden_size, bias=bias)

    def keys_values(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """Keys and values of ``x``, each [batch, kv_heads, num_tokens, head_dim]; None where it reads another's."""
        if self.shares:
            return None, None
        k = split_heads(self.k_proj(x), self.head_dim)
        v = k if self.v_proj is None else split_heads(self.v_proj(x), self.head_dim)
        plain = torch.ones(self.head_dim, dtype=v.dtype, device=v.device)
        return rotate(self.k_norm(k), *rope), rms_norm(v, plain, self.eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], source: LayerSource) -> Tensor:
        """[batch, num_tokens, hidden_size] -> the same; what ``x`` attends to is the source's affair."""
        q = rotate(self.q_norm(split_heads(self.q_proj(x), self.head_dim)), *rope)
        found = source.attend(q, *self.keys_values(x, rope))
        out: Tensor = self.o_proj(found.transpose(1, 2).flatten(2))
        return out


class Gemma4Router(nn.Module):
    """Which experts a token takes: those of the largest softmax over its normed, scaled state."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.top_k, self.eps = config.top_k_experts, config.rms_norm_eps
        self.proj = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.scale = nn.Parameter(torch.ones(config.hidden_size))
        self.per_expert_scale = nn.Parameter(torch.ones(config.num_experts))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and numbers of the experts of ``rows`` [num_tokens, hidden_size], both [num_tokens, top_k]."""
        normed = rms_norm(rows, torch.ones_like(self.scale), self.eps) * self.scale * rows.shape[-1] ** -0.5
        weights, chosen = self.proj(normed).float().softmax(-1).topk(self.top_k, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True) * self.per_expert_scale[chosen]
        return weights.to(rows.dtype), chosen


class Gemma4Layer(nn.Module):
    """One decoder layer, normed before and behind each of its parts."""

    layer_scalar: Tensor

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Gemma4Attention(config, layer_idx)
        is_wide = config.use_double_wide_mlp and self.self_attn.shares
        self.mlp = GatedMLP(size, config.intermediate_size * (2 if is_wide else 1), activation=_GELU)
        self.input_layernorm = RMSNorm(size, eps)
        self.post_attention_layernorm = RMSNorm(size, eps)
        self.pre_feedforward_layernorm = RMSNorm(size, eps)
        self.post_feedforward_layernorm = RMSNorm(size, eps)
        self.register_buffer("layer_scalar", torch.ones(1))
        self.router: Gemma4Router | None = None
        if getattr(config, "enable_moe_block", False):  # which 12B's config does not know
            self.router = Gemma4Router(config)
            self.experts = Experts(config.num_experts, size, config.moe_intermediate_size, _GELU)
            self.post_feedforward_layernorm_1 = RMSNorm(size, eps)
            self.post_feedforward_layernorm_2 = RMSNorm(size, eps)
            self.pre_feedforward_layernorm_2 = RMSNorm(size, eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], source: LayerSource) -> Tensor:
        """[batch, num_tokens, hidden_size] -> the same."""
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), rope, source))
        mixed = self.mlp(self.pre_feedforward_layernorm(x))
        if self.router is not None:
            rows = x.reshape(-1, x.shape[-1])
            weights, chosen = self.router(rows)
            sparse = self.experts(self.pre_feedforward_layernorm_2(rows), chosen, weights).view(x.shape)
            mixed = self.post_feedforward_layernorm_1(mixed) + self.post_feedforward_layernorm_2(sparse)
        out: Tensor = (x + self.post_feedforward_layernorm(mixed)) * self.layer_scalar
        return out


class Gemma4Decoder(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: Any, _attention_class: Any) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Gemma4Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Gemma4Model(Gemma3Model):
    """A Gemma 4 target of 12B, 26B-A4B or 31B. Raises CheckpointError for embeddings of each layer."""

    decoder_class = Gemma4Decoder
    supported: Mapping[str, tuple[Any, ...]] = {
        "hidden_size_per_layer_input": (0, None),
        "use_bidirectional_attention": (None, "vision"),  # which concerns images alone
        "hidden_activation": ("gelu_pytorch_tanh",),
    }
    skipped_tensors = tuple(
        f"{prefix}{part}."
        for prefix in ("", "model.")
        for part in ("vision_tower", "embed_vision", "audio_tower", "embed_audio")
    )

    def rotary_of(self, config: Any) -> dict[str, Rotary]:
        """One for each kind of layer, of its own heads."""
        kinds = config.layer_types
        dims = {kind: config.per_layer_config[kinds.index(kind)].head_dim for kind in sorted(set(kinds))}
        return {kind: rotary_of_kind(config, kind, head_dim) for kind, head_dim in dims.items()}

    def specs_of(self, config: Any) -> list[AttentionSpec]:
        """Sliding layers have a window; the last layers read the last one of their kind that keeps something."""
        specs: list[AttentionSpec] = []
        kinds, num_keeping = config.layer_types, _num_keeping(config)
        lasts = {kind: layer for layer, kind in enumerate(kinds[:num_keeping])}
        for layer, kind in enumerate(kinds):
            window = config.sliding_window if kind == SLIDING else None
            specs.append(AttentionSpec(window, 1.0, shares=lasts[kind] if layer >= num_keeping else None))
        return specs

    def kv_shapes(self) -> list[KVShape]:
        """See :meth:`TargetModel.kv_shapes`."""
        layers = [self.config.per_layer_config[i] for i in range(len(self.specs))]
        return [
            KVShape(layer.num_key_value_heads, layer.head_dim, spec.window, spec.shares)
            for layer, spec in zip(layers, self.specs, strict=True)
        ]

    def logits(self, hidden: Tensor) -> Tensor:
        """See :meth:`TargetModel.logits`."""
        logits = super().logits(hidden)
        cap = self.config.final_logit_softcapping
        return logits if not cap else cap * (logits / cap).tanh()
