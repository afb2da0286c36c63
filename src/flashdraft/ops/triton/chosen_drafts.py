"""From logits to the draft that a selector chooses: the likeliest tokens of slots, what follows what, and the walk.

spec_decode/candidates.py has the same on the host and says what the numbers mean. Three launches for a chain, whatever
its length: what the walk has to do one slot after the other is to look up a place.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashdraft.ops.triton.trees import Branches

_PIECE = 1024  # logits of a program: few rows have enough programs, and no row's bits depend on the others


@triton.jit  # type: ignore[untyped-decorator]
def keyed(order, place, is_narrow: tl.constexpr):  # type: ignore[no-untyped-def]
    """Numbers that are larger where ``order`` is, and of equals where ``place`` is less."""
    narrow = (order << 16) | (0xFFFF - place)
    return narrow if is_narrow else (order.to(tl.int64) << 32) | (0x7FFFFFFF - place).to(tl.int64)


@triton.jit  # type: ignore[untyped-decorator]
def _order_of(key, is_narrow: tl.constexpr):  # type: ignore[no-untyped-def]
    return key >> 16 if is_narrow else (key >> 32).to(tl.int32)


@triton.jit  # type: ignore[untyped-decorator]
def place_of(key, is_narrow: tl.constexpr):  # type: ignore[no-untyped-def]
    """The place that :func:`keyed` was given."""
    return 0xFFFF - (key & 0xFFFF) if is_narrow else (0x7FFFFFFF - (key & 0x7FFFFFFF)).to(tl.int32)


@triton.jit  # type: ignore[untyped-decorator]
def ordered(values, is_narrow: tl.constexpr):  # type: ignore[no-untyped-def]
    """int32 that are larger where ``values`` are, of 16 bits where those have no more; no number is infinite."""
    ranked = tl.where(values != values, float("inf"), values).to(values.dtype)
    if is_narrow:
        bits = ranked.to(tl.int16, bitcast=True).to(tl.int32)
        order = bits ^ ((bits >> 15) & 0x7FFF)
    else:
        bits = ranked.to(tl.int32, bitcast=True)
        order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return order


@triton.jit  # type: ignore[untyped-decorator]
def _valued(order, kind: tl.constexpr, is_narrow: tl.constexpr):  # type: ignore[no-untyped-def]
    """The float32 that have this order."""
    if is_narrow:
        bits = order ^ ((order >> 15) & 0x7FFF)
        value = bits.to(tl.int16).to(kind, bitcast=True).to(tl.float32)
    else:
        value = (order ^ ((order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return value


@triton.jit  # type: ignore[untyped-decorator]
def largest_of(keys, least, count, tile: tl.constexpr):  # type: ignore[no-untyped-def]
    """The ``count`` largest of ``keys``, no two alike, in order; ``least`` behind them."""
    number = tl.arange(0, tile)
    kept = tl.zeros([tile], keys.dtype) + least
    for rank in range(count):
        best = tl.max(keys, 0)
        kept = tl.where(number == rank, best, kept)
        keys = tl.where(keys == best, least, keys)
    return kept


@triton.jit  # type: ignore[untyped-decorator]
def _piece_kernel(  # type: ignore[no-untyped-def]
    logits, keys, bests, sums, vocab_size, logits_token, count, least,
    piece: tl.constexpr, tile: tl.constexpr, is_narrow: tl.constexpr,
):  # fmt: skip
    token, number, pieces = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    place = tl.arange(0, piece)
    there = number * piece + place < vocab_size
    values = tl.load(logits + token * logits_token + number * piece + place, there, float("-inf"))
    own = tl.where(there, keyed(ordered(values, is_narrow), place, is_narrow), least)
    kept = largest_of(own, least, count, tile)
    tl.store(keys + (token * pieces + number) * tile + tl.arange(0, tile), kept)
    wide = values.to(tl.float32)
    best = tl.max(tl.where(wide != wide, float("inf"), wide), 0)
    reference = tl.where((best > float("-inf")) & (best < float("inf")), best, 0.0)
    tl.store(bests + token * pieces + number, best)
    tl.store(sums + token * pieces + number, tl.sum(tl.exp(wide - reference), 0))


@triton.jit  # type: ignore[untyped-decorator]
def _join_kernel(  # type: ignore[no-untyped-def]
    keys, bests, sums, distances, token_ids, log_probs, pieces, count, least,
    kind: tl.constexpr, piece: tl.constexpr, tile: tl.constexpr, all_pieces: tl.constexpr,
    is_narrow: tl.constexpr, has_distances: tl.constexpr,
):  # fmt: skip
    token, at = tl.program_id(0).to(tl.int64), tl.arange(0, all_pieces * tile)
    keys += token * pieces * tile
    own = tl.load(keys + at, at < pieces * tile, least)
    kept = largest_of(
        tl.where(own == least, least, keyed(_order_of(own, is_narrow), at, is_narrow)), least, count, tile
    )
    number = tl.arange(0, tile)
    is_kept = number < count
    chosen = tl.where(is_kept, place_of(kept, is_narrow), 0)
    found = chosen // tile * piece + place_of(tl.load(keys + chosen), is_narrow)
    part = tl.arange(0, all_pieces)
    there = part < pieces
    best_of = tl.load(bests + token * pieces + part, there, float("-inf"))
    best = tl.max(best_of, 0)
    is_less = best_of < best
    share = tl.exp(tl.where(is_less, best_of, 0.0) - tl.where(is_less, best, 0.0))
    total = tl.sum(tl.load(sums + token * pieces + part, there, 0.0) * share, 0)
    values = _valued(_order_of(kept, is_narrow), kind, is_narrow) - (best + tl.log(total))
    ids = found.to(tl.int64)
    if has_distances:
        ids += tl.load(distances + ids, is_kept, 0)
    tl.store(token_ids + token * count + number, ids, is_kept)
    tl.store(log_probs + token * count + number, values, is_kept)


def likeliest_tokens(logits: Tensor, count: int, distances: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of rows of ``logits`` [num_tokens, vocab_size] the ``count`` largest, best first, of equals the first one first.

    As (token ids int64, log-probabilities float32), [num_tokens, count] both, or [num_tokens, vocab_size] of a smaller
    vocabulary. ``distances`` int64 [vocab_size]: of a row of a draft vocabulary to its token id; None: they are ids.
    """
    num_tokens, vocab_size = logits.shape
    assert logits.stride(1) == 1, "a token's logits lie side by side"
    device, piece = logits.device, min(triton.next_power_of_2(vocab_size), _PIECE)
    count, pieces = min(count, vocab_size), triton.cdiv(vocab_size, piece)
    tile, is_narrow = triton.next_power_of_2(count), logits.dtype != torch.float32
    all_pieces = triton.next_power_of_2(pieces)
    is_narrow = is_narrow and all_pieces * tile <= 1 << 16
    if not is_narrow:
        logits = logits.float()
    numbers = torch.int32 if is_narrow else torch.int64
    least = torch.iinfo(numbers).min
    keys = torch.empty((num_tokens, pieces, tile), dtype=numbers, device=device)
    bests, sums = torch.empty((2, num_tokens, pieces), dtype=torch.float32, device=device)
    token_ids = torch.empty((num_tokens, count), dtype=torch.int64, device=device)
    log_probs = torch.empty((num_tokens, count), dtype=torch.float32, device=device)
    _piece_kernel[(num_tokens, pieces)](
        logits, keys, bests, sums, vocab_size, logits.stride(0), count, least,
        piece=piece, tile=tile, is_narrow=is_narrow, num_warps=1,
    )  # fmt: skip
    kind = tl.bfloat16 if logits.dtype == torch.bfloat16 else tl.float16
    _join_kernel[(num_tokens,)](
        keys, bests, sums, keys if distances is None else distances, token_ids, log_probs, pieces, count, least,
        kind=kind, piece=piece, tile=tile, all_pieces=all_pieces, is_narrow=is_narrow,
        has_distances=distances is not None, num_warps=min(max(all_pieces * tile // 512, 1), 8),
    )  # fmt: skip
    return token_ids, log_probs


@triton.jit  # type: ignore[untyped-decorator]
def _branch_kernel(  # type: ignore[no-untyped-def]
    token_ids, log_probs, anchors, wanted, predecessors, successors, noise, rules, values, places,
    slots, count, ranks, rules_row, size: tl.constexpr, tile: tl.constexpr, lanes: tl.constexpr,
    is_sampled: tl.constexpr, scores_anchor: tl.constexpr,
):  # fmt: skip
    row, slot = tl.program_id(0).to(tl.int64), tl.program_id(1)
    number, lane = tl.arange(0, tile), tl.arange(0, lanes)
    there, inside = number < count, lane < size
    place = (row * slots + slot) * count + number
    ids = tl.load(token_ids + place, there, 0)
    before = tl.load(token_ids + (row * slots + tl.maximum(slot - 1, 0)) * count + number, there, 0)
    before = tl.where(slot > 0, before, tl.load(anchors + row))
    asked = tl.load(wanted + (row * slots + slot) * size + lane, inside, 0.0)
    first = tl.load(
        predecessors + before[:, None] * size + lane[None, :], there[:, None] & inside[None, :], 0.0
    )
    last = tl.load(successors + ids[None, :] * size + lane[:, None], inside[:, None] & there[None, :], 0.0)
    first = (first.to(tl.float32) * asked.to(tl.float32)[None, :]).to(last.dtype)
    pairs = tl.dot(first, last, input_precision="ieee").to(last.dtype).to(tl.float32)
    own = tl.load(log_probs + place, there, 0.0)
    if is_sampled:
        temperature = tl.load(rules + row * rules_row).to(tl.float32, bitcast=True)
        if temperature > 0.0:
            own = own / temperature + tl.load(noise + place, there, 0.0)
            pairs = pairs / temperature
            if not scores_anchor:
                pairs = tl.where(slot > 0, pairs, 0.0)
    scores = tl.where(there[None, :], own[None, :] + pairs, float("-inf"))
    most = tl.max(tl.where(scores == scores, scores, float("-inf")), 1)
    behind = scores - tl.where(most > float("-inf"), most, 0.0)[:, None]
    behind -= tl.log(tl.sum(tl.exp(behind), 1))[:, None]
    behind = tl.where(behind == behind, behind, float("-inf"))  # what is no number is no draft
    at = ((row * slots + slot) * count + number) * ranks
    for rank in range(ranks):
        best = tl.max(behind, 1)
        chosen = tl.min(tl.where(behind == best[:, None], number[None, :], count - 1), 1)
        tl.store(values + at + rank, best, there)
        tl.store(places + at + rank, chosen.to(tl.int64), there)
        behind = tl.where(number[None, :] == chosen[:, None], float("-inf"), behind)


def branches(
    candidates: tuple[Tensor, Tensor],
    anchors: Tensor,
    wanted: Tensor,
    codebooks: Sequence[Tensor],
    ranks: int,
    rules: Tensor | None = None,
    noise: Tensor | None = None,
    scores_anchor: bool = True,
) -> Branches:
    """The ``ranks`` best candidates of a slot behind each candidate before it: models/dflash2.CandidateSelector's.

    ``candidates``: token ids int64 and log-probabilities float32, [rows, slots, count]; ``anchors`` [rows] int64, of
    which the first slot's are behind; ``wanted`` [rows * slots, rank]: W h; ``codebooks`` A and B [vocab_size, rank].
    ``rules`` int32 [rows, ...] and ``noise`` float32 as candidates: Candidates.as_sampled, where ``scores_anchor`` is
    its ``scores_first``; None: all rows are greedy.
    """
    token_ids, log_probs = candidates
    (rows, slots, count), (first, last) = token_ids.shape, codebooks
    size, ranks = first.shape[1], min(ranks, count)
    assert wanted.is_contiguous()
    assert first.is_contiguous()
    assert last.is_contiguous()
    shape = rows, slots, count, ranks
    values = torch.empty(shape, dtype=torch.float32, device=first.device)
    places = torch.empty(shape, dtype=torch.int64, device=first.device)
    _branch_kernel[(rows, slots)](
        token_ids.contiguous(), log_probs.contiguous(), anchors.contiguous(), wanted, first, last,
        values if noise is None else noise, places if rules is None else rules, values, places,
        slots, count, ranks, 0 if rules is None else rules.stride(0),
        size=size, tile=max(triton.next_power_of_2(count), 16), lanes=max(triton.next_power_of_2(size), 16),
        is_sampled=rules is not None, scores_anchor=scores_anchor, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return Branches(token_ids, values, places)


@triton.jit  # type: ignore[untyped-decorator]
def _walk_kernel(  # type: ignore[no-untyped-def]
    token_ids, values, places, chosen_ids, chosen_values, slots, count, ranks,
    most_slots: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    row, slot, number = tl.program_id(0).to(tl.int64), tl.arange(0, most_slots), tl.arange(0, tile)
    at = (row * slots + slot[:, None]) * count + number[None, :]
    there = (slot < slots)[:, None] & (number < count)[None, :]
    following = tl.load(places + at * ranks, there, 0).to(tl.int32)
    before, after = tl.zeros([most_slots], tl.int32), tl.zeros([most_slots], tl.int32)
    place = tl.full([], 0, tl.int32)
    for step in range(slots):
        before = tl.where(slot == step, place, before)
        is_next = (slot == step)[:, None] & (number == place)[None, :]
        place = tl.sum(tl.ravel(tl.where(is_next, following, 0)), 0)
        after = tl.where(slot == step, place, after)
    at = (row * slots + slot) * count
    tl.store(chosen_ids + row * slots + slot, tl.load(token_ids + at + after, slot < slots, 0), slot < slots)
    value = tl.load(values + (at + before) * ranks, slot < slots, 0.0)
    tl.store(chosen_values + row * slots + slot, value, slot < slots)


def walked(found: Branches) -> tuple[Tensor, Tensor]:
    """Each row's best chain, from the anchor on the best candidate behind the one before it.

    Token ids int64 and log-probabilities float32, [rows, slots] both.
    """
    rows, slots, count = found.token_ids.shape
    assert found.places is not None
    ids, values = torch.empty_like(found.token_ids[..., 0]), torch.empty_like(found.log_probs[..., 0, 0])
    _walk_kernel[(rows,)](
        found.token_ids.contiguous(), found.log_probs, found.places, ids, values,
        slots, count, found.log_probs.shape[-1],
        most_slots=triton.next_power_of_2(slots), tile=triton.next_power_of_2(count), num_warps=1,
    )  # fmt: skip
    return ids, values
