"""A decoder's layers as products with small kernels between them, made from the modules' weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashdraft.cuda.prefill_delta import DeltaWeights
from flashdraft.cuda.products import gated_product, product
from flashdraft.cuda.step import Inputs, Source, Storage
from flashdraft.cuda.weights import Product, Weight, heads_of
from flashdraft.models.dflash import DFlashLayer
from flashdraft.models.dflash2 import BlockConv
from flashdraft.models.gpt_oss import GptOssAttention, GptOssLayer, GptOssMLP
from flashdraft.models.llama import LlamaAttention, LlamaLayer
from flashdraft.models.mlp import GatedMLP, SparseMLP
from flashdraft.models.qwen3_5 import GatedAttention, GatedDeltaNet, Qwen3_5Layer
from flashdraft.ops.device_memory import give_back_kept
from flashdraft.ops.norm import RMSNorm, ZeroCenteredRMSNorm
from flashdraft.ops.quantized import QuantizedWeight
from flashdraft.ops.triton.experts import ClampedSwiGLU, experts
from flashdraft.ops.triton.fused import add_rms_norm, gated_norm, norm_rope_store, sigmoid_mul, silu_mul
from flashdraft.ops.triton.routing import route


@dataclass(frozen=True)
class Norm:
    """An RMSNorm's values."""

    module: RMSNorm | ZeroCenteredRMSNorm

    @classmethod
    def of(cls, module: nn.Module) -> "Norm":
        """The values of a module of ops/norm.py."""
        assert isinstance(module, RMSNorm | ZeroCenteredRMSNorm)
        return cls(module)

    @property
    def weight(self) -> Tensor:
        """[size]."""
        return self.module.weight.detach()

    @property
    def eps(self) -> float:
        """Added to the mean square."""
        return self.module.eps

    @property
    def zero_centered(self) -> bool:
        """Whether the weight is stored as its distance from 1."""
        return isinstance(self.module, ZeroCenteredRMSNorm)

    def alone(self, x: Tensor) -> Tensor:
        """``x`` normed."""
        normed: Tensor = self.module(x)
        return normed

    def __call__(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """``residual + x`` normed, and that sum, each [num_tokens, size]."""
        return add_rms_norm(x, residual, self.weight, self.eps, self.zero_centered)


class Handed(NamedTuple):
    """What a layer hands to its mixing of tokens and gets of it: shapes of one token's."""

    asked: tuple[int, ...]
    gate: tuple[int, ...] | None  # passes by; None: nothing does
    found: tuple[int, ...]


class Attention:
    """Grouped-query attention with RoPE; queries and keys may be normed, the output gated. ``layer``: in the cache."""

    def __init__(self, module: nn.Module, layer: int) -> None:
        assert isinstance(module, LlamaAttention | GatedAttention)
        self.layer, self.head_dim = layer, module.head_dim
        self.is_gated = isinstance(module, GatedAttention)
        self.inputs = Product.of([module.q_proj, module.k_proj, module.v_proj])
        self.output = Product.of([module.o_proj])
        self.kv_size = module.k_proj.out_features
        norms = [Norm.of(one) for one in (module.q_norm, module.k_norm) if not isinstance(one, nn.Identity)]
        self.norms = (norms[0].weight, norms[1].weight) if norms else (None, None)
        self.eps, self.zero_centered = (norms[0].eps, norms[0].zero_centered) if norms else (0.0, False)
        self.sinks = module.sinks.detach() if isinstance(module, GptOssAttention) else None

    @property
    def handed(self) -> Handed:
        """See :class:`Handed`."""
        shape = self.output.num_inputs // self.head_dim, self.head_dim
        return Handed(shape, shape if self.is_gated else None, shape)

    def asked(self, x: Tensor, source: Inputs) -> tuple[Tensor, Tensor | None]:
        """Queries of ``x`` [num_tokens, hidden_size], and what gates the output; keys and values are stored."""
        q, k, v = self._taken_apart(product(x, self.inputs))
        heads = heads_of(q, self.head_dim * (2 if self.is_gated else 1))
        turned = self._store(heads[..., : self.head_dim], k, v, source)
        return turned, heads[..., self.head_dim :] if self.is_gated else None

    def mixed(self, asked: Tensor, source: Source) -> Tensor:
        """What queries find."""
        return source.attend(self.layer, asked, self.sinks)

    def answered(self, found: Tensor, gate: Tensor | None) -> Tensor:
        """[num_tokens, hidden_size] of what was found."""
        if gate is not None:
            found = sigmoid_mul(found, gate)
        return product(found.flatten(1), self.output)

    def store(self, x: Tensor, source: Storage) -> None:
        """Store keys and values of ``x`` [num_tokens, hidden_size] alone."""
        both = product(x, self.inputs.last(2 * self.kv_size))
        k, v = torch.split(both, self.kv_size, dim=1)
        self._store(both.new_empty(len(x), 0, self.head_dim), k, v, source)

    def _taken_apart(self, given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = torch.split(given, [given.shape[1] - 2 * self.kv_size, self.kv_size, self.kv_size], dim=1)
        return q, k, v

    def _store(self, q: Tensor, k: Tensor, v: Tensor, source: Storage) -> Tensor:
        k, v = (heads_of(x, self.head_dim) for x in (k, v))
        q_weight, k_weight = self.norms
        return norm_rope_store(
            q, k, v, q_weight, k_weight, self.eps, self.zero_centered, *source.rope,
            source.pages(self.layer), source.slots,
        )  # fmt: skip


class Delta:
    """A gated delta layer. ``layer``: among those that have states."""

    def __init__(self, module: GatedDeltaNet, layer: int) -> None:
        self.layer = layer
        self.inputs = Product.of([module.in_proj_qkv, module.in_proj_z, module.in_proj_b, module.in_proj_a])
        self.output = Product.of([module.out_proj])
        self.z_at = slice(sum(module.sizes), sum(module.sizes) + module.sizes[2])
        self.shape = module.heads, module.value_dim  # of a token's outputs
        self.norm = Norm.of(module.norm)
        self.weights = DeltaWeights(
            module.conv1d.weight.detach().squeeze(1).contiguous(),
            module.A_log.detach().float(),
            module.dt_bias.detach().float(),
            module.key_heads,
        )

    @property
    def handed(self) -> Handed:
        """See :class:`Handed`."""
        return Handed((self.inputs.num_outputs,), self.shape, self.shape)

    def asked(self, x: Tensor, source: Inputs) -> tuple[Tensor, Tensor]:
        """The recurrence's inputs of ``x`` [num_tokens, hidden_size], and what gates its outputs."""
        projected = source.project(self.layer, x, self.inputs)
        return projected, heads_of(projected[:, self.z_at], self.shape[1])

    def mixed(self, asked: Tensor, source: Source) -> Tensor:
        """What the recurrence makes of its inputs."""
        return source.delta(self.layer, asked, self.weights)

    def answered(self, found: Tensor, gate: Tensor | None) -> Tensor:
        """[num_tokens, hidden_size] of its outputs."""
        assert gate is not None
        return product(gated_norm(found, gate, self.norm.weight, self.norm.eps).flatten(1), self.output)


class Dense:
    """SwiGLU."""

    def __init__(self, module: GatedMLP) -> None:
        self.inputs = Product.of([module.gate_proj, module.up_proj])
        self.output = Product.of([module.down_proj])

    def __call__(self, x: Tensor) -> Tensor:
        """[num_tokens, hidden_size] -> the same."""
        return product(gated_product(x, self.inputs), self.output)


class Sparse:
    """A mixture of experts. The router, the shared expert's inputs and its gate are one product."""

    def __init__(self, module: SparseMLP) -> None:
        self.module, shared = module, module.shared_expert
        modules = [module.gate]
        if shared is not None:
            modules = [shared.gate_proj, shared.up_proj, module.gate, module.shared_expert_gate]
        self.sizes = [one.out_features for one in modules]
        self.inputs = Product.of(modules)
        self.shared_output = None if shared is None else Product.of([shared.down_proj])

    def __call__(self, x: Tensor) -> Tensor:
        """[num_tokens, hidden_size] -> the same."""
        found, stacked = product(x, self.inputs), self.module.experts
        shared = gate = None
        if self.shared_output is not None:
            gate_up, found, gate = torch.split(found, [sum(self.sizes[:2]), *self.sizes[2:]], dim=1)
            shared = product(silu_mul(gate_up), self.shared_output)
        weights, chosen = route(found, self.module.top_k, self.module.normed)
        return experts(x, stacked.gate_up_proj, stacked.down_proj, chosen, weights, shared, gate)


class ClampedSparse:
    """gpt-oss' mixture of experts. Its weights, in codes or laid out so, have outputs first; the module's are views."""

    def __init__(self, module: GptOssMLP) -> None:
        stacked, self.top_k = module.experts, module.top_k
        self.router = Product.of([module.router])
        self.gate_up, self.down = (_outputs_first(one) for one in (stacked.gate_up_proj, stacked.down_proj))
        biases = stacked.gate_up_proj_bias.detach(), stacked.down_proj_bias.detach()
        self.clamped = ClampedSwiGLU(*biases, stacked.alpha, stacked.limit)

    def __call__(self, x: Tensor) -> Tensor:
        """[num_tokens, hidden_size] -> the same."""
        weights, chosen = route(product(x, self.router), self.top_k, True)
        return experts(x, self.gate_up, self.down, chosen, weights, clamped=self.clamped)


def _outputs_first(weight: Weight) -> Weight:
    """``weight`` [num_experts, inputs, outputs], which becomes a view of the other; codes lie so already."""
    if isinstance(weight, QuantizedWeight):
        return weight
    weight.data = weight.detach().transpose(1, 2).contiguous().transpose(1, 2)
    give_back_kept()
    return weight.detach().transpose(1, 2)


@dataclass(frozen=True)
class Layer:
    """One pre-norm layer."""

    before: Norm
    mixer: Attention | Delta
    between: Norm
    feed_forward: Any  # [num_tokens, hidden_size] -> the same
    convs: tuple[BlockConv, BlockConv] | None = None  # of a drafter's block, around the two


_FEED_FORWARD: dict[type[nn.Module], Any] = {GatedMLP: Dense, SparseMLP: Sparse, GptOssMLP: ClampedSparse}


def layers_of(modules: Sequence[nn.Module]) -> list[Layer]:
    """The layers of a decoder that :func:`why_unsupported` has nothing against."""
    made, num_attention, num_delta = [], 0, 0
    for module in modules:
        mixer: Attention | Delta
        if isinstance(module, Qwen3_5Layer) and module.is_linear:
            mixer, num_delta = Delta(module.linear_attn, num_delta), num_delta + 1
        else:
            assert isinstance(module, Qwen3_5Layer | LlamaLayer | DFlashLayer | GptOssLayer)
            mixer, num_attention = Attention(module.self_attn, num_attention), num_attention + 1
        mlp = _FEED_FORWARD[type(module.mlp)](module.mlp)
        convs = None
        if isinstance(module, DFlashLayer) and module.has_conv:
            convs = module.attention_conv, module.mlp_conv
        norms = Norm.of(module.input_layernorm), Norm.of(module.post_attention_layernorm)
        made.append(Layer(norms[0], mixer, norms[1], mlp, convs))
    return made


def why_unsupported(modules: Sequence[nn.Module]) -> str | None:
    """What keeps a decoder of these layers from running so, or None."""
    for module in modules:
        if type(module) not in (Qwen3_5Layer, LlamaLayer, DFlashLayer, GptOssLayer):
            return f"it does not know layers as {type(module).__name__}"
        mlp = module.mlp
        if type(mlp) not in _FEED_FORWARD or (isinstance(mlp, GatedMLP) and mlp.activation is not F.silu):
            return "it knows feed-forward networks with SiLU alone"
    return None


def run(
    layers: Sequence[Layer],
    last: Norm,
    x: Tensor,
    source: Source,
    feature_layers: Sequence[int] = (),
) -> tuple[Tensor, dict[int, Tensor]]:
    """Final hidden states [num_tokens, hidden_size] of ``x``, and outputs of ``feature_layers`` before their norms.

    Of layers without convolutions: convolved.py has the others.
    """
    features: dict[int, Tensor] = {}
    normed = layers[0].before.alone(x)
    for idx, layer in enumerate(layers):
        following = layers[idx + 1].before if idx + 1 < len(layers) else last
        normed, x = behind_mixing(layer, following, mixed(layer.mixer, normed, source), x)
        if idx in feature_layers:
            features[idx] = x
    return normed, features


def behind_mixing(layer: Layer, following: Norm, found: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The rest of ``layer``: its output by the norm that follows, and as it is, [num_tokens, hidden_size] both.

    ``found``: of its mixer; ``x``: its input.
    """
    normed, x = layer.between(found, x)
    return following(layer.feed_forward(normed), x)


def mixed(mixer: Attention | Delta, x: Tensor, source: Source) -> Tensor:
    """What ``mixer`` makes of ``x`` [num_tokens, hidden_size], of that shape."""
    asked, gate = mixer.asked(x, source)
    return mixer.answered(mixer.mixed(asked, source), gate)
