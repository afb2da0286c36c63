"""Run the application until a signal: SIGTERM and SIGINT let what is under way finish, then end the process."""

import uvicorn
from starlette.applications import Starlette


def run_server(app: Starlette, host: str, port: int, drain_s: int) -> None:
    """Serve until a signal. What is not finished ``drain_s`` seconds after it is cut off."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="info",
        access_log=False,
        timeout_graceful_shutdown=drain_s,
        server_header=False,
    )
    uvicorn.Server(config).run()
