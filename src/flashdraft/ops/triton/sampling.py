"""Tokens sampled from their logits: sampler.sample in one launch, the noise made on the way.

A row of a :class:`~flashdraft.ops.sampling_rule.SamplingRule` tells each row of logits its temperature, cuts and seed;
temperature 0 takes the likeliest token. Nothing is sorted: min_p and top_k are least scores; top_p is asked of the
winner alone, by the mass of what is likelier. Where it is not in the nucleus, neither is anything less likely, and the
best of the rest is asked: 1 + log(1 / top_p) times on average.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashdraft.ops.noise import SPREAD
from flashdraft.ops.sampling_rule import NUM_COLUMNS

_TILE = 4096  # logits that a program looks at together
_NONE = 1 << 30  # behind every token


@triton.jit
def _mixed(x):  # type: ignore[no-untyped-def]
    """See ops/noise.py."""
    x ^= x >> 16
    x *= 0x21F0AAAD
    x ^= x >> 15
    x *= 0xD35A2D97
    return x ^ (x >> 15)


@triton.jit  # type: ignore[untyped-decorator]
def _keys(rule, position, spread: tl.constexpr):  # type: ignore[no-untyped-def]
    """What the rule's seed and a position give."""
    low = tl.load(rule + 4).to(tl.uint32, bitcast=True)
    high = tl.load(rule + 5).to(tl.uint32, bitcast=True)
    first = _mixed((position.to(tl.uint32) * spread) ^ low)
    return first, _mixed(first ^ high)


@triton.jit  # type: ignore[untyped-decorator]
def _gumbel(token, first, second, spread: tl.constexpr):  # type: ignore[no-untyped-def]
    bits = _mixed(_mixed((token.to(tl.uint32) * spread) ^ first) ^ second)
    share = tl.minimum((bits.to(tl.float32) + 0.5) * (0.5**32), 1.0 - 0.5**24)
    series = share * (1.0 + share * (0.5 + share * (1.0 / 3.0 + share * 0.25)))
    return -tl.log(tl.where(share < 0.00390625, series, -tl.log(1.0 - share)))


@triton.jit
def _key_of(score):  # type: ignore[no-untyped-def]
    """An int32 that is larger where the float is."""
    bits = score.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit  # type: ignore[untyped-decorator]
def _kth_key(logits, vocab_size, scale, most, top_k, tile: tl.constexpr):  # type: ignore[no-untyped-def]
    """The key of the ``top_k``-th largest of the scores, of which ``most`` is the largest."""
    low = tl.full([], -2139095041, tl.int64)  # of minus infinity
    high = _key_of(most).to(tl.int64) + 1
    while high - low > 1:
        middle = low + (high - low) // 2
        counted = tl.zeros([tile], tl.int32)
        for start in range(0, vocab_size, tile):
            token = start + tl.arange(0, tile)
            score = tl.load(logits + token, token < vocab_size, float("-inf")).to(tl.float32) * scale
            counted += ((_key_of(score) >= middle) & (token < vocab_size)).to(tl.int32)
        count = tl.sum(counted, 0)
        low = tl.where(count >= top_k, middle, low)
        high = tl.where(count > top_k, high, middle)  # as many as asked for: it is found
        high = tl.where(count == top_k, middle + 1, high)
    return low.to(tl.int32)


@triton.jit  # type: ignore[untyped-decorator]
def _choose_kernel(  # type: ignore[no-untyped-def]
    logits, rules, positions, chosen, vocab_size, logits_token, rules_row, width,
    spread: tl.constexpr, none: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64)
    logits += place * logits_token
    rule = rules + place // width * rules_row
    temperature = tl.load(rule).to(tl.float32, bitcast=True)
    best, at = tl.full([tile], float("-inf"), tl.float32), tl.full([tile], none, tl.int32)
    no_number = tl.zeros([tile], tl.int32)
    for start in range(0, vocab_size, tile):
        token = start + tl.arange(0, tile)
        logit = tl.load(logits + token, token < vocab_size, float("-inf")).to(tl.float32)
        no_number |= (logit != logit).to(tl.int32)
        at = tl.where(logit > best, token, at)
        best = tl.maximum(best, logit)
    largest = tl.max(best, 0)
    found = tl.min(tl.where(best == largest, at, none), 0)
    is_number = (tl.max(no_number, 0) == 0) & (largest > float("-inf")) & (largest < float("inf"))
    if is_number & (temperature > 0.0):
        top_p = tl.load(rule + 1).to(tl.float32, bitcast=True)
        top_k = tl.load(rule + 3)
        scale = 1.0 / temperature
        most = largest * scale
        least = most + tl.load(rule + 2).to(tl.float32, bitcast=True)
        least_key = tl.full([], -2139095041, tl.int32)
        if (top_k > 0) & (top_k < vocab_size):
            least_key = _kth_key(logits, vocab_size, scale, most, top_k, tile)
        first, second = _keys(rule, tl.load(positions + place), spread)
        beyond = tl.full([], float("-inf"), tl.float32)  # scores up to it are cut
        is_open = tl.full([], 1, tl.int32)
        while is_open > 0:
            best, at = tl.full([tile], float("-inf"), tl.float32), tl.full([tile], none, tl.int32)
            own, total = tl.zeros([tile], tl.float32), tl.zeros([tile], tl.float32)
            for start in range(0, vocab_size, tile):
                token = start + tl.arange(0, tile)
                score = tl.load(logits + token, token < vocab_size, float("-inf")).to(tl.float32) * scale
                is_kept = (score >= least) & (_key_of(score) >= least_key) & (score > float("-inf"))
                total += tl.where(is_kept, tl.exp(score - most), 0.0)
                noisy = tl.where(
                    is_kept & (score > beyond), score + _gumbel(token, first, second, spread), float("-inf")
                )
                at = tl.where(noisy > best, token, at)
                own = tl.where(noisy > best, score, own)
                best = tl.maximum(best, noisy)
            winner = tl.max(best, 0)
            found = tl.min(tl.where(best == winner, at, none), 0)
            beyond = tl.max(tl.where((best == winner) & (at == found), own, float("-inf")), 0)
            is_open = tl.full([], 0, tl.int32)
            if top_p < 1.0:
                likelier = tl.zeros([tile], tl.float32)
                for start in range(0, vocab_size, tile):
                    token = start + tl.arange(0, tile)
                    score = tl.load(logits + token, token < vocab_size, float("-inf")).to(tl.float32) * scale
                    likelier += tl.where(score > beyond, tl.exp(score - most), 0.0)
                mass = tl.sum(likelier, 0)
                is_open = ((mass > 0.0) & (mass >= top_p * tl.sum(total, 0))).to(tl.int32)
    tl.store(chosen + place, tl.where(is_number, found, -1).to(tl.int64))


def sampled_tokens(logits: Tensor, rules: Tensor, positions: Tensor) -> Tensor:
    """Int64 [num_tokens]: the token that each row of ``logits`` [num_tokens, vocab_size] gives; -1: it has no numbers.

    ``rules`` int32 [num_rules, 6], rows apart as they like, the first for the first num_tokens / num_rules tokens, and
    so on; ``positions`` int64 [num_tokens], in one piece: where the tokens that are chosen will stand.
    """
    num_tokens, vocab_size = logits.shape
    assert logits.stride(1) == 1, "a token's logits lie side by side"
    assert rules.shape[1] == NUM_COLUMNS, "a rule's columns lie side by side"
    chosen = torch.empty(num_tokens, dtype=torch.int64, device=logits.device)
    _choose_kernel[(num_tokens,)](
        logits, rules, positions, chosen, vocab_size, logits.stride(0), rules.stride(0), num_tokens // len(rules),
        spread=SPREAD, none=_NONE, tile=min(triton.next_power_of_2(vocab_size), _TILE), num_warps=8,
        enable_fp_fusion=False,  # the same roundings whatever type logits have
    )  # fmt: skip
    return chosen


@triton.jit  # type: ignore[untyped-decorator]
def _noise_kernel(  # type: ignore[no-untyped-def]
    token_ids,
    rules,
    first_positions,
    noise,
    rules_row,
    slots,
    count,
    spread: tl.constexpr,
    tile: tl.constexpr,
):
    row, slot = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rule, number = rules + row * rules_row, tl.arange(0, tile)
    place = (row * slots + slot) * count + number
    token = tl.load(token_ids + place, number < count, 0)
    first, second = _keys(rule, tl.load(first_positions + row) + slot, spread)
    made = tl.where(tl.load(rule) == 0, 0.0, _gumbel(token, first, second, spread))
    tl.store(noise + place, made, number < count)


def noise_of(token_ids: Tensor, rules: Tensor, first_positions: Tensor) -> Tensor:
    """The noise of ``token_ids`` [rows, slots, count] at each row's ``first_positions`` [rows] + slot, float32.

    ``rules``: as of :func:`sampled_tokens`, one a row; of greedy rows it is 0.
    """
    rows, slots, count = token_ids.shape
    ids = token_ids.contiguous()
    noise = torch.empty(ids.shape, dtype=torch.float32, device=ids.device)
    _noise_kernel[(rows, slots)](
        ids, rules, first_positions, noise, rules.stride(0), slots, count,
        spread=SPREAD, tile=triton.next_power_of_2(count), num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip
    return noise
