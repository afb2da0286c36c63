"""What a server's /metrics says of its drafts, in one definition: accepted draft tokens a round, plus one.

vLLM and flashdraft count drafts and accepted tokens under the same names with a prefix of their own; SGLang shows
a running mean that has the plus one in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

_PER_POSITION = "spec_decode_num_accepted_tokens_per_pos_total"
_ACCEPTED = "spec_decode_num_accepted_tokens_total"
_DRAFTS = "spec_decode_num_drafts_total"
_DRAFTED = "spec_decode_num_draft_tokens_total"
_OWN = "flashdraft:"
_SGLANG_MEAN = "spec_accept_length"


@dataclass(frozen=True)
class DraftCounts:
    """Counters since the server started, and SGLang's mean where there are none."""

    num_drafts: float = 0.0
    num_drafted: float = 0.0
    num_accepted: float = 0.0
    by_position: tuple[float, ...] = ()
    running_mean: float | None = None

    def since(self, earlier: "DraftCounts") -> "DraftCounts":
        """What was counted after ``earlier``."""
        padded = (*earlier.by_position, *[0.0] * (len(self.by_position) - len(earlier.by_position)))
        return DraftCounts(
            self.num_drafts - earlier.num_drafts,
            self.num_drafted - earlier.num_drafted,
            self.num_accepted - earlier.num_accepted,
            tuple(now - then for now, then in zip(self.by_position, padded, strict=True)),
            self.running_mean,
        )

    @property
    def acceptance_length(self) -> float | None:
        """Accepted draft tokens a draft, plus one; None where nothing was drafted."""
        if self.num_drafts > 0:
            return 1 + self.num_accepted / self.num_drafts
        return self.running_mean or None

    @property
    def accepted_by_position(self) -> list[float]:
        """Share of drafts whose token i (0-based) was accepted."""
        return [count / self.num_drafts for count in self.by_position] if self.num_drafts > 0 else []


def draft_counts(exposition: str) -> DraftCounts:
    """Read Prometheus' text format; several models or ranks are added up."""
    totals: dict[str, float] = {}
    positions: dict[int, float] = {}
    means = []
    for name, labels, value in _samples(exposition):
        if name == _PER_POSITION:
            place = int(labels["position"])
            positions[place] = positions.get(place, 0.0) + value
        elif name == _SGLANG_MEAN:
            means.append(value)
        else:
            totals[name] = totals.get(name, 0.0) + value
    return DraftCounts(
        totals.get(_DRAFTS, 0.0),
        totals.get(_DRAFTED, 0.0),
        totals.get(_ACCEPTED, 0.0),
        tuple(positions.get(place, 0.0) for place in range(max(positions, default=-1) + 1)),
        sum(means) / len(means) if means else None,
    )


def _samples(exposition: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Names without their prefix; a flashdraft server tells all of it under vLLM's prefix too, which counts once."""
    samples = [one for family in text_string_to_metric_families(exposition) for one in family.samples]
    has_own = any(one.name.startswith(_OWN) for one in samples)
    for sample in samples:
        if not has_own or sample.name.startswith(_OWN):
            yield sample.name.partition(":")[2], sample.labels, sample.value
