"""The mixture of experts as kernels under Triton's interpreter, against models/mlp.py."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import GptOssConfig

from flashdraft.cuda.layers import ClampedSparse
from flashdraft.models.gpt_oss import GptOssMLP
from flashdraft.models.mlp import SparseMLP
from flashdraft.ops.triton.experts import NUM_EXACT, NUM_FEW, experts

HIDDEN, NUM_EXPERTS = 44, 9


def sparse_mlp(top_k: int, dtype: torch.dtype, intermediate_size: int = 20) -> SparseMLP:
    torch.manual_seed(top_k)
    config = SimpleNamespace(
        hidden_size=HIDDEN,
        num_experts=NUM_EXPERTS,
        num_experts_per_tok=top_k,
        moe_intermediate_size=intermediate_size,
        shared_expert_intermediate_size=12,
    )
    mlp = SparseMLP(config).requires_grad_(False)
    for parameter in mlp.parameters():
        parameter.normal_(std=0.3)
    return mlp.to(dtype)


def routed(mlp: SparseMLP, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the router chooses, and how much of each."""
    weights, chosen = mlp.gate(x).float().softmax(-1).topk(mlp.top_k, dim=-1)
    return chosen, (weights / weights.sum(-1, keepdim=True)).to(x.dtype)


def by_kernels(mlp: SparseMLP, x: Tensor, chosen: Tensor, weights: Tensor, *shared: Tensor) -> Tensor:
    return experts(x, mlp.experts.gate_up_proj, mlp.experts.down_proj, chosen, weights, *shared)


def agree(found: Tensor, expected: Tensor) -> None:
    """bfloat16: the kernel sums an expert after the other in float32, PyTorch rounds each sum."""
    tolerance = 1e-5 if expected.dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("num_tokens", "top_k", "intermediate_size"), [(1, 1, 20), (1, 4, 130), (5, 8, 20), (12, 3, 33)]
)
def test_the_network_is_the_same(num_tokens, top_k, intermediate_size, dtype):
    """With a shared expert, x a slice."""
    mlp = sparse_mlp(top_k, dtype, intermediate_size)
    x = torch.randn(num_tokens, 2 * HIDDEN, dtype=dtype)[:, :HIDDEN]
    shared = mlp.shared_expert(x), mlp.shared_expert_gate(x)
    agree(by_kernels(mlp, x, *routed(mlp, x), *shared), mlp(x))


@pytest.mark.parametrize(
    ("num_tokens", "dtype"), [(3, torch.float32), (3, torch.bfloat16), (NUM_FEW // 2 + 1, torch.float32)]
)
def test_experts_with_biases_and_a_clamped_swiglu(num_tokens, dtype):
    """gpt-oss', whose rows of gates and ups come in turn; the limit is reached now and then."""
    torch.manual_seed(num_tokens)
    config = GptOssConfig(
        hidden_size=HIDDEN, intermediate_size=20, num_local_experts=NUM_EXPERTS, num_experts_per_tok=2,
        swiglu_limit=1.0,
    )  # fmt: skip
    mlp = GptOssMLP(config).requires_grad_(False)
    for parameter in mlp.parameters():
        parameter.normal_(std=0.3)
    mlp, x = mlp.to(dtype), torch.randn(num_tokens, HIDDEN, dtype=dtype)
    expected = mlp(x)
    gate_up = x @ mlp.experts.gate_up_proj[0] + mlp.experts.gate_up_proj_bias[0]
    assert 0.01 < (gate_up.abs() > 1.0).float().mean() < 0.9
    agree(ClampedSparse(mlp)(x), expected)
    agree(mlp(x), expected)


def test_prompts():
    """In larger tiles; most experts have more pairs than a block has rows."""
    mlp = sparse_mlp(1, torch.bfloat16)
    x = torch.randn(NUM_EXACT + 1, HIDDEN, dtype=torch.bfloat16)
    chosen, weights = routed(mlp, x)
    agree(by_kernels(mlp, x, chosen, weights), mlp.experts(x, chosen, weights))


def test_all_tokens_may_want_the_same_experts():
    """Their blocks of rows are full again and again; the other experts have no block."""
    mlp = sparse_mlp(2, torch.float32)
    x = torch.randn(40, HIDDEN)
    chosen, weights = torch.tensor([[6, 3]]).repeat(40, 1), torch.rand(40, 2)
    agree(by_kernels(mlp, x, chosen, weights), mlp.experts(x, chosen, weights))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_has_the_bits_that_it_has_alone(dtype):
    """Alone, among few and among sorted pairs, of which most experts have more than a block has rows."""
    mlp = sparse_mlp(8, dtype)
    x = torch.randn(NUM_FEW // 8 + 1, HIDDEN, dtype=dtype)
    chosen, weights = routed(mlp, x)
    many = by_kernels(mlp, x, chosen, weights)
    agree(many, mlp.experts(x, chosen, weights))
    few = by_kernels(mlp, x[:6], chosen[:6], weights[:6])
    assert torch.equal(few, many[:6])
    for token in (0, 5):
        one = slice(token, token + 1)
        assert torch.equal(by_kernels(mlp, x[one], chosen[one], weights[one]), many[one])
