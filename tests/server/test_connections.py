"""Connections whose client sends without end, does not send, or does not read, seen from the socket."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator

import pytest
import uvicorn
from uvicorn.server import ServerState

import patient
from flashdraft.llm import LLM
from flashdraft.server.connections import MAX_HEAD_BYTES, MAX_HEADERS, BoundedProtocol
from server_case import MODEL, Running, serving, wait_until

TIMEOUT_S = 0.5
SERVED_S = 2.0  # of a request that has to be in time
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def hasty(llm: LLM) -> Iterator[Running]:
    """A server that does not wait for long, and lets few in."""
    with serving(llm, client_timeout_s=TIMEOUT_S, max_connections=6) as one:
        yield one


@pytest.fixture(scope="module")
def unhurried(llm: LLM) -> Iterator[Running]:
    """A server that waits longer than a busy machine lets a test wait between two lines."""
    with serving(llm, client_timeout_s=SERVED_S) as one:
        yield one


Connect = Callable[..., socket.socket]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Opens connections to a server, which are closed behind the test."""
    with contextlib.ExitStack() as opened:

        def open_one(running: Running, rcvbuf: int | None = None) -> socket.socket:
            host, port = running.url.removeprefix("http://").split(":")
            one = opened.enter_context(socket.socket())
            if rcvbuf:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
            one.settimeout(patient.PATIENCE_S)
            one.connect((host, int(port)))
            return one

        yield open_one


def told(connection: socket.socket) -> tuple[int, str]:
    """Status and message of what the server says before it closes."""
    said = b""
    while piece := connection.recv(1 << 16):
        said += piece
    head, _, body = said.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["message"]


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nA: " + b"x" * (12 * MAX_HEAD_BYTES),  # and not at its end
        b"GET /health HTTP/1.1\r\nA: " + b"x" * (12 * MAX_HEAD_BYTES) + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"x" * (12 * MAX_HEAD_BYTES),
        b"GET /" + b"x" * (12 * MAX_HEAD_BYTES),
        b"GET /health HTTP/1.1\r\n" + b"A: b\r\n" * (MAX_HEADERS + 2),
        POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n" + b"A: b\r\n" * (MAX_HEADERS + 2),
        POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nA: " + b"x" * (12 * MAX_HEAD_BYTES),
        POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * (12 * MAX_HEAD_BYTES),
    ],
)
def test_a_head_has_a_size(running: Running, head: bytes, connect: Connect) -> None:
    connection = connect(running)
    for start in range(0, len(head), 8192):  # as a network brings it
        try:
            connection.sendall(head[start : start + 8192])
        except OSError:  # the server has heard enough
            break
    with contextlib.suppress(ConnectionResetError):  # it did not even take all that was sent
        status, message = told(connection)
        assert status == 431
        assert message == "the head of the request is too large; expected at most 32768 bytes and 100 headers"
    assert running.get("/health").status_code == 200


def test_a_head_within_the_limits_is_fine(running: Running, connect: Connect) -> None:
    connection = connect(running)
    head = b"GET /health HTTP/1.1\r\nConnection: close\r\n" + b"A: b\r\n" * (MAX_HEADERS - 2)
    connection.sendall(head + b"A: " + b"x" * (MAX_HEAD_BYTES - 1000) + b"\r\n\r\n")
    assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET /health HT",
        POST + b"Content-Length: 100\r\n\r\n{",
        POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
    ],
)
def test_a_request_that_does_not_come_ends_its_connection(
    hasty: Running, begun: bytes, connect: Connect
) -> None:
    connection = connect(hasty)
    connection.sendall(begun)
    assert told(connection) == (408, "the request was not here after 0.5 seconds")
    assert hasty.service.num_unfinished == 0


def test_a_drip_does_not_earn_time(hasty: Running, connect: Connect) -> None:
    connection = connect(hasty)
    connection.sendall(POST + b"Content-Length: 100\r\n\r\n{")
    started = time.monotonic()
    connection.settimeout(0.05)
    while time.monotonic() - started < patient.PATIENCE_S:
        connection.sendall(b" ")
        try:
            if connection.recv(100).startswith(b"HTTP/1.1 408 "):
                break
        except TimeoutError:
            continue
    else:
        pytest.fail("it was waited for")


def test_a_body_in_pieces_and_a_stream_longer_than_the_timeout_are_served(
    unhurried: Running, connect: Connect
) -> None:
    body = json.dumps({"prompt": "a", "stream": True, "max_tokens": 300, "ignore_eos": True}).encode()
    connection = connect(unhurried)
    connection.sendall(POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
    for start in range(0, len(body), 30):
        time.sleep(0.01)
        connection.sendall(body[start : start + 30])
    said, started = b"", time.monotonic()
    while piece := connection.recv(1 << 16):
        said += piece
        if time.monotonic() - started < 2 * SERVED_S:
            time.sleep(SERVED_S / 8)  # reads, if slowly
    assert b'"finish_reason":"length"' in said
    assert said.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_a_client_that_does_not_read_loses_its_place(unhurried: Running, connect: Connect) -> None:
    asked = {"model": MODEL, "prompt": "a", "n": 16, "stream": True, "max_tokens": 400, "logprobs": 20}
    body = json.dumps(asked | {"ignore_eos": True, "temperature": 0}).encode()
    connection = connect(unhurried, rcvbuf=4096)
    connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    wait_until(lambda: unhurried.service.num_unfinished == 16)
    wait_until(lambda: unhurried.service.num_unfinished == 0)
    said, piece = b"", b"-"
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(1 << 16):
            said += piece
    assert piece or not said.endswith(b"0\r\n\r\n")  # cut off: the end never comes
    wait_until(lambda: unhurried.service.engine.stats().num_running == 0)


def is_answered(connection: socket.socket, sent: bytes = b"") -> bool:
    """Whether GET /health, of which ``sent`` is there already, brings its answer, and the server's end of it."""
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    connection.sendall(request.removeprefix(sent))
    said = b""
    while piece := connection.recv(1 << 16):
        said += piece
    return said.startswith(b"HTTP/1.1 200")


def test_where_all_connections_are_taken_those_silent_the_longest_go(llm: LLM, connect: Connect) -> None:
    begun = b"GET /health HT"
    with serving(llm, max_connections=6) as patient:
        early = [connect(patient) for _ in range(4)]
        assert is_answered(connect(patient)), "all four have been let in"
        time.sleep(0.01)  # the server's clock shows milliseconds
        late = [connect(patient) for _ in range(5)]
        for one in late:
            one.sendall(begun)
        assert is_answered(connect(patient))
        for one in early:
            assert one.recv(1) == b""
        assert all(is_answered(one, begun) for one in late)


def test_a_burst_of_connections_leaves_no_more_than_may_be() -> None:
    async def num_left() -> int:
        config = uvicorn.Config(None, limit_concurrency=None)
        config.load()
        state = ServerState()
        listening = socket.create_server(("127.0.0.1", 0))
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: BoundedProtocol(config, state, {}, timeout_s=60, max_connections=2), sock=listening
        )
        clients = [
            socket.create_connection(listening.getsockname()) for _ in range(7)
        ]  # before the loop turns
        for one in clients[:-2]:
            await loop.run_in_executor(None, one.recv, 1)  # until it is closed
        await asyncio.sleep(0.01)
        server.close()
        left = len(state.connections)
        for one in clients:
            one.close()
        return left

    assert asyncio.run(num_left()) == 2


def test_a_refused_body_is_not_read_to_its_end(llm: LLM, connect: Connect) -> None:
    with serving(llm, max_body_bytes=1000, client_timeout_s=SERVED_S) as small:
        connection = connect(small)
        connection.sendall(POST + b"Content-Length: 1000000000\r\n\r\n{")
        assert told(connection)[0] == 413
        whole = patient.post(small.url + "/v1/completions", content=b" " * (6 << 20))
        assert whole.status_code == 413, "a client that sends all of it first is told so too"
