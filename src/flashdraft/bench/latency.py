"""Latencies: percentiles of times, and the gaps between a stream's deliveries in a form that rows can hold.

Words: TTFT, from asking to the first token; TPOT, mean seconds a token after it; ITL, seconds between two
deliveries (one delivery may bring several tokens, as in vLLM's and SGLang's benchmarks); E2E, to the last token.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import ceil, log2

# Gaps are counted in buckets a 32nd of an octave wide: a percentile read from them is off by 1.1 % at most.
_BUCKETS_PER_OCTAVE = 32
_SHORTEST_S = 1e-6

GapHistogram = dict[int, int]  # bucket: how many gaps


@dataclass(frozen=True)
class Percentiles:
    """Of several times, in seconds."""

    mean: float
    p50: float
    p90: float
    p99: float


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that ``percent`` of all do not exceed (nearest rank). ``values`` are not empty."""
    return sorted(values)[max(ceil(len(values) * percent / 100), 1) - 1]


def percentiles(values: Sequence[float]) -> Percentiles | None:
    """None where there are no values."""
    if not values:
        return None
    return Percentiles(sum(values) / len(values), *(percentile(values, p) for p in (50, 90, 99)))


def gap_histogram(times_s: Sequence[float]) -> GapHistogram:
    """Count the gaps between deliveries at ``times_s``, in order."""
    gaps = (later - earlier for earlier, later in pairwise(times_s))
    return dict(Counter(round(_BUCKETS_PER_OCTAVE * log2(max(gap, _SHORTEST_S))) for gap in gaps))


def gap_percentiles(histograms: Iterable[Mapping[int, int]]) -> Percentiles | None:
    """Over the gaps of several streams; None where there are none."""
    total: Counter[int] = Counter()
    for histogram in histograms:
        total.update(histogram)
    if not total:
        return None
    buckets = sorted(total)
    reached = list(accumulate(total[bucket] for bucket in buckets))

    def seconds(bucket: int) -> float:
        return float(2 ** (bucket / _BUCKETS_PER_OCTAVE))

    def at(percent: float) -> float:
        rank = max(ceil(reached[-1] * percent / 100), 1)
        return seconds(next(b for b, so_far in zip(buckets, reached, strict=True) if so_far >= rank))

    mean = sum(seconds(bucket) * count for bucket, count in total.items()) / reached[-1]
    return Percentiles(mean, at(50), at(90), at(99))
