"""Feed-forward networks: dense, or a mixture of experts with or without a shared one."""

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashdraft.ops.quantized import QuantizedWeight


class GatedMLP(nn.Module):
    """``down(activation(gate(x)) * up(x))``; SwiGLU with the usual activation, silu."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        bias: bool = False,
        activation: Callable[[Tensor], Tensor] = F.silu,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden_size] -> [..., hidden_size]."""
        out: Tensor = self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
        return out


class Experts(nn.Module):
    """The experts' weights, stacked."""

    gate_up_proj: Any  # [num_experts, 2 intermediate_size, hidden_size], gates first
    down_proj: Any  # [num_experts, hidden_size, intermediate_size]

    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        activation: Callable[[Tensor], Tensor] = F.silu,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * intermediate_size, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, intermediate_size))

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum [num_tokens, hidden_size] of the experts ``chosen`` [num_tokens, top_k] for each token."""
        out = torch.zeros_like(x)
        for expert in chosen.unique().tolist():  # type: ignore[no-untyped-call]
            token, place = torch.where(chosen == expert)
            out.index_add_(0, token, self.of_one(expert, x[token]) * weights[token, place, None])
        return out

    def of_one(self, expert: int, x: Tensor) -> Tensor:
        """One expert's output [num_tokens, hidden_size] for ``x``."""
        gate_up, down = self.matrices(expert)
        gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
        return F.linear(self.activation(gate) * up, down)

    def matrices(self, expert: int) -> tuple[Tensor, Tensor]:
        """One expert's [2 intermediate_size, hidden_size] and [hidden_size, intermediate_size]."""
        return self.gate_up_proj[expert], self.down_proj[expert]

    def shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(outputs of all experts, inputs) of gates and ups, and of what follows them."""
        num_experts, size, width = self.down_proj.shape
        return (num_experts * 2 * width, size), (num_experts * size, width)

    def in_codes(self, gate_up_proj: QuantizedWeight, down_proj: QuantizedWeight) -> "Experts":
        """The same experts with weights in codes of :meth:`shapes`."""
        return ExpertsInCodes(len(self.down_proj), gate_up_proj, down_proj, self.activation)


class ExpertsInCodes(Experts):
    """The same with weights in codes, whose outputs lie one after the other, an expert after the other."""

    def __init__(
        self,
        num_experts: int,
        gate_up_proj: QuantizedWeight,
        down_proj: QuantizedWeight,
        activation: Callable[[Tensor], Tensor] = F.silu,
    ) -> None:
        nn.Module.__init__(self)
        self.activation = activation
        self.num_experts, self.gate_up_proj, self.down_proj = num_experts, gate_up_proj, down_proj

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.gate_up_proj, self.down_proj = (one.followed(fn) for one in (self.gate_up_proj, self.down_proj))
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call,no-any-return]

    def matrices(self, expert: int) -> tuple[Tensor, Tensor]:
        """See :class:`Experts`."""
        both = self.gate_up_proj, self.down_proj
        sizes = [len(one) // self.num_experts for one in both]
        gate_up, down = (
            one[expert * size : (expert + 1) * size] for one, size in zip(both, sizes, strict=True)
        )
        return gate_up.dequantized(), down.dequantized()


def has_experts(network: nn.Module) -> bool:
    """Whether layers of it choose experts, which asks the host."""
    return any(isinstance(module, Experts) for module in network.modules())


class SparseMLP(nn.Module):
    """A few experts for each token: those that the router likes most, weighted by its softmax.

    ``norm_topk_prob`` scales the chosen weights to a sum of one. A shared expert, gated, sees every token.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.normed = getattr(config, "norm_topk_prob", True)
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = Experts(config.num_experts, config.hidden_size, config.moe_intermediate_size)
        self.shared_expert: GatedMLP | None = None
        # Qwen3-Coder-30B-A3B has none and says so with a 0.
        if shared_size := getattr(config, "shared_expert_intermediate_size", None):
            self.shared_expert = GatedMLP(config.hidden_size, shared_size)
            self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False)

    def route(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and numbers of the experts of ``rows`` [num_tokens, hidden_size], both [num_tokens, top_k]."""
        weights, chosen = self.gate(rows).float().softmax(-1).topk(self.top_k, dim=-1)
        if self.normed:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights.to(rows.dtype), chosen

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden_size] -> [..., hidden_size]."""
        rows = x.reshape(-1, x.shape[-1])
        weights, chosen = self.route(rows)
        out: Tensor = self.experts(rows, chosen, weights)
        if self.shared_expert is not None:
            out = out + self.shared_expert_gate(rows).sigmoid() * self.shared_expert(rows)
        return out.view(x.shape)


def feed_forward(config: Any, layer_idx: int = 0) -> GatedMLP | SparseMLP:
    """What ``config`` says of a layer: sparse where it has experts, every ``decoder_sparse_step``-th layer of them."""
    step = getattr(config, "decoder_sparse_step", 1) or 1
    is_dense = layer_idx in (getattr(config, "mlp_only_layers", None) or ()) or (layer_idx + 1) % step != 0
    if getattr(config, "num_experts", 0) and not is_dense:
        return SparseMLP(config)
    return GatedMLP(config.hidden_size, config.intermediate_size, getattr(config, "mlp_bias", False))
