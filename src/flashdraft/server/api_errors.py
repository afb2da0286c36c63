"""What a client is told when something is wrong: OpenAI's error shape, and 400 for every invalid request."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from flashdraft.errors import EngineError, FlashdraftError, OverloadedError

Json = dict[str, Any]
M = TypeVar("M", bound=BaseModel)

MESSAGES_PATH = "/v1/messages"  # whose clients read Anthropic's errors

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}

_MESSAGES_TYPES = _TYPES | {403: "permission_error", 413: "request_too_large", 503: "overloaded_error"}


class ApiError(Exception):
    """An answer other than 200. ``param`` names the field of the request that is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after_s = status, param, code, retry_after_s

    def body(self) -> Json:
        """{"error": {message, type, param, code}}."""
        usual = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _TYPES.get(self.status, usual)
        message = str(self).encode(errors="replace").decode()  # it may quote half a surrogate pair
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    def response(self, path: str = "") -> Response:
        """The whole answer, in the shape that the clients of ``path`` read."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        body = self.messages_body() if path.startswith(MESSAGES_PATH) else self.body()
        return JSONResponse(body, self.status, headers)

    def messages_body(self) -> Json:
        """Anthropic's {"type": "error", "error": {type, message}}."""
        usual = "api_error" if self.status >= 500 else "invalid_request_error"
        error = {"type": _MESSAGES_TYPES.get(self.status, usual), "message": self.body()["error"]["message"]}
        return {"type": "error", "error": error}


@contextmanager
def told_as(names: Mapping[str, str]) -> Iterator[None]:
    """Errors of fields that the client knows by other names: a chat's name -> the client's."""
    try:
        yield
    except ApiError as error:
        if (name := names.get(error.param or "")) is None:
            raise
        said = str(error).replace(error.param or "", name, 1)
        raise ApiError(error.status, said, name, error.code, error.retry_after_s) from None


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of ``error``. Of an error that nobody foresaw it learns nothing but that."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValidationError):
        return ApiError(400, *_invalid(error))
    if isinstance(error, EngineError):
        return ApiError(503, str(error), code="engine_failed")
    if isinstance(error, OverloadedError):
        return ApiError(503, str(error), code="overloaded", retry_after_s=1)
    if isinstance(error, FlashdraftError):
        return ApiError(400, str(error))
    return ApiError(500, "the server failed at this request; its log says more")


# How pydantic names the alternatives of a field within the place of an error.
_ALTERNATIVE = re.compile(r"constrained-\w+|str|int|float|bool|[\w-]+\[.*|nullable|[A-Z]\w*")


def validated(kind: type[M], value: Any, place: str) -> M:
    """``value``, at ``place`` of a request, as ``kind``. Raises ApiError 400 that names the field there."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise ApiError(400, *_invalid(error, place)) from None


def _invalid(error: ValidationError, place: str = "") -> tuple[str, str]:
    """What is wrong with the first wrong field, and its name. Of alternatives those count that came closest."""
    errors = error.errors(include_url=False, include_context=False)
    here = [one for one in errors if one["loc"][:1] == errors[0]["loc"][:1]]
    # An alternative that another "type" is for is not what was meant, nor one of another type altogether.
    tags = [one["loc"][:-1] for one in here if one["type"] == "literal_error" and one["loc"][-1] == "type"]
    meant = [one for one in here if not any(one["loc"][: len(tag)] == tag for tag in tags)]
    here = meant or [one for one in here if one["loc"][:-1] in tags and one["loc"][-1] == "type"] or here
    near = [one for one in here if not one["type"].endswith(("_type", "_parsing", "literal_error"))] or here
    deepest = max(len(_place(one["loc"])) for one in near)
    near = [one for one in near if len(_place(one["loc"])) == deepest]
    where = ".".join([*([place] if place else []), *_place(near[0]["loc"])]) or "body"
    said = list(
        dict.fromkeys(_told(one["msg"]) for one in near if _place(one["loc"]) == _place(near[0]["loc"]))
    )
    return f"{where}: {'; or '.join(said[:4])}", where


def _told(message: str) -> str:
    """What pydantic says, in a client's words."""
    return re.sub(
        r"a valid dictionary or instance of \w+", "an object", message.removeprefix("Value error, ")
    )


def _place(loc: tuple[int | str, ...]) -> list[str]:
    return [str(part) for part in loc if isinstance(part, int) or not _ALTERNATIVE.fullmatch(part)]


async def answer_error(request: Request, error: Exception) -> Response:
    """Starlette's exception handler."""
    return as_api_error(error).response(request.url.path)


async def answer_http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, in the same shape."""
    status = int(getattr(error, "status_code", 500))
    return ApiError(
        status, f"{request.method} {request.url.path}: {getattr(error, 'detail', error)}"
    ).response(request.url.path)
