"""Connections whose client sends without end, or does not send, or does not read: uvicorn's protocol with limits.

A head (request line, headers, trailers) has a size, heads and bodies have a time, and so has an answer to be read. A
connection that is none of these costs nobody anything. What a head costs otherwise: httptools joins what came of an
unfinished header anew with every piece of it.
"""

import asyncio
import json
import re
import resource
import socket
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from flashdraft.server.api_errors import ApiError

MAX_HEAD_BYTES = 32 << 10
MAX_HEADERS = 100
_MIN_RATE = 64 << 10  # bytes of a body that earn it one more second; as Apache's RequestReadTimeout counts
_SEND_BUFFER = 128 << 10  # bytes; the kernel's own choice hides for minutes that nobody reads
_MAX_UNHEARD = 32 << 20  # bytes of a body that are read though it is refused
_SPARE_FILES = 64  # descriptors for all but connections


def room_for_connections(wanted: int) -> int:
    """How many connections there may be: ``wanted``, or what the limit of open files leaves when raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or soft < min(wanted + _SPARE_FILES, hard):
        soft = wanted + _SPARE_FILES if hard == resource.RLIM_INFINITY else min(wanted + _SPARE_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(min(wanted, soft - _SPARE_FILES), 1)


_UPGRADE = re.compile(rb"\r\n(?:upgrade:[ \t]*h2c[ \t]*|http2-settings:[^\r\n]*)(?=\r\n)", re.IGNORECASE)


def without_upgrade(data: bytes) -> bytes:
    """``data`` without an offer to go on in HTTP/2, which a server may pass over (RFC 9110, section 7.8).

    httptools would take the offer for accepted, and the body with it. curl --http2 and Java's client make it.
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    if b"h2c" not in head.lower():
        return data
    return _UPGRADE.sub(b"", head + end[:2]) + end[2:] + rest


class BoundedProtocol(HttpToolsProtocol):
    """``timeout_s``: for a head, for the first bytes of a body, and for a client to read what waits for it.

    Beyond ``max_connections`` the one that has been silent the longest has to go.
    """

    def __init__(self, *args: Any, timeout_s: float, max_connections: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timeout_s, self._max_connections = timeout_s, max_connections
        self._sending: asyncio.TimerHandle | None = None  # until the request has to be here
        self._reading: asyncio.TimerHandle | None = None  # until the client has to have read
        self._refused: ApiError | None = None
        self._head_bytes = self._num_headers = self._body_bytes = self._idle_bytes = 0
        self._told_bytes = 0  # of the last piece that came
        self._is_told = self._in_body = False
        self._body_began = 0.0

    # Sizes.

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._refused:
            return
        if not self._in_body:
            data = without_upgrade(data)
        self._is_told, self._told_bytes = False, 0
        super().data_received(data)
        if not self._is_told:
            self._idle_bytes += len(data)
        else:
            self._idle_bytes = 0 if self._in_body else len(data) - self._told_bytes
        self._count_head(0, self._idle_bytes)
        if self._refused:
            self._close_with(self._refused)

    def on_message_begin(self) -> None:
        """See httptools; so the others."""
        super().on_message_begin()
        self._is_told = True
        self._head_bytes = self._num_headers = self._body_bytes = 0
        if self._sending is None:
            self._expect(self._timeout_s)

    def on_url(self, url: bytes) -> None:
        """A part of the path."""
        self._is_told = True
        self._count_head(len(url))
        if not self._refused:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes | None) -> None:
        """A header, or a trailer."""
        self._is_told = True
        self._num_headers += 1
        self._count_head(len(name) + len(value or b""))
        if not self._refused:
            super().on_header(name, value or b"")

    def on_headers_complete(self) -> None:
        """The head is here."""
        self._is_told = self._in_body = True
        if not self._refused:
            super().on_headers_complete()
            self._body_began = self.loop.time()
            self._expect(self._timeout_s)

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._is_told = True
        if not self._refused:
            super().on_body(body)
            self._told_bytes += len(body)
            self._body_bytes += len(body)
            end = self._body_began + self._timeout_s + self._body_bytes / _MIN_RATE
            self._expect(end - self.loop.time())
            if self.is_silent and self._body_bytes > _MAX_UNHEARD:
                self.transport.close()
                self._expect_reader()

    def on_message_complete(self) -> None:
        """All of the request is here."""
        self._is_told, self._in_body = True, False
        self._sending = _cancelled(self._sending)
        if not self._refused:
            super().on_message_complete()

    def _count_head(self, num_bytes: int, num_idle: int = 0) -> None:
        self._head_bytes += num_bytes
        self._told_bytes += num_bytes
        if self._head_bytes + num_idle > MAX_HEAD_BYTES or self._num_headers > MAX_HEADERS:
            limits = f"at most {MAX_HEAD_BYTES} bytes and {MAX_HEADERS} headers"
            self._refused = self._refused or ApiError(
                431, f"the head of the request is too large; expected {limits}"
            )

    # Times.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        super().connection_made(cast(asyncio.Transport, transport))
        if (connected := transport.get_extra_info("socket")) is not None:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._expect(self._timeout_s)
        if len(self.connections) > self._max_connections:
            kept = [
                one for one in self.connections if isinstance(one, BoundedProtocol) and not one.is_closing
            ]
            if len(kept) > self._max_connections:
                min((one for one in kept if one.is_silent), key=BoundedProtocol.since).transport.abort()

    @property
    def is_closing(self) -> bool:
        """Whether this connection ends: it is lost a turn of the loop later only, and a burst comes in one turn."""
        return bool(self.transport.is_closing())

    @property
    def is_silent(self) -> bool:
        """Whether no request of this connection is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def since(self) -> float:
        """The time at which the request that is awaited has to be here; infinite between two requests."""
        return float("inf") if self._sending is None else self._sending.when()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._sending, self._reading = _cancelled(self._sending), _cancelled(self._reading)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client has not read what was sent."""
        super().pause_writing()
        self._expect_reader()

    def resume_writing(self) -> None:
        """It has, mostly."""
        self._reading = _cancelled(self._reading)
        super().resume_writing()

    def on_response_complete(self) -> None:
        """The answer is written. Of a body that is still being sent some is read, so that its client hears it."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._expect_reader()

    def timeout_keep_alive_handler(self) -> None:
        """No further request came."""
        super().timeout_keep_alive_handler()
        self._expect_reader()

    def _expect(self, seconds: float) -> None:
        _cancelled(self._sending)
        self._sending = self.loop.call_later(max(seconds, 0), self._sent_too_slowly)

    def _expect_reader(self) -> None:
        _cancelled(self._reading)
        self._reading = self.loop.call_later(self._timeout_s, self.transport.abort)

    def _sent_too_slowly(self) -> None:
        is_early = not self._in_body and not self.is_silent  # while the one before is being answered
        if self.flow.read_paused or is_early:  # we do not read: it may have sent
            self._expect(self._timeout_s)
        else:
            self._close_with(ApiError(408, f"the request was not here after {self._timeout_s:g} seconds"))

    def _close_with(self, error: ApiError) -> None:
        """Say ``error``, where no answer has begun, and end the connection."""
        cycle = self.cycle
        is_told = (
            cycle is not None and cycle.response_started and (self._in_body or not cycle.response_complete)
        )
        if not is_told:
            body = json.dumps(error.body()).encode()
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(
                body
            )
            self.transport.write(STATUS_LINE[error.status] + head + body)
        self.transport.close()
        self._expect_reader()


def _cancelled(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None  # the timer to keep
