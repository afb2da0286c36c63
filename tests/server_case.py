"""A tiny pair behind a real server on a free port, in a thread of the test's process."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
import uvicorn

import patient
from flashdraft.engine.async_engine import AsyncEngine
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.llm import LLM
from flashdraft.server.config import ServerConfig
from flashdraft.server.engine_client import EngineClient
from flashdraft.server.listening import listen_on
from flashdraft.server.run import uvicorn_config
from flashdraft.server.service import Service

MODEL = "tiny"


@dataclass
class Running:
    """A server under way."""

    url: str
    service: Service

    def openai(self, api_key: str = "EMPTY") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0)

    def post(self, path: str, **body: Any) -> httpx2.Response:
        return patient.post(self.url + path, json=body)

    def get(self, path: str) -> httpx2.Response:
        return patient.get(self.url + path)


@contextlib.contextmanager
def serving(llm: LLM, engine: EngineClient | None = None, **config: Any) -> Iterator[Running]:
    """A server of ``llm`` until the end of the block."""
    settings = ServerConfig(**({"model_names": (MODEL,)} | config))
    context_len = llm.target.config.max_position_embeddings
    own = engine or AsyncEngine(own_engine(llm, settings))
    service = Service(own, llm.tokenizer, context_len, llm.max_block_size, settings)
    listening = listen_on("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn_config(service, listening))
    port = listening.getsockname()[1]
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield Running(f"http://127.0.0.1:{port}", service)
    finally:
        server.should_exit = True
        thread.join(patient.PATIENCE_S)
        assert not thread.is_alive()


@contextlib.contextmanager
def waiting_client(running: Running, path: str, **body: Any) -> Iterator[None]:
    """A client that has asked, reads nothing, and leaves at the end of the block."""
    host, port = running.url.removeprefix("http://").split(":")
    asked = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(asked)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + asked)
        yield


def own_engine(llm: LLM, config: ServerConfig) -> Engine:
    """An engine of the server's own: the test goes on using the one of ``llm`` in its thread."""
    engine_config = EngineConfig(max_running=config.max_running_requests)
    return Engine(llm.target, llm.drafter, engine_config, llm.eos_token_ids, llm.tokenizer, llm.block_size)


def wait_until(is_so: Callable[[], bool], timeout_s: float = patient.PATIENCE_S) -> None:
    end = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError("it did not happen")
        time.sleep(0.01)
