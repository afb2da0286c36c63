"""The likeliest token of each row of logits, with its log-probability where that is asked for: one pass over them.

``logits.float()``, ``logsumexp`` and ``max`` of PyTorch write and read a head's outputs some seven times.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_PIECE = 8192  # logits of a program: few rows have enough programs, and no row's bits depend on the others


@triton.jit
def _first_best(values, at):  # type: ignore[no-untyped-def]
    """The largest of ``values``, not a number above all, and the least ``at`` of those."""
    ranked = tl.where(values != values, float("inf"), values)
    best = tl.max(ranked, 0)
    return best, tl.min(tl.where(ranked == best, at, 0x7FFFFFFF), 0)


@triton.jit  # type: ignore[untyped-decorator]
def _piece_kernel(  # type: ignore[no-untyped-def]
    logits, bests, places, sums, vocab_size, logits_token, piece: tl.constexpr, has_sums: tl.constexpr
):
    token, number, pieces = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    at = number * piece + tl.arange(0, piece)
    values = tl.load(logits + token * logits_token + at, at < vocab_size, float("-inf")).to(tl.float32)
    best, place = _first_best(values, at)
    tl.store(bests + token * pieces + number, best)
    tl.store(places + token * pieces + number, place)
    if has_sums:
        reference = tl.where((best > float("-inf")) & (best < float("inf")), best, 0.0)
        tl.store(sums + token * pieces + number, tl.sum(tl.exp(values - reference), 0))


@triton.jit  # type: ignore[untyped-decorator]
def _join_kernel(  # type: ignore[no-untyped-def]
    bests, places, sums, token_ids, log_probs, pieces, tile: tl.constexpr, has_sums: tl.constexpr
):
    token, number = tl.program_id(0).to(tl.int64), tl.arange(0, tile)
    there = number < pieces
    own = tl.load(bests + token * pieces + number, there, float("-inf"))
    best, at = _first_best(own, tl.load(places + token * pieces + number, there, 0x7FFFFFFF))
    if not has_sums:
        at = tl.where((best > float("-inf")) & (best < float("inf")), at, -1)
    tl.store(token_ids + token, at.to(tl.int64))
    if has_sums:
        is_less = own < best
        share = tl.exp(tl.where(is_less, own, 0.0) - tl.where(is_less, best, 0.0))
        total = tl.load(sums + token * pieces + number, there, 0.0) * share
        total = tl.where(best == float("-inf"), float("nan"), tl.sum(total, 0))
        tl.store(log_probs + token, -tl.log(total))


def likeliest_of(logits: Tensor, has_log_probs: bool) -> tuple[Tensor, Tensor | None]:
    """Of rows of ``logits`` [num_tokens, vocab_size] the largest one's index, int64 [num_tokens]; the first of equals.

    And the logarithm of its share among all, float32 [num_tokens], no number where the largest logit is none or -inf:
    a logit that is no number is larger than all. Or None; the index is then -1 where the largest is no finite number.
    """
    num_tokens, vocab_size = logits.shape
    assert logits.stride(1) == 1, "a token's logits lie side by side"
    device, piece = logits.device, min(triton.next_power_of_2(vocab_size), _PIECE)
    pieces = triton.cdiv(vocab_size, piece)
    bests, sums = torch.empty((2, num_tokens, pieces), dtype=torch.float32, device=device)
    places = torch.empty((num_tokens, pieces), dtype=torch.int32, device=device)
    token_ids = torch.empty(num_tokens, dtype=torch.int64, device=device)
    log_probs = torch.empty(num_tokens, dtype=torch.float32, device=device)
    _piece_kernel[(num_tokens, pieces)](
        logits,
        bests,
        places,
        sums,
        vocab_size,
        logits.stride(0),
        piece=piece,
        has_sums=has_log_probs,
        num_warps=4,
    )
    _join_kernel[(num_tokens,)](
        bests, places, sums, token_ids, log_probs, pieces,
        tile=triton.next_power_of_2(pieces), has_sums=has_log_probs, num_warps=1,
    )  # fmt: skip
    return token_ids, log_probs if has_log_probs else None
