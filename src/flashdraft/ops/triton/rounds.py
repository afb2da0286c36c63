"""Where rows stand as a round begins and as it ends, in one launch each.

By PyTorch each of these is a dozen launches, of which each has a few numbers of a row.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashdraft.ops import sampling_rule

# What the host tells of a row, in this order; its pages follow.
SOURCE, START, ANCHOR, BLOCK, LENGTH, MAX_LEN, SLOT, ACCEPTED, TREE, RULE = range(10)
NUM_COLUMNS = RULE + sampling_rule.NUM_COLUMNS
_ROWS = 32  # of a program
_SOURCE, _START, _ANCHOR, _BLOCK, _LENGTH, _MAX_LEN = (
    tl.constexpr(one) for one in (SOURCE, START, ANCHOR, BLOCK, LENGTH, MAX_LEN)
)


@dataclass(frozen=True)
class Begun:
    """The rows of a round; int64 [rows] where nothing else is said."""

    columns: Tensor  # [NUM_COLUMNS, rows]: what the host told
    starts: Tensor  # tokens that each has
    anchors: Tensor  # its last one
    most: Tensor  # drafts that may be accepted
    begins: Tensor  # int32: ``starts``
    ends: Tensor  # int32: behind its block


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def _begin_kernel(  # type: ignore[no-untyped-def]
    numbers, kept_starts, kept_anchors, columns, places, bounds, num_rows, number_row,
    num_columns: tl.constexpr, rows: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    there = row < num_rows
    numbers += row * number_row
    for column in tl.static_range(num_columns):
        number = tl.load(numbers + column, there, 0).to(tl.int64)
        tl.store(columns + column * num_rows + row, number, there)
    source = tl.load(numbers + _SOURCE, there, -1)
    goes_on = there & (source >= 0)
    start = tl.load(numbers + _START, there, 0).to(tl.int64)
    anchor = tl.load(numbers + _ANCHOR, there, 0).to(tl.int64)
    start = tl.where(goes_on, tl.load(kept_starts + source, goes_on, 0), start)
    anchor = tl.where(goes_on, tl.load(kept_anchors + source, goes_on, 0), anchor)
    left = tl.load(numbers + _MAX_LEN, there, 0) - start - 1
    most = tl.maximum(tl.minimum(tl.load(numbers + _LENGTH, there, 0), left) - 1, 0)
    tl.store(places + row, start, there)
    tl.store(places + num_rows + row, anchor, there)
    tl.store(places + 2 * num_rows + row, most, there)
    tl.store(bounds + row, start.to(tl.int32), there)
    tl.store(bounds + num_rows + row, (start + tl.load(numbers + _BLOCK, there, 0)).to(tl.int32), there)


def begun(numbers: Tensor, kept_starts: Tensor, kept_anchors: Tensor) -> Begun:
    """The rows of ``numbers`` int32 [rows, NUM_COLUMNS + pages], as the host told them.

    A row with a SOURCE of at least 0 goes on from where the round before left that row: ``kept_starts``,
    ``kept_anchors`` int64.
    """
    num_rows, device = len(numbers), numbers.device
    columns = torch.empty(NUM_COLUMNS, num_rows, dtype=torch.int64, device=device)
    places = torch.empty(3, num_rows, dtype=torch.int64, device=device)
    bounds = torch.empty(2, num_rows, dtype=torch.int32, device=device)
    assert numbers.stride(1) == 1
    _begin_kernel[(triton.cdiv(num_rows, _ROWS),)](
        numbers, kept_starts, kept_anchors, columns, places, bounds, num_rows, numbers.stride(0),
        num_columns=NUM_COLUMNS, rows=_ROWS, num_warps=1,
    )  # fmt: skip
    return Begun(columns, *places, *bounds)


@triton.jit(do_not_specialize=["num_tokens", "width"])  # type: ignore[untyped-decorator]
def _place_kernel(  # type: ignore[no-untyped-def]
    begins, pages, places, slots, first, last, num_tokens, width, begin_row, page_row,
    page_size: tl.constexpr, tokens: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * tokens + tl.arange(0, tokens)
    there, row = at < num_tokens, at // width
    place = tl.load(begins + row * begin_row, there, 0) + at % width
    page = tl.load(pages + row.to(tl.int64) * page_row + place // page_size, there, 0).to(tl.int64)
    tl.store(places + at, place.to(tl.int64), there)
    tl.store(slots + at, page * page_size + place % page_size, there)
    tl.store(first + at, place * 0, there)
    tl.store(last + at, place + 1, there)


def placed(
    begins: Tensor, pages: Tensor, width: int, page_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of ``width`` tokens behind ``begins`` int32 [rows]: places, slots, and the keys that they see.

    ``pages`` int32 [rows, num_pages], of ``page_size`` slots: each row's in order. Places, counted from a row's first
    token, int64 [rows, width]; slots in the cache int64 [rows * width]; of a chain the first key that a token sees and
    the one behind its last, int32 [rows, width] both.
    """
    shape, device = (len(begins), width), begins.device
    places, slots = torch.empty(2, *shape, dtype=torch.int64, device=device)
    first, last = torch.empty(2, *shape, dtype=torch.int32, device=device)
    assert pages.stride(1) == 1
    _place_kernel[(triton.cdiv(places.numel(), 128),)](
        begins, pages, places, slots, first, last, places.numel(), width, begins.stride(0), pages.stride(0),
        page_size=page_size, tokens=128, num_warps=1,
    )  # fmt: skip
    return places, slots.flatten(), first, last


@triton.jit  # type: ignore[untyped-decorator]
def _end_kernel(  # type: ignore[no-untyped-def]
    token_ids, wanted, log_bits, starts, most, given, max_len, kept_starts, kept_anchors, counts, told,
    id_row, log_row, width: tl.constexpr, places: tl.constexpr,
):  # fmt: skip
    row, place = tl.program_id(0).to(tl.int64), tl.arange(0, places)
    is_draft = place < width - 1
    drafts = tl.load(token_ids + row * id_row + place + 1, is_draft, 0)
    differs = is_draft & (drafts != tl.load(wanted + row * width + place, is_draft, 0))
    same = tl.min(tl.where(differs, place, width - 1), 0)
    told_of = tl.load(given + row)
    accepted = tl.minimum(tl.where(told_of < 0, same, told_of), tl.load(most + row))
    following = tl.load(wanted + row * width + accepted)
    count = tl.where(tl.load(max_len + row) > 0, accepted + 1, 0)  # nothing of padding
    tl.store(counts + row, count)
    tl.store(kept_starts + row, tl.load(starts + row) + count)
    tl.store(kept_anchors + row, tl.maximum(following, 0))  # a row whose logits are no numbers ends
    told += row * 2 * width
    tl.store(told, count.to(tl.int32))
    tl.store(told + 1, following.to(tl.int32))
    tl.store(told + 2 + place, drafts.to(tl.int32), is_draft)
    bits = tl.load(log_bits + row * log_row + place, is_draft, 0)
    tl.store(told + 1 + width + place, bits, is_draft)


def chains_ended(
    token_ids: Tensor,
    log_probs: Tensor,
    wanted: Tensor,
    rows: Begun,
    kept_starts: Tensor,
    kept_anchors: Tensor,
) -> tuple[Tensor, Tensor]:
    """Of each row how many tokens are true, int64 [rows], and what the host is told of it, int32 [rows, 2 * width].

    ``token_ids`` int64 [rows, width]: anchors and drafts, which have ``log_probs`` float32 [rows, width - 1];
    ``wanted`` int64 [rows, width]: the target's choices. Drafts are true as far as they are these, or as many as
    ACCEPTED says where it is at least 0, and no more than ``rows.most``. Where the rows stand then and their anchors
    go to ``kept_starts`` and ``kept_anchors``. Told are the tokens that are true, the next anchor, drafts, and the bits
    of their log-probabilities.
    """
    num_rows, width = token_ids.shape
    counts = torch.empty_like(rows.starts)
    told = torch.empty(num_rows, 2 * width, dtype=torch.int32, device=counts.device)
    ids, bits = token_ids.contiguous(), log_probs.contiguous().view(torch.int32) if width > 1 else told
    _end_kernel[(num_rows,)](
        ids, wanted.contiguous(), bits, rows.starts, rows.most, rows.columns[ACCEPTED], rows.columns[MAX_LEN],
        kept_starts, kept_anchors, counts, told, ids.stride(0), bits.stride(0),
        width=width, places=triton.next_power_of_2(max(width - 1, 1)), num_warps=1,
    )  # fmt: skip
    return counts, told
