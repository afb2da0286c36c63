"""Where a row's keys lie: in pages, and in parts that begin at fixed keys."""

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
