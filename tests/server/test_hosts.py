"""Which page in a browser may ask a server without a key, and what its answers tell browsers."""

from collections.abc import Iterator

import pytest

import patient
from flashdraft.llm import LLM
from flashdraft.server.hosts import LOOPBACK, is_loopback
from server_case import Running, serving

ASK = {"prompt": "a", "max_tokens": 1}


@pytest.fixture(scope="module")
def local(llm: LLM) -> Iterator[Running]:
    with serving(llm, allowed_hosts=(*LOOPBACK, "my.lan")) as one:
        yield one


def status(running: Running, path: str = "/v1/completions", **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if path == "/v1/completions":
        return patient.post(running.url + path, json=ASK, headers=named).status_code
    return patient.get(running.url + path, headers=named).status_code


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "localhost:30000"},
        {"host": "LOCALHOST"},
        {"host": "[::1]:30000"},
        {"host": "my.lan"},
        {"origin": "http://127.0.0.1:3000"},
        {"origin": "http://notebook.localhost"},
        {"origin": "https://my.lan", "sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-origin"},
    ],
)
def test_this_machines_names_may_ask(local: Running, headers: dict[str, str]) -> None:
    assert status(local, **headers) == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "other.example"},
        {"host": "127.0.0.1.other.example:30000"},
        {"host": "localhost@other.example"},
        {"host": "[::1"},
        {"host": ""},
        {"origin": "https://other.example"},
        {"origin": "null"},
        {"origin": "http://localhost.other.example"},
        {"sec_fetch_site": "cross-site"},
    ],
)
def test_other_names_may_not(local: Running, headers: dict[str, str]) -> None:
    assert status(local, **headers) == 403
    assert status(local, "/flush_cache", **headers) == 403


def test_the_mend_is_told_and_a_key_is_one(local: Running, llm: LLM) -> None:
    refused = patient.get(f"{local.url}/v1/models", headers={"Host": "other.example"}).json()["error"]
    assert "host is 'other.example'; expected localhost, 127.0.0.1, ::1, my.lan" in refused["message"]
    assert "--allowed-hosts" in refused["message"]
    with serving(llm, allowed_hosts=LOOPBACK, api_keys=("key",)) as locked:
        assert status(locked, host="other.example", authorization="Bearer key") == 200


def test_everybody_may_follow_a_link_to_the_page(local: Running) -> None:
    assert status(local, "/", sec_fetch_site="cross-site") == 200


def test_answers_are_what_they_say_and_the_page_stands_in_no_frame(running: Running) -> None:
    for path in ("/", "/v1/models", "/nothing", "/assets/page.js"):
        assert running.get(path).headers["x-content-type-options"] == "nosniff"
    policy = running.get("/").headers["content-security-policy"]
    for rule in ("frame-ancestors", "base-uri", "form-action", "default-src"):
        assert f"{rule} 'none'" in policy


def test_loopback() -> None:
    assert [is_loopback(one) for one in ("127.0.0.1", "127.1.2.3", "::1", "localhost")] == [True] * 4
    assert [is_loopback(one) for one in ("0.0.0.0", "::", "10.0.0.1", "example.com", "")] == [False] * 5
