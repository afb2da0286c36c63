"""What a running server has accepted so far, by its metrics page: flashdraft, vLLM or SGLang."""

import urllib.request
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from flashdraft.errors import UsageError

_ENGINES = ("flashdraft", "vllm", "sglang")  # the prefixes of their metrics
_TIMEOUT_S = 10


@dataclass(frozen=True)
class Served:
    """Acceptance since the server started."""

    engine: str
    acceptance_length: float
    accepted_by_position: tuple[
        float, ...
    ]  # share of rounds that accept draft token i; empty where it is not told
    num_drafts: int  # rounds with a draft; 0 where it is not told


def read_served(url: str) -> Served:
    """What ``url``/metrics says. Raises UsageError for a server that does not answer or has drafted nothing."""
    address = url.rstrip("/").removesuffix("/v1").removesuffix("/metrics") + "/metrics"
    if not address.startswith(("http://", "https://")):
        raise UsageError(f"the server is {url!r}; expected http://HOST:PORT")
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as answer:
            page = answer.read().decode()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{address} gives no metrics ({error}); start the server first, or give another URL"
        ) from None
    return parse_metrics(page, address)


def parse_metrics(page: str, address: str) -> Served:
    """The acceptance in a Prometheus page. Raises UsageError where there is none."""
    totals: dict[str, float] = {}
    by_position: dict[int, float] = {}
    try:
        samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    except ValueError as error:
        raise UsageError(
            f"{address} gives no page of metrics ({error}); expected one of {', '.join(_ENGINES)}: give another URL"
        ) from None
    prefixes = {sample.name.partition(":")[0] for sample in samples if ":spec_" in sample.name}
    # A flashdraft server tells all of it under vLLM's prefix too: its own comes first, and counts once.
    engine = next((one for one in _ENGINES if one in prefixes), "")
    for sample in samples:
        prefix, _, name = sample.name.partition(":")
        name = name.removesuffix("_total")
        if prefix != engine or not name.startswith("spec_") or name.endswith("_created"):
            continue
        if "position" in sample.labels:
            place = int(sample.labels["position"])
            by_position[place] = by_position.get(place, 0.0) + sample.value
        else:
            totals[name] = totals.get(name, 0.0) + sample.value
    num_drafts = totals.get("spec_decode_num_drafts", 0.0)
    if num_drafts:
        shares = tuple(by_position.get(i, 0.0) / num_drafts for i in range(max(by_position, default=-1) + 1))
        length = 1 + totals.get("spec_decode_num_accepted_tokens", 0.0) / num_drafts
        return Served(engine, length, shares, int(num_drafts))
    if length := totals.get("spec_accept_length", 0.0):  # SGLang's gauge counts the last token too
        return Served(engine, length, (), 0)
    raise UsageError(f"{address} tells of no drafts yet; send the server some requests with a drafter first")
