"""Attention of a step's tokens on keys and values where they lie in pages: plain steps, blocks and trees in one form.

The online softmax of FlashAttention (arXiv 2205.14135) over tiles of keys, split into parts of a fixed length
(Flash-Decoding) that a second kernel joins in order. Tiles and parts begin at fixed keys, and a key that a query may
not see adds exact zeros, so that a token's bits depend neither on the width of its block nor on its neighbours.
"""

import math
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashdraft.ops.triton.key_parts import first_key, page_of, parts_used, with_tile
from flashdraft.ops.triton.row_attention import attend_rows

QUERIES = 16  # of one program: the rows of the smallest matrix product, whatever the width
PART = 256  # keys of one program
# Tiles of wide heads are small: of the first keys they have shorter parts, for else few programs have many tiles.
_SHORT_PART = 128
_IN_SHORT_PARTS = 1024  # keys
_WIDE = 128  # dimensions; heads with more are wide
_TILE = 64  # keys that it loads at a time; fewer where heads are wide
_JOINED = 8  # parts that are joined at a time
# Of the loop over tiles. Keys wait for the page's number, and that for a tree's path: each takes a stage of the loads
# under way, and with 3 of them a tile is asked for only when the one before is done.
_STAGES = 5
# Of so many rows a program has all parts (row_attention.py). Programs hide each other's waits, and more fit beside each
# other with fewer loads under way and few registers. 3,072 rows of 32 to 382 keys, heads of 64 dimensions, on an H200:
# 142 us a layer so, 163 with 4 stages, 165 with no bound of registers, 149 with 64; 191 with parts in the grid.
_MANY_ROWS, _STAGES_OF_MANY = 512, 2
_NARROW, _NARROW_REGISTERS = 64, 80
# With as few registers three programs fit on a multiprocessor, and not two: 0.94 of the time of 32 blocks of 8; of one
# row 1.1, for some are spilled.
_MANY_PROGRAMS, _REGISTERS = 1024, 168


@dataclass(frozen=True)
class Visible:
    """Which of a row's keys its tokens see: those from ``first`` to before ``last``, of a tree its own path alone.

    Keys count from a row's start. Of trees they count along a token's path: its key ``start + i`` is the staged token
    ``paths[.., i]``, so that a path's keys are summed as a chain's are.
    """

    first: Tensor  # int32 [rows, width]
    last: Tensor  # int32 [rows, width], at least 1
    start: Tensor | None = None  # int32 [rows]
    paths: Tensor | None = None  # int32 [rows, width, width]: places of staged tokens, from the root down

    def within(self, window: int | None) -> "Visible":
        """The same, of which a token sees the last ``window`` alone; None: all."""
        return self if window is None else replace(self, first=(self.last - window).clamp(min=0))


@triton.jit
def _on_path(key, is_key, path, staged_from):  # type: ignore[no-untyped-def]
    """Where the keys of a token's path lie, counted from the row's start."""
    staged = key - staged_from
    return tl.where(staged >= 0, staged_from + tl.load(path + staged, is_key & (staged >= 0), 0), key)


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    q, keys, values, table, first, last, start, paths, out, bests, totals,
    scale, width, num_heads, kv_heads, table_row, q_token, q_head, kv_slot, kv_head,
    groups: tl.constexpr, head_dim: tl.constexpr, dims: tl.constexpr, page_size: tl.constexpr,
    num_queries: tl.constexpr, tile: tl.constexpr, part_len: tl.constexpr, short: tl.constexpr,
    within: tl.constexpr, in_parts: tl.constexpr, is_tree: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    row, part, num_parts = tl.program_id(0).to(tl.int64), tl.program_id(2), tl.num_programs(2)
    head = tl.program_id(1) % kv_heads
    # Paths differ: of trees a program has one token's queries, padded.
    of_token: tl.constexpr = (groups + num_queries - 1) // num_queries * num_queries if is_tree else groups
    query = tl.program_id(1) // kv_heads * num_queries + tl.arange(0, num_queries)
    token, q_heads = query // of_token, head * groups + query % of_token
    is_query = (token < width) & (query % of_token < groups)
    lowest = tl.load(first + row * width + token, is_query, 1 << 30)
    highest = tl.load(last + row * width + token, is_query, 0)
    own = first_key(part, short, part_len, within)
    begin = tl.maximum(own, tl.min(lowest, 0) // tile * tile)
    end = tl.minimum(first_key(part + 1, short, part_len, within), tl.max(highest, 0))
    if in_parts:  # noqa: SIM102 - the first is known when it is compiled
        if own >= end:  # nobody joins it: of keys that are bounded coarsely many parts are such
            return
    dim = tl.arange(0, dims)
    is_dim = dim < head_dim
    q_at = (row * width + token) * q_token + q_heads * q_head
    queries = tl.load(q + q_at[:, None] + dim[None, :], is_query[:, None] & is_dim[None, :], 0.0)
    staged_from = tl.load(start + row) if is_tree else 0
    path = paths + (row * width + tl.max(tl.where(is_query, token, 0), 0)) * width
    best = tl.full([num_queries], float("-inf"), tl.float32)
    total = tl.zeros([num_queries], tl.float32)
    summed = tl.zeros([num_queries, dims], tl.float32)
    for at in range(begin, end, tile):
        key = at + tl.arange(0, tile)
        is_key = key < end
        place = _on_path(key, is_key, path, staged_from) if is_tree else key
        page = page_of(table + row * table_row, at, place, is_key, end, page_size, tile, is_tree)
        at_key = ((page * page_size + place % page_size) * kv_slot + head * kv_head)[:, None] + dim[None, :]
        best, total, summed = with_tile(
            best, total, summed, queries, keys + at_key, values + at_key, key, is_key, is_dim, lowest, highest, scale,
            precision,
        )  # fmt: skip
    heads_at = (row * width + token) * num_heads + q_heads
    if in_parts:
        places = heads_at * num_parts + part
        tl.store(bests + places, best, is_query)
        tl.store(totals + places, total, is_query)
        tl.store(out + places[:, None] * head_dim + dim[None, :], summed, is_query[:, None] & is_dim[None, :])
    else:
        joined = (summed / tl.where(total == 0.0, 1.0, total)[:, None]).to(out.dtype.element_ty)
        out_at = out + heads_at[:, None] * head_dim + dim[None, :]
        tl.store(out_at, joined, is_query[:, None] & is_dim[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _join(  # type: ignore[no-untyped-def]
    parts, bests, totals, last, sinks, out, num_heads, num_parts,
    head_dim: tl.constexpr, dims: tl.constexpr, part_len: tl.constexpr, short: tl.constexpr, within: tl.constexpr,
    most_parts: tl.constexpr, joined_parts: tl.constexpr, has_sinks: tl.constexpr,
    heads_each: tl.constexpr, whole_rows: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    num_keys = tl.load(last + token)
    used = parts_used(num_keys, short, part_len, within)
    if whole_rows:  # noqa: SIM102 - the first is known when it is compiled
        if used <= 1:  # it is told whole
            return
    for own in tl.static_range(heads_each):
        head = tl.program_id(1) * heads_each + own
        place = (token * num_heads + head) * num_parts
        number = tl.arange(0, most_parts)
        every = tl.load(bests + place + number, number < used, float("-inf"))
        best = tl.max(every, 0)
        dim = tl.arange(0, dims)
        total = tl.zeros([1], tl.float32)
        if has_sinks:
            sink = tl.load(sinks + head).to(tl.float32)
            best = tl.maximum(best, sink)
            total += tl.exp(sink - best)
        summed = tl.zeros([dims], tl.float32)
        for at in range(0, used, joined_parts):  # each waits for memory once
            part = at + tl.arange(0, joined_parts)
            weight = tl.exp(tl.load(bests + place + part, part < used, float("-inf")) - best)
            total += tl.sum(tl.load(totals + place + part, part < used, 0.0) * weight, 0)
            is_there = (part < used)[:, None] & (dim < head_dim)[None, :]
            there = tl.load(parts + (place + part)[:, None] * head_dim + dim[None, :], is_there, 0.0)
            summed += tl.sum(there * weight[:, None], 0)
        joined = (summed / tl.where(total == 0.0, 1.0, total)).to(out.dtype.element_ty)
        tl.store(out + (token * num_heads + head) * head_dim + dim, joined, dim < head_dim)


def _parts(head_dim: int) -> dict[str, int]:
    """How keys are split among programs: see :func:`flashdraft.ops.triton.key_parts.first_key`."""
    short = _SHORT_PART if head_dim > _WIDE else PART
    return {"part_len": PART, "short": short, "within": _IN_SHORT_PARTS}


def parts_of(num_keys: int, head_dim: int) -> int:
    """How many parts ``num_keys`` keys are split into."""
    first = min(num_keys, _IN_SHORT_PARTS)
    return -(-first // _parts(head_dim)["short"]) - (first - num_keys) // PART


def paged_attention(
    q: Tensor, keys: Tensor, values: Tensor, table: Tensor, visible: Visible, page_size: int, num_keys: int,
    scale: float | None = None, sinks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Attention of ``q`` [rows, width, heads, head_dim] on what ``visible`` says, the same shape, contiguous.

    ``keys``, ``values`` [num_slots, kv_heads, head_dim] (last dimension contiguous) in pages of ``page_size`` slots;
    ``table`` int32 [rows, num_pages]: each row's pages in order. ``num_keys``: an upper bound of ``visible.last``
    that the host knows; it changes no bit. ``scale``: left out, ``head_dim ** -0.5``. ``sinks`` [heads]: one more score
    a head, which takes weight and gives nothing (AttentionSpec.sinks).
    """
    rows, width, num_heads, head_dim = q.shape
    kv_heads = keys.shape[1]
    groups, dims = num_heads // kv_heads, triton.next_power_of_2(head_dim)
    out = torch.empty((rows, width, num_heads, head_dim), dtype=q.dtype, device=q.device)
    num_parts = parts_of(num_keys, head_dim)
    in_parts = num_parts > 1 or sinks is not None
    summed, bests, totals = out, out, out
    if in_parts:
        of_parts = (rows, width, num_heads, num_parts)
        summed = torch.empty((*of_parts, head_dim), dtype=torch.float32, device=q.device)
        bests, totals = torch.empty((2, *of_parts), dtype=torch.float32, device=q.device)
    is_tree = visible.paths is not None
    tiles = width * triton.cdiv(groups, QUERIES) if is_tree else triton.cdiv(width * groups, QUERIES)
    given = {
        "groups": groups, "head_dim": head_dim, "dims": dims, "page_size": page_size, "num_queries": QUERIES,
        "tile": _TILE if dims <= 128 else _TILE // 2, **_parts(head_dim), "in_parts": in_parts,
        "precision": "ieee" if q.dtype == torch.float32 else "tf32", "num_warps": 4,
    }  # fmt: skip
    shape = width, num_heads, kv_heads
    strides = table.stride(0), q.stride(1), q.stride(2), keys.stride(0), keys.stride(1)
    scale = head_dim**-0.5 if scale is None else scale
    has_many_rows = rows >= _MANY_ROWS
    whole_rows = has_many_rows and sinks is None and not is_tree
    if whole_rows:
        attend_rows[(kv_heads * tiles, rows)](
            q, keys, values, table, visible.first, visible.last, summed, bests, totals, out,
            scale, *shape, num_parts, *strides, **given, num_stages=_STAGES_OF_MANY,
            maxnreg=_NARROW_REGISTERS if dims <= _NARROW else _REGISTERS,
        )  # fmt: skip
    else:
        grid = (rows, kv_heads * tiles, num_parts)
        many_programs = {"maxnreg": _REGISTERS} if math.prod(grid) >= _MANY_PROGRAMS else {}
        stages = _STAGES_OF_MANY if has_many_rows else _STAGES + 2 * is_tree
        _attend[grid](
            q, keys, values, table, visible.first, visible.last,
            visible.start if is_tree else table, visible.paths if is_tree else table, summed, bests, totals,
            scale, *shape, *strides, **given, is_tree=is_tree,
            num_stages=3 if q.element_size() > 2 else stages, **many_programs,
        )  # fmt: skip
    if in_parts:
        each = groups if whole_rows else 1
        _join[(rows * width, num_heads // each)](
            summed, bests, totals, visible.last, q if sinks is None else sinks, out, num_heads, num_parts,
            head_dim=head_dim, dims=dims, **_parts(head_dim), most_parts=triton.next_power_of_2(num_parts),
            joined_parts=_JOINED, has_sinks=sinks is not None, heads_each=each, whole_rows=whole_rows,
            num_warps=1,
        )  # fmt: skip
    return out
