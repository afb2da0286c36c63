"""What the ways of asking share: is it our model, how long may the answer be, whole answer or stream."""

from collections.abc import AsyncGenerator, Callable
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from flashdraft.server.api_errors import ApiError, Json
from flashdraft.server.fields import Fields
from flashdraft.server.http_io import EventStream, read_json
from flashdraft.server.logs import log_event
from flashdraft.server.service import Service, Submission
from flashdraft.server.unknown_fields import heed_unknown_fields
from flashdraft.server.unsupported import refuse_unsupported

Asked = TypeVar("Asked", bound=Fields)
Whole = Callable[[Submission], Json | list[Json]]
Events = Callable[[Submission], AsyncGenerator[str, None]]


def service_of(request: Request) -> Service:
    """The service that the application serves."""
    service: Service = request.app.state.service
    return service


async def read_request(request: Request, kind: type[Asked], **parts: type[Fields]) -> Asked:
    """The body as a typed request. Raises ApiError 400 for what is no such request and for what it cannot have.

    ``parts``: fields that hold a request's settings too, one set or a list.
    """
    body = await read_json(request)
    refuse_unsupported(body, kind)
    for name, part in parts.items():
        said = body.get(name)
        for one in said if isinstance(said, list) else [said]:
            if isinstance(one, dict):
                refuse_unsupported(one, part, f"{name}.")
    asked = kind.model_validate(body)
    heed_unknown_fields(body, asked)
    return asked


def check_model(service: Service, model: str | None) -> None:
    """Raise ApiError 404 for a model that is not served; none named: ours."""
    names = service.config.model_names
    if model is not None and model not in names:
        found = ", ".join(names)
        raise ApiError(404, f"there is no model {model!r} here; expected {found}", "model", "model_not_found")


def answer_len(service: Service, num_prompt_tokens: int, asked: int | None, param: str = "max_tokens") -> int:
    """How many tokens an answer may have: what was asked, at most what the context leaves, which the log tells.

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
    if asked is not None and asked > room:
        log_event("answer shortened to the context", param=param, asked=asked, room=room)
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
