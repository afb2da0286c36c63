"""The application: which path is answered by whom. It begins and ends with its engine."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from flashdraft.errors import FlashdraftError
from flashdraft.server.api_errors import ApiError, answer_error, answer_http_error
from flashdraft.server.gate import Gate
from flashdraft.server.http_io import ClientGoneError
from flashdraft.server.logs import RequestLog
from flashdraft.server.openapi import routes
from flashdraft.server.service import Service
from flashdraft.server.status_line import report_status

_ASSETS = Mount("/assets", StaticFiles(packages=[("flashdraft.server", "playground")]))  # of the page


def build_app(service: Service) -> Starlette:
    """The ASGI application of ``service``, whose engine runs from its startup to its shutdown."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None, None]:
        app.state.service = service
        await service.engine.start()
        status = asyncio.create_task(report_status(service))
        try:
            yield
        finally:
            status.cancel()
            await service.engine.stop()
            service.text_work.close()

    handlers = {
        HTTPException: answer_http_error,
        ApiError: answer_error,
        FlashdraftError: answer_error,
        ValidationError: answer_error,
        ClientGoneError: _answer_nobody,
        ClientDisconnect: _answer_nobody,  # while its body was read
        Exception: answer_error,
    }
    return Starlette(
        routes=[*routes(), _ASSETS],
        middleware=[
            Middleware(RequestLog, service.metrics),
            *_cors(service),
            Middleware(Gate, service.config),
        ],
        exception_handlers=handlers,
        lifespan=lifespan,
    )


def _cors(service: Service) -> list[Middleware]:
    """Before the gate: a browser asks whether it may ask without its key."""
    origins = service.config.allowed_origins
    headers = ["X-Request-Id", "Retry-After"]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=headers,
    )
    return [cors] if origins else []


async def _answer_nobody(request: Request, error: Exception) -> Response:  # noqa: ARG001 - Starlette's signature
    return Response(status_code=499)
