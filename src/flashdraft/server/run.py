"""Run the application until a signal: SIGTERM and SIGINT let what is under way finish, then end the process."""

import asyncio
import socket

import uvicorn

from flashdraft.server.app import build_app
from flashdraft.server.service import Service

_LAST_WORDS_S = 5  # for the errors that tell of the end, and for a client that does not read


def run_server(service: Service, host: str, port: int, drain_s: int) -> None:
    """Serve until a signal. What is not finished ``drain_s`` seconds after it is answered with an error.

    Log lines go where ``configure_logs`` sent them.
    """
    config = uvicorn.Config(
        build_app(service),
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=drain_s + _LAST_WORDS_S,
        server_header=False,
    )
    _Server(config, service, drain_s).run()


class _Server(uvicorn.Server):
    """uvicorn's, which at the end of its patience would cut answers off without a word."""

    def __init__(self, config: uvicorn.Config, service: Service, drain_s: int) -> None:
        super().__init__(config)
        self._service, self._drain_s = service, drain_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn.Server."""
        cut = asyncio.create_task(self._stop_engine())
        await super().shutdown(sockets)
        cut.cancel()

    async def _stop_engine(self) -> None:
        await asyncio.sleep(self._drain_s)
        await self._service.engine.stop()
