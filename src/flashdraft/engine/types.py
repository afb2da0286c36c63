"""What the engine hands out: the news of one request after one step, and how the engine is doing."""

from dataclasses import dataclass, field

from flashdraft.engine.request import Request
from flashdraft.engine.scheduler import Scheduler
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

    @classmethod
    def of(cls, scheduler: Scheduler, metrics: RequestMetrics) -> "EngineStats":
        """Now."""
        return cls(
            num_waiting=len(scheduler.waiting),
            num_running=len(scheduler.running),
            num_pages=scheduler.pool.num_pages,
            num_free_pages=scheduler.pool.num_free,
            num_preemptions=scheduler.num_preemptions,
            num_cached_tokens=scheduler.num_cached_tokens,
            metrics=metrics,
        )


def output_of(
    request: Request, token_ids: list[int], text: str, num_drafted: int, num_accepted: int, reason: str | None
) -> StepOutput:
    """What a step brought to ``request``; ``reason``: why it is over, None while it goes on."""
    output = request.answer.output
    logprobs = output.logprobs
    return StepOutput(
        request_id=request.request_id,
        token_ids=token_ids,
        text=text,
        num_drafted=num_drafted,
        num_accepted=num_accepted,
        logprobs=None if logprobs is None else logprobs[len(logprobs) - len(token_ids) :],
        prompt_logprobs=output.prompt_logprobs if len(token_ids) == len(output.token_ids) else None,
        finished=reason is not None,
        finish_reason=reason,
        stop_reason=output.stop_reason,
        num_cached_tokens=request.num_cached_tokens,
        error=request.error,
        metrics=output.metrics,
    )
