"""Where a row's keys lie, in pages and in parts that begin at fixed keys, and how attention takes a tile of them."""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def page_of(  # type: ignore[no-untyped-def]
    table, at, place, is_key, end, page_size: tl.constexpr, tile: tl.constexpr, is_tree: tl.constexpr
):
    """The pages of the keys at ``place``, ``tile`` of them from ``at`` on: of whole pages, each asked for once."""
    if is_tree or tile % page_size != 0:
        page = tl.load(table + place // page_size, is_key, 0)
    else:
        pages: tl.constexpr = tile // page_size
        number = at // page_size + tl.arange(0, pages)
        page = tl.load(table + number, number * page_size < end, 0)
        page = tl.reshape(tl.broadcast_to(page[:, None], (pages, page_size)), (tile,))
    return page.to(tl.int64)


@triton.jit  # type: ignore[untyped-decorator]
def first_key(part, short: tl.constexpr, part_len: tl.constexpr, within: tl.constexpr):  # type: ignore[no-untyped-def]
    """The first key of a part: of ``short`` ones, ``within`` so many keys from the start, or of those behind them."""
    few: tl.constexpr = within // short
    return tl.where(part < few, part * short, within + (part - few) * part_len)


@triton.jit  # type: ignore[untyped-decorator]
def parts_used(num_keys, short: tl.constexpr, part_len: tl.constexpr, within: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many parts the first ``num_keys`` keys lie in."""
    return tl.cdiv(tl.minimum(num_keys, within), short) + tl.cdiv(tl.maximum(num_keys - within, 0), part_len)


@triton.jit  # type: ignore[untyped-decorator]
def with_tile(  # type: ignore[no-untyped-def]
    best, total, summed, queries, keys, values, key, is_key, is_dim, lowest, highest, scale, precision: tl.constexpr,
):  # fmt: skip
    """The online softmax (arXiv 2205.14135) with one more tile: largest scores, sums of weights and of values.

    ``keys``, ``values``: pointers [keys, dimensions] of the keys numbered ``key``; a query sees ``lowest`` to before
    ``highest`` of them.
    """
    k = tl.load(keys, is_key[:, None] & is_dim[None, :], 0.0)
    v = tl.load(values, is_key[:, None] & is_dim[None, :], 0.0)
    visible = (key[None, :] >= lowest[:, None]) & (key[None, :] < highest[:, None])
    scores = tl.dot(queries, tl.trans(k), input_precision=precision) * scale
    scores = tl.where(visible, scores, float("-inf"))
    new_best = tl.maximum(best, tl.max(scores, 1))
    reference = tl.where(new_best == float("-inf"), 0.0, new_best)  # nothing seen so far
    weights = tl.exp(scores - reference[:, None])
    kept = tl.exp(best - reference)
    total = total * kept + tl.sum(weights, 1)
    summed = summed * kept[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=precision)
    return new_best, total, summed
