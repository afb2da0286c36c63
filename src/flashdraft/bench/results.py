"""What a benchmark measured: one ``Measurement`` an answer, and ``BenchRow`` for many of them.

Rates are ratios of sums, so a long answer counts for what it is. A speed-up is a ratio of tokens a second
against plain decoding of the same prompts; its median over prompts stands beside it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from flashdraft.bench.lossless import Difference
from flashdraft.spec_decode.metrics import RequestMetrics

BASELINE = "AR"
LOOPING_SHARE = 0.1
_NGRAM = 8


@dataclass(frozen=True)
class Measurement:
    """One answer of one method. Seconds are wall time; ``total_s`` is end to end, prefill included."""

    task: str
    prompt_id: str
    turn: int  # 0-based
    method: str
    block_size: int  # anchor included; 1: plain decoding
    concurrency: int
    order_idx: int  # place among the methods that answered this prompt, 0: first
    num_prompt_tokens: int
    finish_reason: str
    total_s: float
    metrics: RequestMetrics
    repeated_share: float  # of the answer's 8-grams
    difference: Difference | None  # from plain decoding's tokens; None: equal

    @property
    def is_looping(self) -> bool:
        """Whether the answer repeats itself, which any drafter foresees."""
        return self.repeated_share >= LOOPING_SHARE

    @property
    def tokens_per_s(self) -> float:
        """Output tokens a second, end to end."""
        return self.metrics.num_output_tokens / self.total_s


@dataclass(frozen=True)
class BenchRow:
    """All answers of one method to one task. None stands where there was nothing to divide."""

    task: str
    method: str
    block_size: int
    concurrency: int
    num_prompts: int  # answers: prompts x turns
    num_output_tokens: int
    output_tokens_per_s: float  # end to end, prefill included
    decode_tokens_per_s: float | None  # without the prefill and the token that it gives
    speedup: float  # of output_tokens_per_s
    speedup_median: float  # over prompts
    decode_speedup: float | None
    acceptance_length: float
    acceptance_length_not_looping: float | None
    num_looping: int
    accepted_by_position: list[float]  # [i]: share of rounds that accepted draft token i (0-based)
    accepted_histogram: list[int]
    num_rounds: int
    prefill_s: float  # mean of an answer
    round_draft_s: float | None  # means of a round; the three add up to decode_s / num_rounds
    round_verify_s: float | None
    round_host_s: float | None
    promised_speedup: float | None  # acceptance_length * t_AR / (t_draft + t_verify): the host costs nothing
    promise_share: float | None  # decode_speedup / promised_speedup
    num_equal: int  # answers with plain decoding's tokens
    num_near_ties: int  # answers that differ, proven to start at a near-tie
    largest_gap: float | None  # largest gap of logits at a first difference


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
    """One row for each task, method, block size and concurrency, in order of first appearance.

    Every answer needs plain decoding's (method "AR") for the same task, prompt, turn and concurrency beside
    it.
    """
    groups: dict[tuple[str, str, int, int], list[Measurement]] = {}
    baselines: dict[tuple[str, str, int, int], Measurement] = {}
    for m in measurements:
        groups.setdefault((m.task, m.method, m.block_size, m.concurrency), []).append(m)
        if m.method == BASELINE:
            baselines[m.task, m.prompt_id, m.turn, m.concurrency] = m
    return [
        _row(group, [baselines[m.task, m.prompt_id, m.turn, m.concurrency] for m in group])
        for group in groups.values()
    ]


def _row(group: list[Measurement], plain: list[Measurement]) -> BenchRow:
    """``group``: answers of one kind; ``plain``: plain decoding's to the same prompts, in the same order."""
    first, total, plain_total = group[0], summed(group), summed(plain)
    speed, decode_speed = _tokens_per_s(group), _decode_tokens_per_s(total)
    decode_speedup = _ratio(decode_speed, _decode_tokens_per_s(plain_total))
    busy_s = total.draft_s + total.verify_s
    plain_round_s = _ratio(plain_total.decode_s, plain_total.num_rounds)
    busy_rounds = _ratio(busy_s, plain_round_s)  # of plain decoding, in the time that this method was busy
    promised = _ratio(total.acceptance_length * total.num_rounds, busy_rounds)
    steady = [m for m in group if not m.is_looping]
    gaps = [m.difference.gap for m in group if m.difference]
    return BenchRow(
        task=first.task,
        method=first.method,
        block_size=first.block_size,
        concurrency=first.concurrency,
        num_prompts=len(group),
        num_output_tokens=total.num_output_tokens,
        output_tokens_per_s=speed,
        decode_tokens_per_s=decode_speed,
        speedup=speed / _tokens_per_s(plain),
        speedup_median=median(m.tokens_per_s / p.tokens_per_s for m, p in zip(group, plain, strict=True)),
        decode_speedup=decode_speedup,
        acceptance_length=total.acceptance_length,
        acceptance_length_not_looping=summed(steady).acceptance_length if steady else None,
        num_looping=len(group) - len(steady),
        accepted_by_position=total.accepted_by_position,
        accepted_histogram=total.accepted_histogram,
        num_rounds=total.num_rounds,
        prefill_s=total.prefill_s / len(group),
        round_draft_s=_ratio(total.draft_s, total.num_rounds),
        round_verify_s=_ratio(total.verify_s, total.num_rounds),
        round_host_s=_ratio(total.decode_s - busy_s, total.num_rounds),
        promised_speedup=promised,
        promise_share=_ratio(decode_speedup, promised),
        num_equal=sum(m.difference is None for m in group),
        num_near_ties=sum(m.difference is not None and m.difference.is_near_tie for m in group),
        largest_gap=max(gaps, default=None),
    )


def _tokens_per_s(group: Sequence[Measurement]) -> float:
    return sum(m.metrics.num_output_tokens for m in group) / sum(m.total_s for m in group)


def _decode_tokens_per_s(total: RequestMetrics) -> float | None:
    return _ratio(total.num_output_tokens - total.num_requests, total.decode_s)


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None
