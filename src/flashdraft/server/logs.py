"""The log: one line an event with its fields, as text or as JSON, and an id for every request.

The id is the client's own ``X-Request-Id`` or a new one; it goes back in that header and stands in every line that is
written while the request is answered.
"""

import json
import logging
import logging.config
import re
from contextvars import ContextVar
from datetime import UTC, datetime
from time import perf_counter
from typing import Any, Literal
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flashdraft.server.metrics import ServerMetrics

LogFormat = Literal["text", "json"]
HEADER = "X-Request-Id"
_GIVEN = re.compile(
    r"[\w.:-]{1,128}", re.ASCII
)  # of a client's id; another would be no single word of a line
_WORD = re.compile(r"[^\s\"'=\\]+")
_PROBES = {"/health", "/ready", "/metrics"}  # asked every few seconds: not worth a line while all is well
_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
_logger = logging.getLogger(__name__)


def log_event(name: str, **fields: Any) -> None:
    """Write one line: what happened, and its figures."""
    _logger.info(name, extra={"fields": fields})


def configure_logs(log_format: LogFormat) -> None:
    """All lines of the process, uvicorn's too, go to stderr in ``log_format``."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"()": JsonLines if log_format == "json" else TextLines}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
            "root": {"level": "WARNING", "handlers": ["stderr"]},
            "loggers": {"flashdraft": {"level": "INFO"}, "uvicorn": {"level": "INFO"}},
        }
    )


class TextLines(logging.Formatter):
    """``time LEVEL message name=value ...``"""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        said = "".join(
            f" {name}={_word(value)}" for name, value in _fields(record).items() if value is not None
        )
        line = f"{_time(record)} {record.levelname} {_printable(record.getMessage())}{said}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        line = {"time": _time(record), "level": record.levelname, "message": record.getMessage()}
        line |= _fields(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _word(value: Any) -> str:
    """``value`` as one word of a line: quoted where it is not, so that nobody's words look like the server's."""
    text = str(value)
    return text if _WORD.fullmatch(text) else _printable(json.dumps(text, ensure_ascii=False))


def _printable(text: str) -> str:
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode()
        for char in text
    )


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    request_id = _request_id.get()
    return ({"request_id": request_id} if request_id else {}) | getattr(record, "fields", {})


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


class RequestLog:
    """ASGI middleware around everything: the request's id, and a line and a count when it is answered."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if _GIVEN.fullmatch(given) else uuid4().hex
        token = _request_id.set(request_id)
        started, status = perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            self._metrics.record_response(status)
            path = scope["path"]
            if path not in _PROBES or status != 200:
                total_s = round(perf_counter() - started, 4)
                log_event("request", method=scope["method"], path=path, status=status, total_s=total_s)
            _request_id.reset(token)
