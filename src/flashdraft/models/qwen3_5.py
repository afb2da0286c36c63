"""Qwen3.5: gated delta layers with a gated attention layer after every third; dense, or sparse (qwen3_5_moe).

Qwen3-Next (qwen3_next) is the same network under other tensor names (see checkpoint/regrouped.py).

A published checkpoint nests the language model beside a vision tower and a multi-token-prediction head; both are
left out: prompts are text. For text its three-part rotary positions (mRoPE) are all the same, so plain RoPE is
the same function.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashdraft.batch import ForwardBatch
from flashdraft.cache.hybrid_cache import HybridCache
from flashdraft.cache.kv_cache import KVShape
from flashdraft.cache.state_cache import LayerState
from flashdraft.models.base import KVSource, LayerSource, TargetModel, TargetOutput
from flashdraft.models.llama import split_heads
from flashdraft.models.mlp import feed_forward
from flashdraft.ops.attention import FULL_ATTENTION
from flashdraft.ops.gated_delta import DeltaInputs, decay_logarithm, gated_delta_texts, unit_length
from flashdraft.ops.norm import RMSNorm, ZeroCenteredRMSNorm
from flashdraft.ops.rope import Rotary, rotate

_LINEAR = "linear_attention"
# A packed text's first token forgets the text before it: in float32 exp(-200) is 0.
_FORGET = -200.0


class GatedAttention(nn.Module):
    """Grouped-query attention on a part of each head's rotation, its output gated by sigmoids of the input."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        q_size = config.num_attention_heads * self.head_dim
        kv_size = config.num_key_value_heads * self.head_dim
        bias = config.attention_bias
        self.q_proj = nn.Linear(config.hidden_size, 2 * q_size, bias=bias)  # [query | gate] of each head
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=bias)
        self.o_proj = nn.Linear(q_size, config.hidden_size, bias=bias)
        self.q_norm = ZeroCenteredRMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = ZeroCenteredRMSNorm(self.head_dim, config.rms_norm_eps)

    def keys_values(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Keys (normed, rotated) and values of ``x``, each [batch, kv_heads, num_tokens, head_dim]."""
        k = rotate(self.k_norm(split_heads(self.k_proj(x), self.head_dim)), *rope)
        return k, split_heads(self.v_proj(x), self.head_dim)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], source: LayerSource) -> Tensor:
        """[batch, num_tokens, hidden_size] -> the same; what ``x`` attends to is the source's affair."""
        q, gate = split_heads(self.q_proj(x), 2 * self.head_dim).chunk(2, dim=-1)
        q = rotate(self.q_norm(q), *rope)
        mixed = source.attend(q, *self.keys_values(x, rope)) * gate.sigmoid()
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out


class GatedDeltaNet(nn.Module):
    """Linear attention: a convolution, then the gated delta rule, normed and gated."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.key_heads, self.heads = config.linear_num_key_heads, config.linear_num_value_heads
        self.key_dim, self.value_dim = config.linear_key_head_dim, config.linear_value_head_dim
        self.sizes = [self.key_heads * self.key_dim] * 2 + [self.heads * self.value_dim]
        hidden_size, width, channels = config.hidden_size, config.linear_conv_kernel_dim, sum(self.sizes)
        self.conv_shape = (width, channels)
        # Only its weight is used, [channels, 1, width]: the convolution goes through ops/causal_conv.py.
        self.conv1d = nn.Conv1d(channels, channels, width, groups=channels, bias=False)
        self.dt_bias = nn.Parameter(torch.ones(self.heads))
        self.A_log = nn.Parameter(torch.zeros(self.heads))
        self.norm = RMSNorm(self.value_dim, config.rms_norm_eps)
        self.in_proj_qkv = nn.Linear(hidden_size, channels, bias=False)
        self.in_proj_z = nn.Linear(hidden_size, self.sizes[2], bias=False)
        self.in_proj_b = nn.Linear(hidden_size, self.heads, bias=False)
        self.in_proj_a = nn.Linear(hidden_size, self.heads, bias=False)
        self.out_proj = nn.Linear(self.sizes[2], hidden_size, bias=False)

    def forward(self, x: Tensor, positions: Tensor, source: LayerState | LayerSource) -> Tensor:
        """[batch, num_tokens, hidden_size] -> the same; whole texts where ``source`` holds no state."""
        state = source if isinstance(source, LayerState) else self.new_state(len(x))
        weight = self.conv1d.weight.squeeze(1)
        mixed = F.silu(state.stage_conv(self.in_proj_qkv(x), weight, positions))
        inputs = self._inputs(x, mixed, positions)
        out = gated_delta_texts(inputs, x.dtype) if state is not source else state.stage_delta(inputs)
        out = out.to(x.dtype)
        gate = F.silu(self.in_proj_z(x).view(out.shape).float())
        gated = (self.norm(out) * gate).to(x.dtype)
        projected: Tensor = self.out_proj(gated.flatten(2))
        return projected

    def new_state(self, rows: int) -> LayerState:
        """The state of ``rows`` sequences that have not begun."""
        dims = (self.key_dim, self.value_dim)
        return LayerState.zeros(rows, self.heads, dims, self.conv_shape, like=self.conv1d.weight)

    def _inputs(self, x: Tensor, mixed: Tensor, positions: Tensor) -> DeltaInputs:
        parts = torch.split(mixed, self.sizes, dim=-1)
        heads = (self.key_heads, self.key_heads, self.heads)
        q, k, v = (part.view(*part.shape[:-1], n, -1).float() for part, n in zip(parts, heads, strict=True))
        # Each key head serves as many value heads in a row.
        q, k = (unit_length(part).repeat_interleave(self.heads // self.key_heads, dim=2) for part in (q, k))
        decay = decay_logarithm(self.in_proj_a(x), self.A_log, self.dt_bias)
        decay = decay.masked_fill((positions == 0).unsqueeze(-1), _FORGET)
        return DeltaInputs(q * self.key_dim**-0.5, k, v, decay, self.in_proj_b(x).sigmoid().float())


class Qwen3_5Layer(nn.Module):  # noqa: N801 - the name of the model
    """One pre-norm decoder layer of either kind."""

    def __init__(self, config: Any, layer_type: str, layer_idx: int = 0) -> None:
        super().__init__()
        self.is_linear = layer_type == _LINEAR
        if self.is_linear:
            self.linear_attn = GatedDeltaNet(config)
        else:
            self.self_attn = GatedAttention(config)
        self.mlp = feed_forward(config, layer_idx)
        self.input_layernorm = ZeroCenteredRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = ZeroCenteredRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], source: LayerSource, positions: Tensor | None = None
    ) -> Tensor:
        """[batch, num_tokens, hidden_size] -> the same; a linear layer asks for its tokens' ``positions``."""
        normed = self.input_layernorm(x)
        if self.is_linear:
            x = x + self.linear_attn(normed, positions, source)
        else:
            x = x + self.self_attn(normed, rope, source)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Qwen3_5Decoder(nn.Module):  # noqa: N801
    """Embedding, layers and final norm."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Qwen3_5Layer(config, kind, i) for i, kind in enumerate(config.layer_types)
        )
        self.norm = ZeroCenteredRMSNorm(config.hidden_size, config.rms_norm_eps)


class Qwen3_5Model(TargetModel):  # noqa: N801
    """A Qwen3.5 target. ``config`` is the language model's, also where the checkpoint nests it."""

    skipped_tensors = ("model.visual.", "mtp.")

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config.get_text_config()
        self.decoder_path = "model.language_model" if self.config is not config else "model"
        decoder = Qwen3_5Decoder(self.config)
        self.model = decoder if self.config is config else nn.ModuleDict({"language_model": decoder})
        self.lm_head: nn.Linear | None = None
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)
        self.rotary = Rotary(self.config)
        self.specs = [FULL_ATTENTION] * self.config.num_hidden_layers

    @property
    def decoder(self) -> Qwen3_5Decoder:
        """The language model, wherever the checkpoint has it."""
        decoder = self.get_submodule(self.decoder_path)
        assert isinstance(decoder, Qwen3_5Decoder)
        return decoder

    def forward(
        self, batch: ForwardBatch, cache: KVSource, feature_layers: Sequence[int] = ()
    ) -> TargetOutput:
        """See :meth:`TargetModel.forward`."""
        x = self.embed(batch.token_ids)
        rope = self.rotary(batch.positions, x.dtype)
        sources = cache.open(batch, self.specs)
        features: dict[int, Tensor] = {}
        for layer_idx, (layer, source) in enumerate(zip(self.decoder.layers, sources, strict=True)):
            x = layer(x, rope, source, batch.positions)
            if layer_idx in feature_layers:
                features[layer_idx] = x
        return TargetOutput.of(self.decoder.norm(x), features, feature_layers)

    def embed(self, token_ids: Tensor) -> Tensor:
        """See :meth:`TargetModel.embed`."""
        return F.embedding(token_ids, self.decoder.embed_tokens.weight)

    def head_weight(self) -> Tensor:
        """See :meth:`TargetModel.head_weight`."""
        return self.decoder.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def new_cache(self, batch_size: int, max_len: int) -> HybridCache:
        """See :meth:`TargetModel.new_cache`."""
        states = {
            layer_idx: layer.linear_attn.new_state(batch_size)
            for layer_idx, layer in enumerate(self.decoder.layers)
            if isinstance(layer, Qwen3_5Layer) and layer.is_linear
        }
        return HybridCache(states, self.kv_shapes(), batch_size, max_len, self.dtype, self.device)

    def kv_shapes(self) -> list[KVShape]:
        """See :meth:`TargetModel.kv_shapes`."""
        shapes = super().kv_shapes()
        return [shape for shape, kind in zip(shapes, self.config.layer_types, strict=True) if kind != _LINEAR]
