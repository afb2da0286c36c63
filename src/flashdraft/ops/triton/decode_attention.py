"""One query a row against its own part of a cache: what a decoding step of many rows reads, and no more.

The online softmax of FlashAttention (arXiv 2205.14135), one program for each row and K/V head; the query heads of a
group share each key that is loaded.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64  # keys a program loads at a time
MIN_QUERIES = 16  # the least that the matrix units take; groups are padded to it


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    q, k, v, lengths, out,
    q_row, q_head, k_row, k_head, k_token, v_row, v_head, v_token, out_row, out_head,
    groups: tl.constexpr, head_dim: tl.constexpr, num_queries: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    length = tl.load(lengths + row)
    scale: tl.constexpr = head_dim**-0.5  # a constant: as an argument, a compiled graph makes it float64
    queries, dims = tl.arange(0, num_queries), tl.arange(0, head_dim)
    is_query = (queries < groups)[:, None]
    heads = (head * groups + queries)[:, None]
    query = tl.load(q + row * q_row + heads * q_head + dims[None, :], mask=is_query, other=0.0)
    best = tl.full([num_queries], float("-inf"), tl.float32)
    total = tl.zeros([num_queries], tl.float32)
    summed = tl.zeros([num_queries, head_dim], tl.float32)
    for start in range(0, length, tile):
        tokens = start + tl.arange(0, tile)
        is_token = (tokens < length)[:, None]
        keys = tl.load(
            k + row * k_row + head * k_head + tokens[:, None] * k_token + dims[None, :], is_token, 0.0
        )
        values = tl.load(
            v + row * v_row + head * v_head + tokens[:, None] * v_token + dims[None, :], is_token, 0.0
        )
        scores = tl.dot(query, tl.trans(keys)) * scale
        scores = tl.where((tokens < length)[None, :], scores, float("-inf"))
        new_best = tl.maximum(best, tl.max(scores, 1))
        weights = tl.exp(scores - new_best[:, None])
        kept = tl.exp(best - new_best)
        total = total * kept + tl.sum(weights, 1)
        summed = summed * kept[:, None] + tl.dot(weights.to(values.dtype), values)
        best = new_best
    target = out + row * out_row + heads * out_head + dims[None, :]
    tl.store(target, (summed / total[:, None]).to(query.dtype), mask=is_query)


def decode_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
    """Attention of ``q`` [rows, heads, 1, head_dim] on the first ``lengths[row]`` (at least 1) of its row's keys.

    ``k``, ``v`` [rows, kv_heads, kv_len, head_dim], head_dim a power of 2 and 16 or more. Returns
    [rows, heads, 1, head_dim].
    """
    rows, num_heads, _, head_dim = q.shape
    groups = num_heads // k.shape[1]
    out = torch.empty((rows, num_heads, 1, head_dim), dtype=q.dtype, device=q.device)
    _kernel[(rows, k.shape[1])](
        q, k, v, lengths, out,
        q.stride(0), q.stride(1), *k.stride()[:3], *v.stride()[:3], out.stride(0), out.stride(1),
        groups=groups, head_dim=head_dim, num_queries=max(triton.next_power_of_2(groups), MIN_QUERIES), tile=TILE,
        num_warps=2, num_stages=3,
    )  # fmt: skip
    return out
