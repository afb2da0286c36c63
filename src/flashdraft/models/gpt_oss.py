"""gpt-oss: sliding and full layers in turn, a sink a head, experts with biases and a clamped SwiGLU."""

from typing import Any

import torch
from torch import Tensor, nn

from flashdraft.models.base import LayerSource
from flashdraft.models.layer_kinds import windows_of
from flashdraft.models.llama import LlamaAttention, LlamaModel
from flashdraft.models.mlp import Experts, ExpertsInCodes
from flashdraft.ops.attention import AttentionSpec
from flashdraft.ops.norm import RMSNorm
from flashdraft.ops.quantized import QuantizedWeight

# Of gpt-oss' own code. Published configs have the limit alone, and older releases of transformers know neither.
_ALPHA, _LIMIT = 1.702, 7.0


class GptOssAttention(LlamaAttention):
    """Grouped-query attention with RoPE; ``sinks`` [heads] are scores of what gives nothing."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.sinks = nn.Parameter(torch.empty(config.num_attention_heads))


class GptOssExperts(Experts):
    """Experts as their checkpoints have them: inputs first, gates and ups in turn, biases.

    ``gate_up_proj`` [num_experts, hidden_size, 2 intermediate_size], ``down_proj`` [num_experts, intermediate_size,
    hidden_size], ``gate_up_proj_bias`` and ``down_proj_bias`` [num_experts, outputs].
    """

    def __init__(self, config: Any) -> None:
        nn.Module.__init__(self)
        self.alpha = getattr(config, "swiglu_alpha", _ALPHA)
        self.limit = getattr(config, "swiglu_limit", _LIMIT)
        count, size, width = config.num_local_experts, config.hidden_size, config.intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(count, size, 2 * width))
        self.gate_up_proj_bias = nn.Parameter(torch.empty(count, 2 * width))
        self.down_proj = nn.Parameter(torch.empty(count, width, size))
        self.down_proj_bias = nn.Parameter(torch.empty(count, size))

    def of_one(self, expert: int, x: Tensor) -> Tensor:
        """``down((up + 1) * gate * sigmoid(alpha * gate))``; gates are at most ``limit``, ups within it (gpt-oss)."""
        gate_up_proj, down_proj = self.matrices(expert)
        gate_up = x @ gate_up_proj + self.gate_up_proj_bias[expert]
        gate = gate_up[..., ::2].clamp(max=self.limit)
        up = gate_up[..., 1::2].clamp(-self.limit, self.limit)
        mixed = (up + 1) * (gate * torch.sigmoid(gate * self.alpha))
        out: Tensor = mixed @ down_proj + self.down_proj_bias[expert]
        return out

    def shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """See :class:`Experts`."""
        num_experts, width, size = self.down_proj.shape
        return (num_experts * 2 * width, size), (num_experts * size, width)

    def in_codes(self, gate_up_proj: QuantizedWeight, down_proj: QuantizedWeight) -> Experts:
        """See :class:`Experts`."""
        return GptOssExpertsInCodes(self, gate_up_proj, down_proj)


class GptOssExpertsInCodes(ExpertsInCodes, GptOssExperts):
    """The same with weights in codes, outputs first; biases in floats."""

    def __init__(
        self, experts: GptOssExperts, gate_up_proj: QuantizedWeight, down_proj: QuantizedWeight
    ) -> None:
        nn.Module.__init__(self)
        self.alpha, self.limit, self.num_experts = experts.alpha, experts.limit, len(experts.down_proj)
        self.gate_up_proj, self.down_proj = gate_up_proj, down_proj
        self.gate_up_proj_bias, self.down_proj_bias = experts.gate_up_proj_bias, experts.down_proj_bias

    def matrices(self, expert: int) -> tuple[Tensor, Tensor]:
        """One expert's [hidden_size, 2 intermediate_size] and [intermediate_size, hidden_size]."""
        gate_up, down = super().matrices(expert)
        return gate_up.T, down.T


class GptOssMLP(nn.Module):
    """A few experts for each token, weighted by the softmax of their scores alone."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.router = nn.Linear(config.hidden_size, config.num_local_experts)
        self.experts = GptOssExperts(config)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden_size] -> [..., hidden_size]."""
        rows = x.reshape(-1, x.shape[-1])
        scores, chosen = self.router(rows).topk(self.top_k, dim=-1)
        out: Tensor = self.experts(rows, chosen, scores.softmax(-1))
        return out.view(x.shape)


class GptOssLayer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.self_attn = GptOssAttention(config)
        self.mlp = GptOssMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], source: LayerSource) -> Tensor:
        """[batch, num_tokens, hidden_size] -> the same."""
        x = x + self.self_attn(self.input_layernorm(x), rope, source)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class GptOssDecoder(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: Any, _attention_class: Any) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(GptOssLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class GptOssModel(LlamaModel):
    """A gpt-oss target, of 20B or 120B."""

    decoder_class = GptOssDecoder

    def specs_of(self, config: Any) -> list[AttentionSpec]:
        """Sliding layers have a window; all have their sinks."""
        sinks = [layer.self_attn.sinks for layer in self.model.layers]
        return [
            AttentionSpec(window, sinks=one) for window, one in zip(windows_of(config), sinks, strict=True)
        ]
