"""Between HTTP and the handlers: JSON bodies in, event streams out, and work that ends when the client is gone."""

import asyncio
import json
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from functools import wraps
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from flashdraft.server.api_errors import ApiError, Json, as_api_error

_MOST_FILES = 96  # of a compressed body: what is behind each is copied, and the event loop waits

T = TypeVar("T")
Release = Callable[[], None]
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


async def read_json(request: Request) -> Json:
    """The body as a JSON object. Raises ApiError 400 for anything else, and for one of too many values to look at."""
    text = _decoded(await request.body(), request)
    num_values, most = sum(map(text.count, (b",", b"[", b"{"))), request.app.state.service.max_values
    if num_values > most:
        raise ApiError(
            400, f"the body has {num_values} commas and brackets; expected at most {most}: shorten it"
        )
    try:
        body: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ApiError(400, f"the body is a {type(body).__name__}; expected a JSON object")
    return body


def _decoded(body: bytes, request: Request) -> bytes:
    """The body without its Content-Encoding, gzip or deflate. Raises ApiError 415 for another, 413 for a large one."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise ApiError(415, f"the body's Content-Encoding is {encoding!r}; expected gzip, deflate or none")
    most = request.app.state.service.config.max_body_bytes
    text = b""
    for _ in range(_MOST_FILES):  # gzip files that stand one behind the other are one
        inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # finds out which of the two it is
        try:
            text += inflate.decompress(body, most + 1 - len(text))
        except zlib.error as error:
            raise ApiError(400, f"the body is not {encoding}: {error}") from None
        if len(text) > most:
            raise ApiError(413, f"the body is larger than {most} bytes: shorten the request")
        if not inflate.eof:
            raise ApiError(400, f"the body is not {encoding}: its end is missing")
        if not (body := inflate.unused_data):
            return text
    raise ApiError(
        400, f"the body is more than {_MOST_FILES} {encoding} files in a row; expected one: send it whole"
    )


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


async def until_disconnect(receive: Receive, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled when the client leaves. Raises ClientGoneError then."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def ends_with_client(handler: Handler) -> Handler:
    """``handler``, cancelled when the client leaves: nobody waits for its prompt's tokens, its grammar, its answer."""

    @wraps(handler)
    async def handle(request: Request) -> Response:
        await request.body()  # kept in the request; from here on nothing but the end can come
        return await until_disconnect(request.receive, handler(request))

    return handle


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


_dump = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def event(data: Json, name: str | None = None) -> str:
    """One server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {_dump(data)}\n\n"


DONE = "data: [DONE]\n\n"


class EventStream(Response):
    """Sends ``events`` as they come, and closes them when the client leaves. An error is the last event."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None], release: Release) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._release = events, release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        """Run the response."""
        try:
            await until_disconnect(receive, self._send_all(send))
        except ClientGoneError:
            pass
        finally:
            self._release()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._events) as events:
            try:
                async for one in events:
                    await send({"type": "http.response.body", "body": one.encode(), "more_body": True})
            except Exception as error:
                last = event(as_api_error(error).body()) + DONE
                await send({"type": "http.response.body", "body": last.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
