"""What the engine hands out: the news of one request after one step, and how the engine is doing."""

from dataclasses import dataclass, field

from flashdraft.sampler import TokenLogprobs
from flashdraft.spec_decode.metrics import RequestMetrics

__all__ = ["EngineStats", "StepOutput", "TokenLogprobs"]


@dataclass(frozen=True)
class StepOutput:
    """What one step brought to one request."""

    request_id: str
    token_ids: list[int]
    text: str = ""  # new text, stop strings cut off; empty without a tokenizer
    num_drafted: int = 0
    num_accepted: int = 0  # of token_ids, the first this many were drafted
    logprobs: list[TokenLogprobs] | None = None  # one for each of token_ids, where asked for
    prompt_logprobs: list[TokenLogprobs] | None = None  # with the first token, where asked for
    finished: bool = False
    finish_reason: str | None = None  # "stop", "length" or "abort"
    stop_reason: int | str | None = None  # the stop token (not an end-of-sequence token) or stop string
    num_cached_tokens: int = 0  # prompt tokens that were found in the prefix cache
    error: str | None = None  # why the request could not go on; it is aborted then
    metrics: RequestMetrics = field(default_factory=RequestMetrics)  # the request's own, as it stands


@dataclass(frozen=True)
class EngineStats:
    """How the engine is doing."""

    num_waiting: int
    num_running: int
    num_pages: int
    num_free_pages: int  # those that only hold a reusable prefix included
    num_preemptions: int
    num_cached_tokens: int  # prompt tokens that were found in the prefix cache
    metrics: RequestMetrics  # over finished requests
