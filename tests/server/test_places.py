"""One client, an address or a key, does not take the places of all."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from flashdraft.errors import UsageError
from flashdraft.llm import LLM
from flashdraft.server.config import ServerConfig
from flashdraft.server.places import address_of
from server_case import Running, serving, wait_until

PATH = "/v1/completions"
LONG: dict[str, Any] = {
    "prompt": "a",
    "max_tokens": 1500,
    "ignore_eos": True,
    "temperature": 0,
    "stream": True,
    "logprobs": 20,  # so much to tell that a stream that is not read does not come to its end
}
SHORT: dict[str, Any] = {"prompt": "b", "max_tokens": 5, "ignore_eos": True, "temperature": 0}
ALL = 8  # 4 that run, 4 that wait: a client may have 6, and 3 that run before others


def client_at(address: str, key: str = "") -> httpx2.Client:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx2.Client(transport=httpx2.HTTPTransport(local_address=address), headers=headers, timeout=60)


@contextlib.contextmanager
def occupied(running: Running, http: httpx2.Client, num: int) -> Iterator[None]:
    """``num`` streams of ``http`` that nobody reads."""
    with contextlib.ExitStack() as streams:
        for _ in range(num):
            answer = streams.enter_context(http.stream("POST", running.url + PATH, json=LONG))
            assert answer.status_code == 200
        yield
    wait_until(lambda: running.service.num_unfinished == 0)


def ask(running: Running, http: httpx2.Client) -> httpx2.Response:
    return http.post(running.url + PATH, json=SHORT)


@pytest.fixture(scope="module")
def small(llm: LLM) -> Iterator[Running]:
    with serving(llm, max_running_requests=4, max_queue=4) as one:
        yield one


def test_a_newcomer_is_served_while_another_holds_all_that_it_may(small: Running) -> None:
    with client_at("127.0.0.2") as greedy, client_at("127.0.0.3") as other, occupied(small, greedy, 6):
        refused = ask(small, greedy)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "6 answers of yours are under way and at most 6 may be" in refused.json()["error"]["message"]
        told = ask(small, other)
        assert (told.status_code, small.service.num_unfinished) == (200, 6)
        assert (
            small.service.engine.stats().num_preemptions == 1
        )  # one of four that ran made room, and runs again
        wait_until(lambda: small.service.engine.stats().num_running == 4)
    with client_at("127.0.0.2") as greedy:
        assert ask(small, greedy).json()["choices"] == told.json()["choices"]


def test_places_are_counted_by_key_where_there_are_several(llm: LLM) -> None:
    limits = {"max_running_requests": 4, "max_queue": 4, "max_per_client": 2}
    one, two = client_at("127.0.0.2", "one"), client_at("127.0.0.2", "two")
    with serving(llm, api_keys=("one", "two"), **limits) as several, one, two, occupied(several, one, 2):
        with client_at("127.0.0.3", "one") as elsewhere:
            assert ask(several, elsewhere).status_code == 429
        assert ask(several, two).status_code == 200


def test_a_share_of_all_places_is_no_limit(llm: LLM) -> None:
    limits = {"max_running_requests": 4, "max_queue": 4, "max_per_client": ALL}
    gateway, other = client_at("127.0.0.2"), client_at("127.0.0.3")
    with serving(llm, **limits) as shared, gateway, other, occupied(shared, gateway, ALL):
        assert "8 answers are under way and at most 8" in ask(shared, other).text
        assert shared.service.engine.stats().num_preemptions == 0


@pytest.mark.parametrize(
    ("host", "known_by"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::9", "2001:db8:1:2::"),
        ("no address", "no address"),
    ],
)
def test_what_an_address_stands_for(host: str, known_by: str) -> None:
    assert address_of({"client": (host, 1)}) == known_by


def test_the_default_share_leaves_places() -> None:
    shares = [ServerConfig(max_running_requests=1, max_queue=more).client_share for more in (0, 1, 3, 159)]
    assert shares == [1, 2, 3, 120]
    with pytest.raises(UsageError, match="max_per_client is 0; expected 1 or more"):
        ServerConfig(max_per_client=0)


def test_addresses_are_forgotten_with_their_answers(small: Running) -> None:
    with client_at("127.0.0.4") as http:
        assert json.loads(ask(small, http).text)["usage"]["completion_tokens"] == 5
    assert not small.service.places._held
