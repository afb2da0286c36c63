"""Attention of thousands of rows: one program has all keys of a row and K/V head, part after part.

So many programs fill a GPU without splitting keys among them. A grid with a place for each part that a bound of keys
makes room for has mostly programs that find none. Parts are those of paged_attention.py, and a token's bits too.
"""

import triton
import triton.language as tl

from flashdraft.ops.triton.key_parts import first_key, page_of, parts_used, with_tile


@triton.jit  # type: ignore[untyped-decorator]
def attend_rows(  # type: ignore[no-untyped-def]
    q, keys, values, table, first, last, parts, bests, totals, out,
    scale, width, num_heads, kv_heads, num_parts, table_row, q_token, q_head, kv_slot, kv_head,
    groups: tl.constexpr, head_dim: tl.constexpr, dims: tl.constexpr, page_size: tl.constexpr,
    num_queries: tl.constexpr, tile: tl.constexpr, part_len: tl.constexpr, short: tl.constexpr,
    within: tl.constexpr, in_parts: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """As paged_attention._attend, of chains. A token whose keys lie in one part is told whole: nothing is to join."""
    # A row's heads are next to each other, as they are in memory.
    row, head = tl.program_id(1).to(tl.int64), tl.program_id(0) % kv_heads
    query = tl.program_id(0) // kv_heads * num_queries + tl.arange(0, num_queries)
    token, q_heads = query // groups, head * groups + query % groups
    is_query = token < width
    lowest = tl.load(first + row * width + token, is_query, 1 << 30)
    highest = tl.load(last + row * width + token, is_query, 0)
    seen_from, seen_to = tl.min(lowest, 0) // tile * tile, tl.max(highest, 0)
    is_joined = is_query & (parts_used(highest, short, part_len, within) > 1)
    table += row * table_row
    dim = tl.arange(0, dims)
    is_dim = dim < head_dim
    q_at = (row * width + token) * q_token + q_heads * q_head
    queries = tl.load(q + q_at[:, None] + dim[None, :], is_query[:, None] & is_dim[None, :], 0.0)
    heads_at = (row * width + token) * num_heads + q_heads
    for part in range(0, parts_used(seen_to, short, part_len, within)):
        begin = tl.maximum(first_key(part, short, part_len, within), seen_from)
        end = tl.minimum(first_key(part + 1, short, part_len, within), seen_to)
        best = tl.full([num_queries], float("-inf"), tl.float32)
        total = tl.zeros([num_queries], tl.float32)
        summed = tl.zeros([num_queries, dims], tl.float32)
        for at in range(begin, end, tile):
            key = at + tl.arange(0, tile)
            is_key = key < end
            page = page_of(table, at, key, is_key, end, page_size, tile, False)
            at_key = ((page * page_size + key % page_size) * kv_slot + head * kv_head)[:, None] + dim[None, :]
            best, total, summed = with_tile(
                best, total, summed, queries, keys + at_key, values + at_key, key, is_key, is_dim, lowest, highest,
                scale, precision,
            )  # fmt: skip
        if in_parts:
            places = heads_at * num_parts + part
            tl.store(bests + places, best, is_joined)
            tl.store(totals + places, total, is_joined)
            at_part = parts + places[:, None] * head_dim + dim[None, :]
            tl.store(at_part, summed, is_joined[:, None] & is_dim[None, :])
        if part == 0:
            whole = (summed / tl.where(total == 0.0, 1.0, total)[:, None]).to(out.dtype.element_ty)
            is_whole = (is_query & (is_joined == 0))[:, None] & is_dim[None, :]
            tl.store(out + heads_at[:, None] * head_dim + dim[None, :], whole, is_whole)
