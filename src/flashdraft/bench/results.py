"""What a benchmark measured: one ``Measurement`` an answer, and ``BenchRow`` for many of them.

Rates are ratios of sums, so a long answer counts for what it is. Where many requests run side by side, an answer's
part of the wall time is its share of the steps that it was in; these shares add up to the wall time. A speed-up is a
ratio of tokens a second against plain decoding of the same prompts at the same concurrency.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from flashdraft.admission import BlockSize
from flashdraft.bench.latency import GapHistogram, Percentiles, gap_percentiles, percentiles
from flashdraft.bench.lossless import Difference
from flashdraft.intervals import ratio_interval
from flashdraft.spec_decode.metrics import RequestMetrics

BASELINE = "AR"
CUT = "length"  # the finish reason of an answer that the limit cut: it is not graded
LOOPING_SHARE = 0.1
_NGRAM = 8


@dataclass(frozen=True)
class Measurement:
    """One answer of one method, in seconds of wall time."""

    task: str
    prompt_id: str
    turn: int  # 0-based
    repeat: int  # 0-based
    method: str
    block_size: BlockSize  # anchor included; 1: plain decoding
    concurrency: int  # requests under way at a time
    order_idx: int  # place among the methods that answered this prompt, 0: first
    num_prompt_tokens: int
    finish_reason: str
    wall_s: float  # its part of the wall time in which it and its neighbours were answered
    ttft_s: float  # from asking to the first token
    total_s: float  # from asking to the last token
    gaps: GapHistogram  # between deliveries
    metrics: RequestMetrics
    repeated_share: float  # of the answer's 8-grams
    difference: Difference | None  # from plain decoding's tokens; None: equal
    is_correct: bool | None  # None: the task has no answer to compare with

    @property
    def is_looping(self) -> bool:
        """Whether the answer repeats itself, which any drafter foresees."""
        return self.repeated_share >= LOOPING_SHARE

    @property
    def tokens_per_s(self) -> float:
        """Output tokens a second of the wall time that the answer took part in, prefill included."""
        return self.metrics.num_output_tokens / self.wall_s

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds a token after the first; None for one token."""
        num_later = self.metrics.num_output_tokens - 1
        return (self.total_s - self.ttft_s) / num_later if num_later > 0 else None


@dataclass(frozen=True)
class BenchRow:
    """All answers of one method to one task at one concurrency. None stands where there was nothing to divide."""

    task: str
    method: str
    block_size: BlockSize
    concurrency: int
    num_answers: int  # prompts x turns x repeats
    num_output_tokens: int
    output_tokens_per_s: float  # of all requests together, end to end, prefill included
    speedup: float  # of output_tokens_per_s
    speedup_interval: tuple[float, float] | None  # 95 %, paired bootstrap over prompts
    speedup_median: float  # over prompts
    decode_tokens_per_s: float | None  # without the prefill and the token that it gives
    decode_speedup: float | None
    ttft_s: Percentiles | None
    tpot_s: Percentiles | None
    itl_s: Percentiles | None  # between deliveries, which may bring several tokens
    total_s: Percentiles | None
    acceptance_length: float
    acceptance_length_not_looping: float | None
    acceptance_length_of_answers: float  # mean of the answers' own, as z-lab's benchmark has it
    num_looping: int
    accepted_by_position: list[float]  # [i]: share of rounds that accepted draft token i (0-based)
    accepted_histogram: list[int]
    verified_histogram: list[int]  # [i]: rounds that verified i tokens, anchor included; 1: plain decoding
    num_rounds: int
    prefill_s: float  # mean of an answer
    round_draft_s: float | None  # means of a round: step time over the requests in the step;
    round_verify_s: float | None  # the three are all of the wall time that is not prefill
    round_host_s: float | None
    promised_speedup: float | None  # acceptance_length * t_AR / (t_draft + t_verify): the host costs nothing
    promise_share: float | None  # decode_speedup / promised_speedup
    num_equal: int  # answers with plain decoding's tokens
    num_near_ties: int  # answers that differ, proven to start at a near-tie
    largest_gap: float | None  # largest gap of logits at a first difference
    num_cut: int  # answers that the limit cut
    num_graded: int  # whole answers that can be right or wrong
    num_correct: int


def repeated_share(token_ids: Sequence[int]) -> float:
    """Share of an answer's 8-grams that occurred in it before; near 1 for a loop."""
    grams = [tuple(token_ids[i : i + _NGRAM]) for i in range(len(token_ids) - _NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def summed(measurements: Iterable[Measurement]) -> RequestMetrics:
    """The counts and seconds of several answers, added up."""
    total = RequestMetrics(num_requests=0)
    for m in measurements:
        total.add(m.metrics)
    return total


def aggregate(measurements: Sequence[Measurement]) -> list[BenchRow]:
    """One row for each task, method, block size and concurrency: by concurrency, then in order of first appearance.

    Every answer needs plain decoding's (method "AR") for the same task, prompt, turn, repeat and concurrency
    beside it.
    """
    groups: dict[tuple[str, str, BlockSize, int], list[Measurement]] = {}
    plain: dict[tuple[str, str, int, int, int], Measurement] = {}
    for m in measurements:
        groups.setdefault((m.task, m.method, m.block_size, m.concurrency), []).append(m)
        if m.method == BASELINE:
            plain[m.task, m.prompt_id, m.turn, m.repeat, m.concurrency] = m
    return [
        _row(group, [plain[m.task, m.prompt_id, m.turn, m.repeat, m.concurrency] for m in group])
        for _, group in sorted(groups.items(), key=lambda item: item[0][3])
    ]


def _row(group: list[Measurement], plain: list[Measurement]) -> BenchRow:
    """``group``: answers of one kind; ``plain``: plain decoding's to the same prompts, in the same order."""
    first, total, plain_total = group[0], summed(group), summed(plain)
    speed = _tokens_per_s(group)
    decode_speed, plain_decode_speed = _decode_tokens_per_s(group), _decode_tokens_per_s(plain)
    decode_speedup = _ratio(decode_speed, plain_decode_speed)
    busy_s = total.draft_s + total.verify_s
    promised = _promised(total, plain_total, plain)
    steady = [m for m in group if not m.is_looping]
    graded = [m.is_correct for m in group if m.is_correct is not None and m.finish_reason != CUT]
    return BenchRow(
        task=first.task,
        method=first.method,
        block_size=first.block_size,
        concurrency=first.concurrency,
        num_answers=len(group),
        num_output_tokens=total.num_output_tokens,
        output_tokens_per_s=speed,
        speedup=speed / _tokens_per_s(plain),
        speedup_interval=ratio_interval([m.prompt_id for m in group], _amounts(group), _amounts(plain)),
        speedup_median=median(m.tokens_per_s / p.tokens_per_s for m, p in zip(group, plain, strict=True)),
        decode_tokens_per_s=decode_speed,
        decode_speedup=decode_speedup,
        ttft_s=percentiles([m.ttft_s for m in group]),
        tpot_s=percentiles([m.tpot_s for m in group if m.tpot_s is not None]),
        itl_s=gap_percentiles(m.gaps for m in group),
        total_s=percentiles([m.total_s for m in group]),
        acceptance_length=total.acceptance_length,
        acceptance_length_not_looping=summed(steady).acceptance_length if steady else None,
        acceptance_length_of_answers=fmean(m.metrics.acceptance_length for m in group),
        num_looping=len(group) - len(steady),
        accepted_by_position=total.accepted_by_position,
        accepted_histogram=total.accepted_histogram,
        verified_histogram=total.verified_histogram,
        num_rounds=total.num_rounds,
        prefill_s=total.prefill_s / len(group),
        round_draft_s=_ratio(total.draft_s, total.num_rounds),
        round_verify_s=_ratio(total.verify_s, total.num_rounds),
        round_host_s=_ratio(_decode_s(group, total) - busy_s, total.num_rounds),
        promised_speedup=promised,
        promise_share=_ratio(decode_speedup, promised),
        num_equal=sum(m.difference is None for m in group),
        num_near_ties=sum(m.difference is not None and m.difference.is_near_tie for m in group),
        largest_gap=max((m.difference.gap for m in group if m.difference), default=None),
        num_graded=len(graded),
        num_correct=sum(graded),
        num_cut=sum(m.finish_reason == CUT for m in group),
    )


def _promised(
    total: RequestMetrics, plain_total: RequestMetrics, plain: Sequence[Measurement]
) -> float | None:
    plain_round_s = _ratio(_decode_s(plain, plain_total), plain_total.num_rounds)
    busy_rounds = _ratio(total.draft_s + total.verify_s, plain_round_s)
    return _ratio(total.acceptance_length * total.num_rounds, busy_rounds)


def _amounts(group: Sequence[Measurement]) -> list[tuple[float, float]]:
    return [(m.metrics.num_output_tokens, m.wall_s) for m in group]


def _tokens_per_s(group: Sequence[Measurement]) -> float:
    return sum(m.metrics.num_output_tokens for m in group) / sum(m.wall_s for m in group)


def _decode_s(group: Sequence[Measurement], total: RequestMetrics) -> float:
    return sum(m.wall_s for m in group) - total.prefill_s


def _decode_tokens_per_s(group: Sequence[Measurement]) -> float | None:
    total = summed(group)
    return _ratio(total.num_output_tokens - total.num_requests, _decode_s(group, total))


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None
