"""Which experts tokens are sent to, and the (token, chosen expert) pairs in the order of their experts.

One launch each; a step that asks nothing of the host can record them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_CHUNK = 1024  # pairs that the one program of a sort looks at together


@triton.jit  # type: ignore[untyped-decorator]
def _route_kernel(  # type: ignore[no-untyped-def]
    logits,
    weights,
    chosen,
    num_experts,
    logits_token,
    normed: tl.constexpr,
    top_k: tl.constexpr,
    tile: tl.constexpr,
):
    token, expert = tl.program_id(0).to(tl.int64), tl.arange(0, tile)
    seen = tl.load(logits + token * logits_token + expert, expert < num_experts, -float("inf")).to(tl.float32)
    likely = tl.exp(seen - tl.max(seen, 0))
    likely = likely / tl.sum(likely, 0)
    left, total = tl.where(expert < num_experts, likely, -1.0), 0.0
    for _ in tl.static_range(top_k):
        most, _at = tl.max(left, 0, return_indices=True)
        total += most
        left = tl.where(expert == _at, -1.0, left)
    if not normed:
        total = 1.0
    left = tl.where(expert < num_experts, likely, -1.0)
    for place in tl.static_range(top_k):
        most, at = tl.max(left, 0, return_indices=True)
        tl.store(weights + token * top_k + place, (most / total).to(weights.dtype.element_ty))
        tl.store(chosen + token * top_k + place, at.to(tl.int64))
        left = tl.where(expert == at, -1.0, left)


def route(logits: Tensor, top_k: int, normed: bool) -> tuple[Tensor, Tensor]:
    """Weights and numbers (int64) of the experts that tokens like most, as models/mlp.SparseMLP.route.

    ``logits`` [num_tokens, num_experts], rows apart as they like -> both [num_tokens, top_k], the likeliest first,
    of two alike the lower number. The softmax is float32. ``normed``: the weights are scaled to a sum of 1.
    """
    num_tokens, num_experts = logits.shape
    assert logits.stride(1) == 1, "a token's logits lie side by side"
    weights = torch.empty(num_tokens, top_k, dtype=logits.dtype, device=logits.device)
    chosen = torch.empty(num_tokens, top_k, dtype=torch.int64, device=logits.device)
    _route_kernel[(num_tokens,)](
        logits, weights, chosen, num_experts, logits.stride(0), normed=normed, top_k=top_k,
        tile=triton.next_power_of_2(num_experts), num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip
    return weights, chosen


@triton.jit  # type: ignore[untyped-decorator]
def _sort_kernel(  # type: ignore[no-untyped-def]
    chosen, order, blocks, cursors, num_pairs, num_blocks, num_experts,
    rows: tl.constexpr, tile: tl.constexpr, chunk: tl.constexpr,
):  # fmt: skip
    expert, at = tl.arange(0, tile), tl.arange(0, chunk)
    counts = tl.zeros([tile], tl.int32)
    for start in range(0, num_pairs, chunk):
        there = start + at < num_pairs
        counts += tl.histogram(tl.load(chosen + start + at, there, 0).to(tl.int32), tile, there)
    for start in range(0, num_blocks, chunk):
        place = blocks + (start + at) * 3
        tl.store(place, num_experts, start + at < num_blocks)
        tl.store(place + 1, 0, start + at < num_blocks)
        tl.store(place + 2, 0, start + at < num_blocks)
    ends = tl.cumsum(counts, 0)
    begins = ends - counts
    own_blocks = (counts + rows - 1) // rows
    first_block = tl.cumsum(own_blocks, 0) - own_blocks
    tl.store(cursors + expert, begins, expert < num_experts)
    tl.debug_barrier()
    for block in range(tl.max(own_blocks, 0)):
        is_own, place = block < own_blocks, blocks + (first_block + block) * 3
        tl.store(place, expert, is_own)
        tl.store(place + 1, begins + block * rows, is_own)
        tl.store(place + 2, ends, is_own)
    for start in range(0, num_pairs, chunk):
        there = start + at < num_pairs
        place = tl.atomic_add(cursors + tl.load(chosen + start + at, there, 0), 1, there)
        tl.store(order + place, start + at, there)


def sorted_pairs(chosen: Tensor, num_experts: int, rows: int) -> tuple[Tensor, Tensor]:
    """Pairs in the order of their experts, and blocks [num_blocks, 3]: expert, first of its places, end of them.

    ``chosen`` [num_tokens, top_k]. Both int32. Pairs of one expert come in any order. There are as many blocks of
    ``rows`` pairs as could be needed; ``num_experts`` in the place of an expert, no places: nothing to do.
    """
    num_pairs, device = chosen.numel(), chosen.device
    num_blocks = num_experts + num_pairs // rows
    order = torch.empty(num_pairs, dtype=torch.int32, device=device)
    blocks = torch.empty(num_blocks, 3, dtype=torch.int32, device=device)
    cursors = torch.empty(num_experts, dtype=torch.int32, device=device)
    _sort_kernel[(1,)](
        chosen, order, blocks, cursors, num_pairs, num_blocks, num_experts, rows=rows,
        tile=triton.next_power_of_2(num_experts), chunk=_CHUNK, num_warps=8,
    )  # fmt: skip
    return order, blocks
