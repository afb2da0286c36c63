"""Run the application until a signal: SIGTERM and SIGINT let what is under way finish, then end the process."""

import asyncio
import socket
from collections.abc import Mapping
from functools import partial
from typing import cast

import uvicorn

from flashdraft.server.app import build_app
from flashdraft.server.connections import BoundedProtocol, room_for_connections
from flashdraft.server.logs import log_event
from flashdraft.server.service import Service

_LAST_WORDS_S = 5  # for the errors that tell of the end, and for a client that does not read


def run_server(
    service: Service, listening: socket.socket, drain_s: int, pair: Mapping[str, object] | None = None
) -> None:
    """Serve on ``listening`` until a signal.

    What is not finished ``drain_s`` seconds after it is answered with an error.

    ``pair``: what is served, for the line that tells the address.

    Log lines go where ``configure_logs`` sent them.
    """
    _Server(uvicorn_config(service, listening, drain_s), service, drain_s, pair or {}).run([listening])


def uvicorn_config(service: Service, listening: socket.socket, drain_s: int = 0) -> uvicorn.Config:
    """How uvicorn serves the application: with our limits, and without what it would do for others."""
    limits = service.config
    host, port = listening.getsockname()[:2]
    protocol = partial(
        BoundedProtocol,
        timeout_s=limits.client_timeout_s,
        max_connections=room_for_connections(limits.max_connections),
    )
    return uvicorn.Config(
        build_app(service),
        host=host,
        port=port,
        http=cast(type[asyncio.Protocol], protocol),
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=drain_s + _LAST_WORDS_S,
        server_header=False,
    )


class _Server(uvicorn.Server):
    """uvicorn's, which at the end of its patience would cut answers off without a word."""

    def __init__(
        self, config: uvicorn.Config, service: Service, drain_s: int, pair: Mapping[str, object]
    ) -> None:
        super().__init__(config)
        self._service, self._drain_s, self._pair = service, drain_s, pair

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn.Server."""
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            log_event("serving", **self._pair, page=url, api=f"{url}/v1")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn.Server."""
        cut = asyncio.create_task(self._stop_engine())
        await super().shutdown(sockets)
        cut.cancel()

    async def _stop_engine(self) -> None:
        await asyncio.sleep(self._drain_s)
        await self._service.engine.stop()
