"""Kernels between matrix products under Triton's interpreter, against the PyTorch functions they replace."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flashdraft.ops.norm import RMSNorm, ZeroCenteredRMSNorm
from flashdraft.ops.rope import rotate
from flashdraft.ops.triton.fused import add_rms_norm, norm_rope_store, silu_mul

DTYPES = [torch.float32, torch.bfloat16]
EPS = 1e-6


def agree(found: Tensor, expected: Tensor) -> None:
    """But for one unit in the last place, where a sum's order or an exponential tips a rounding."""
    unit = torch.finfo(expected.dtype).eps
    torch.testing.assert_close(found, expected, atol=max(unit, 1e-6), rtol=max(unit, 1e-6))


def norm_of(size: int, zero_centered: bool, dtype: torch.dtype) -> RMSNorm | ZeroCenteredRMSNorm:
    norm = (ZeroCenteredRMSNorm if zero_centered else RMSNorm)(size, EPS).to(dtype).requires_grad_(False)
    norm.weight.normal_(std=0.5)
    return norm


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("zero_centered", [False, True])
@pytest.mark.parametrize(("num_tokens", "size"), [(1, 48), (3, 64), (5, 1100)])
def test_add_rms_norm(num_tokens, size, zero_centered, dtype):
    torch.manual_seed(size)
    x, residual = torch.randn(num_tokens, 2 * size, dtype=dtype).chunk(2, dim=-1)
    norm = norm_of(size, zero_centered, dtype)
    normed, total = add_rms_norm(x, residual, norm.weight, EPS, zero_centered)
    assert torch.equal(total, residual + x)
    agree(normed, norm(residual + x))
    alone = add_rms_norm(x[-1:], residual[-1:], norm.weight, EPS, zero_centered)[0]
    assert torch.equal(alone, normed[-1:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_tokens", "size"), [(1, 16), (3, 1100)])
def test_silu_mul(num_tokens, size, dtype):
    gate_up = 3 * torch.randn(num_tokens, 2 * size, dtype=dtype)
    gate, up = gate_up.chunk(2, dim=-1)
    agree(silu_mul(gate_up), F.silu(gate) * up)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("zero_centered", [None, False, True], ids=["no norm", "norm", "zero-centred"])
@pytest.mark.parametrize(
    ("num_tokens", "heads", "kv_heads", "head_dim", "rotary_dim"),
    [(1, 2, 1, 16, 16), (3, 3, 1, 12, 12), (2, 4, 2, 64, 16), (2, 1, 1, 24, 6), (2, 9, 3, 256, 64)],
)
def test_norm_rope_store(num_tokens, heads, kv_heads, head_dim, rotary_dim, zero_centered, dtype):
    torch.manual_seed(head_dim)
    queries_gates = torch.randn(num_tokens, heads, 2 * head_dim, dtype=dtype)  # as Qwen3.5 projects them
    q = queries_gates[..., :head_dim]
    k, v = torch.randn(num_tokens, 2 * kv_heads * head_dim, dtype=dtype).chunk(2, dim=-1)
    k, v = k.view(num_tokens, kv_heads, head_dim), v.view(num_tokens, kv_heads, head_dim)
    angles = torch.randn(num_tokens, rotary_dim // 2).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    storage = torch.randn(11, 3, 2, kv_heads, head_dim, dtype=dtype)
    before, slots = storage.clone(), torch.randperm(11)[:num_tokens]
    q_norm = norm_of(head_dim, bool(zero_centered), dtype)
    k_norm = norm_of(head_dim, bool(zero_centered), dtype)
    weights = (None, None) if zero_centered is None else (q_norm.weight, k_norm.weight)

    out = norm_rope_store(q, k, v, *weights, EPS, bool(zero_centered), cos, sin, storage[:, 1], slots)

    def expected(x, norm):
        normed = x if zero_centered is None else norm(x)
        return rotate(normed, cos.unsqueeze(1), sin.unsqueeze(1))

    agree(out, expected(q, q_norm))
    agree(storage[slots, 1, 0], expected(k, k_norm))
    assert torch.equal(storage[slots, 1, 1], v)
    before[slots, 1] = storage[slots, 1]
    assert torch.equal(storage, before)  # and nothing else is written


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "rotary_dim"), [(9, 3, 64, 64), (2, 1, 24, 12)])
def test_heads_without_norms_are_rotated_as_those_with(heads, kv_heads, head_dim, rotary_dim, dtype):
    """The two kernels round alike: with norms of queries alone, keys have the same bits."""
    torch.manual_seed(head_dim)
    q = torch.randn(3, heads, head_dim, dtype=dtype)
    k, v = torch.randn(2, 3, kv_heads, head_dim, dtype=dtype)
    angles = torch.randn(3, rotary_dim // 2).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    ones, found = torch.ones(head_dim, dtype=dtype), []
    for weight in (None, ones):
        storage = torch.zeros(3, 2, kv_heads, head_dim, dtype=dtype)
        norm_rope_store(q, k, v, weight, None, EPS, False, cos, sin, storage, torch.tensor([2, 0, 1]))
        found.append(storage)
    assert torch.equal(*found)
