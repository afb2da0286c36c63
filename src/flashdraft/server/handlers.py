"""What the ways of asking share: is it our model, how long may the answer be, whole answer or stream."""

from collections.abc import AsyncGenerator, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from flashdraft.server.api_errors import ApiError, Json
from flashdraft.server.http_io import EventStream
from flashdraft.server.service import Service, Submission

Whole = Callable[[Submission], Json | list[Json]]
Events = Callable[[Submission], AsyncGenerator[str, None]]


def service_of(request: Request) -> Service:
    """The service that the application serves."""
    service: Service = request.app.state.service
    return service


def check_model(service: Service, model: str | None) -> None:
    """Raise ApiError 404 for a model that is not served; none named: ours."""
    names = service.config.model_names
    if model is not None and model not in names:
        found = ", ".join(names)
        raise ApiError(404, f"there is no model {model!r} here; expected {found}", "model", "model_not_found")


def answer_len(service: Service, num_prompt_tokens: int, asked: int | None, param: str = "max_tokens") -> int:
    """How many tokens an answer may have: what was asked, at most what the context leaves.

    Raises ApiError 400 for a prompt that leaves no room and above the server's own limit.
    """
    room = service.context_len - num_prompt_tokens
    limit = service.config.max_answer_tokens
    if room < 1:
        raise ApiError(
            400,
            f"the prompt has {num_prompt_tokens} tokens; expected at most {service.context_len - 1}, the model's"
            " context less one token of answer: shorten it",
            code="context_length_exceeded",
        )
    if asked is not None and limit is not None and asked > limit:
        raise ApiError(400, f"{param} is {asked}; this server gives at most {limit}", param)
    return min(asked or room, limit or room, room)


async def respond(submission: Submission, stream: bool, whole: Whole, events: Events) -> Response:
    """The whole answer, or a stream of events."""
    if stream:
        return EventStream(events(submission), submission.release)
    try:
        await _drain(submission)
    finally:
        submission.release()
    return JSONResponse(whole(submission))


async def _drain(submission: Submission) -> None:
    async for _ in submission.deltas():
        pass


def meta_info(submission: Submission, index: int) -> dict[str, Any]:
    """SGLang's account of one answer."""
    answer = submission.answers[index]
    metrics = answer.metrics
    return {
        "id": f"{submission.id}-{index}",
        "finish_reason": {"type": answer.finish_reason} if answer.finish_reason else None,
        "prompt_tokens": len(answer.wish.prompt_token_ids),
        "completion_tokens": len(answer.token_ids),
        "cached_tokens": answer.num_cached_tokens,
        "e2e_latency": answer.total_s,
        "spec_accept_length": metrics.acceptance_length,
        "spec_verify_ct": metrics.num_rounds,
    }


def usage(submission: Submission) -> Json:
    """OpenAI's usage, over all answers; a prompt that several answers share counts once."""
    answers = submission.answers
    prompts = {id(answer.wish.prompt_token_ids): answer.wish.prompt_token_ids for answer in answers}
    num_prompt = sum(map(len, prompts.values()))
    num_output = sum(len(answer.token_ids) for answer in answers)
    num_accepted = sum(answer.metrics.num_accepted for answer in answers)
    num_drafted = sum(answer.metrics.num_drafted for answer in answers)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_output,
        "total_tokens": num_prompt + num_output,
        "completion_tokens_details": {
            "accepted_prediction_tokens": num_accepted,
            "rejected_prediction_tokens": num_drafted - num_accepted,
        },
    }
