"""Pages of other origins, compressed bodies, and clients that offer HTTP/2."""

import gzip
import json
import socket
import zlib
from urllib.parse import urlsplit

import pytest

import patient
from flashdraft.llm import LLM
from flashdraft.server.connections import without_upgrade
from server_case import Running, serving

PATH = "/v1/completions"
BODY = json.dumps({"prompt": "a", "max_tokens": 2}).encode()
PAGE = "https://chat.example"
ASKED = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}


def test_a_page_of_an_allowed_origin_may_ask_before_it_has_shown_its_key(llm: LLM) -> None:
    with serving(llm, api_keys=("secret",), allowed_origins=(PAGE,)) as running:
        url = running.url + PATH
        preflight = patient.options(url, headers={"Origin": PAGE, **ASKED})
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == PAGE
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        assert patient.options(url, headers={"Origin": "https://evil.example", **ASKED}).status_code == 400
        refused = patient.post(url, content=BODY, headers={"Origin": PAGE})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE)
        headers = {"Origin": PAGE, "Authorization": "Bearer secret"}
        answer = patient.post(url, content=BODY, headers=headers)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
        assert "X-Request-Id" in answer.headers["access-control-expose-headers"]


def test_without_a_key_only_the_named_page_may_ask_a_server_of_this_machine(llm: LLM) -> None:
    with serving(llm, allowed_hosts=("127.0.0.1",), allowed_origins=(PAGE,)) as running:
        url = running.url + PATH
        assert patient.post(url, content=BODY, headers={"Origin": PAGE}).status_code == 200
        assert patient.post(url, content=BODY, headers={"Origin": "https://evil.example"}).status_code == 403


def test_no_page_may_ask_by_default(running: Running) -> None:
    answer = patient.options(running.url + PATH, headers={"Origin": PAGE, **ASKED})
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_compressed_bodies_are_read(llm: LLM) -> None:
    with serving(llm, max_body_bytes=2000) as running:

        def send(body: bytes, encoding: str) -> tuple[int, str]:
            response = patient.post(running.url + PATH, content=body, headers={"Content-Encoding": encoding})
            return response.status_code, response.text

        for encoding, body in (
            ("gzip", gzip.compress(BODY)),
            ("gzip", gzip.compress(BODY[:9]) + gzip.compress(BODY[9:])),
            ("deflate", zlib.compress(BODY)),
            ("identity", BODY),
            ("", BODY),
        ):
            assert send(body, encoding)[0] == 200
        large = gzip.compress(json.dumps({"prompt": "a" * 100_000}).encode())
        assert len(large) < 2000
        status, text = send(large, "gzip")
        assert (status, "larger than 2000 bytes" in text) == (413, True)
        for body, encoding, status, part in (
            (BODY, "gzip", 400, "the body is not gzip"),
            (gzip.compress(BODY)[:-9], "gzip", 400, "its end is missing"),
            (gzip.compress(b"") * 97, "gzip", 400, "more than 96 gzip files"),
            (BODY, "br", 415, "Content-Encoding is 'br'"),
        ):
            told = send(body, encoding)
            assert (told[0], part in told[1]) == (status, True)


@pytest.mark.parametrize("size", [7, 4096])
def test_an_offer_of_http_2_is_passed_over_with_its_body_kept(running: Running, size: int) -> None:
    parts = urlsplit(running.url)
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        f"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nContent-Length: {len(BODY)}\r\n\r\n"
    ).encode()
    with socket.create_connection((parts.hostname, parts.port), timeout=patient.PATIENCE_S) as one:
        one.sendall(head + BODY[:size])
        one.sendall(BODY[size:])
        assert one.recv(65536).startswith(b"HTTP/1.1 200 OK")


def test_only_the_offer_goes() -> None:
    head = b"GET / HTTP/1.1\r\nA: h2c\r\nupgrade:h2c\r\nHTTP2-Settings: x\r\nB: 1\r\n\r\n"
    assert without_upgrade(head) == b"GET / HTTP/1.1\r\nA: h2c\r\nB: 1\r\n\r\n"
    other = b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\nh2c\r\nUpgrade: h2c\r\n"
    assert without_upgrade(other) == other
    assert without_upgrade(head[:-2]) == b"GET / HTTP/1.1\r\nA: h2c\r\nB: 1\r\n"
