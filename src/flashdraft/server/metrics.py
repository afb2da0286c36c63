"""What Prometheus sees: vLLM's metrics by their names, with the prefix ``flashdraft:`` and again with ``vllm:``."""

from collections import Counter as Tally
from dataclasses import dataclass, replace

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from flashdraft.engine.types import EngineStats, StepOutput

_TTFT_S = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.25, 2.5, 5, 10, 20, 40, 80, 160)
_TPOT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
_E2E_S = (0.1, 0.3, 0.5, 1, 2, 5, 10, 20, 40, 60, 120, 240, 480, 960)
_LABEL = "model_name"
_OWN = (
    "flashdraft:http_",
    "_rounds",
    "flashdraft:grammar",
    "flashdraft:connection",
)  # vLLM has no such metrics


@dataclass(frozen=True)
class Totals:
    """Counts since the start, as far as a status line tells them."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    rounds: int = 0  # verifications; a prefill is none
    round_tokens: int = 0  # that those brought


class ServerMetrics:
    """The metrics of one server; every one has the label ``model_name``."""

    def __init__(self, model_name: str) -> None:
        self._registry = CollectorRegistry()
        self._model_name = model_name
        self._num_preempted = 0  # as far as counted
        self._totals = Totals()
        self._steps: Tally[tuple[int, int, int, bool]] = Tally()  # not counted yet, see record_step
        self._running = self._gauge("num_requests_running", "Answers being decoded.")
        self._waiting = self._gauge("num_requests_waiting", "Answers waiting for their turn.")
        self._cache_usage = self._gauge("kv_cache_usage_perc", "Share of cache pages in use, 0 to 1.")
        self._preempted = self._counter("num_preemptions", "Answers that gave up their pages for a while.")
        self._prefix_queries = self._counter(
            "prefix_cache_queries", "Prompt tokens that were looked for in the prefix cache."
        )
        self._prefix_hits = self._counter("prefix_cache_hits", "Prompt tokens that were found there.")
        self._responses = Counter(
            "flashdraft:http_responses", "Responses, by status.", [_LABEL, "status"], registry=self._registry
        )
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts that were prefilled.")
        self._output_tokens = self._counter("generation_tokens", "Tokens delivered.")
        self._drafts = self._counter("spec_decode_num_drafts", "Blocks drafted.")
        self._draft_tokens = self._counter("spec_decode_num_draft_tokens", "Tokens drafted.")
        self._accepted = self._counter(
            "spec_decode_num_accepted_tokens", "Drafted tokens that were delivered."
        )
        self._accepted_per_pos = Counter(
            "flashdraft:spec_decode_num_accepted_tokens_per_pos",
            "Drafted tokens that were delivered, by their place in the draft (0-based).",
            [_LABEL, "position"],
            registry=self._registry,
        )
        self._blocks = Counter(
            "flashdraft:spec_decode_num_rounds",
            "Rounds, by tokens verified, anchor included; 1: plain decoding.",
            [_LABEL, "block_size"],
            registry=self._registry,
        )
        self._plain_rounds = self._counter(
            "spec_decode_num_plain_rounds", "Rounds that fell back to plain decoding: nothing was drafted."
        )
        self._finished = Counter(
            "flashdraft:request_success",
            "Finished answers.",
            [_LABEL, "finished_reason"],
            registry=self._registry,
        )
        self._ttft = self._histogram(
            "time_to_first_token_seconds", "From arrival to the first token.", _TTFT_S
        )
        self._tpot = self._histogram(
            "request_time_per_output_token_seconds", "Mean seconds a token after the first.", _TPOT_S
        )
        self._e2e = self._histogram("e2e_request_latency_seconds", "From arrival to the last token.", _E2E_S)

    def record_step(self, step: StepOutput, is_round: bool) -> None:
        """Note what one step brought; ``is_round``: it was no prefill. It is counted when somebody looks."""
        self._steps[len(step.token_ids), step.num_drafted, step.num_accepted, is_round] += 1

    def _count_steps(self) -> None:
        for (num_tokens, num_drafted, num_accepted, is_round), times in self._steps.items():
            self._output_tokens.inc(num_tokens * times)
            self._count(output_tokens=num_tokens * times)
            if is_round and num_tokens:
                self._count(rounds=times, round_tokens=num_tokens * times)
                self._blocks.labels(self._model_name, str(1 + num_drafted)).inc(times)
                self._plain_rounds.inc(times * (num_drafted == 0))
            if num_drafted:
                self._drafts.inc(times)
                self._draft_tokens.inc(num_drafted * times)
                self._accepted.inc(num_accepted * times)
                for position in range(num_accepted):
                    self._accepted_per_pos.labels(self._model_name, str(position)).inc(times)
        self._steps.clear()

    def _count(self, **more: int) -> None:
        self._totals = replace(
            self._totals, **{name: getattr(self._totals, name) + number for name, number in more.items()}
        )

    def totals(self) -> Totals:
        """What was counted since the start."""
        self._count_steps()
        return self._totals

    def record_first_token(self, num_prompt_tokens: int, num_cached_tokens: int, ttft_s: float) -> None:
        """Count a prefill."""
        self._prompt_tokens.inc(num_prompt_tokens)
        self._count(prompt_tokens=num_prompt_tokens)
        self._prefix_queries.inc(num_prompt_tokens)
        self._prefix_hits.inc(num_cached_tokens)
        self._ttft.observe(ttft_s)

    def record_end(self, finish_reason: str, total_s: float, ttft_s: float, num_tokens: int) -> None:
        """Count a finished answer ("stop", "length") or one that was left ("abort")."""
        self._finished.labels(self._model_name, finish_reason).inc()
        self._e2e.observe(total_s)
        if num_tokens > 1:
            self._tpot.observe((total_s - ttft_s) / (num_tokens - 1))

    def record_response(self, status: int) -> None:
        """Count a response; 0: the client had left."""
        self._responses.labels(self._model_name, str(status)).inc()

    def exposition(self, stats: EngineStats) -> bytes:
        """Prometheus' text format."""
        self._count_steps()
        self._running.set(stats.num_running)
        self._waiting.set(stats.num_waiting)
        self._cache_usage.set(1 - stats.num_free_pages / max(stats.num_pages, 1))
        self._preempted.inc(stats.num_preemptions - self._num_preempted)
        self._num_preempted = stats.num_preemptions
        own = generate_latest(self._registry).decode()
        lines = (line for line in own.splitlines(keepends=True) if not any(name in line for name in _OWN))
        return (own + "".join(lines).replace("flashdraft:", "vllm:")).encode()

    def _gauge(self, name: str, what: str) -> Gauge:
        gauge = Gauge(f"flashdraft:{name}", what, [_LABEL], registry=self._registry)
        return gauge.labels(self._model_name)

    def _counter(self, name: str, what: str) -> Counter:
        counter = Counter(f"flashdraft:{name}", what, [_LABEL], registry=self._registry)
        return counter.labels(self._model_name)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(f"flashdraft:{name}", what, [_LABEL], registry=self._registry, buckets=buckets)
        return histogram.labels(self._model_name)
