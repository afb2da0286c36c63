"""Malformed requests: each is answered, none with a fault of the server's, and the server is as before.

FLASHDRAFT_FUZZ_REQUESTS is the number of them (`make fuzz`: 5,000); the seed is fixed.
"""

import contextlib
import json
import os
import resource
import socket
from collections import Counter
from collections.abc import Iterator

import httpx2
import pytest

from flashdraft.llm import LLM
from fuzzed_requests import heads, requests
from server_case import Running, serving, wait_until
from tiny_pair import TOOLS_TEMPLATE

NUMBER = int(os.environ.get("FLASHDRAFT_FUZZ_REQUESTS", "250"))
SEED = 25
LIMIT_S = 60  # of one answer on a machine that does other work; `make fuzz` tells the longest
TOLD = {400, 403, 404, 405, 408, 413, 429, 431}


@pytest.fixture(scope="module")
def fuzzed(llm: LLM) -> Iterator[Running]:
    kept, llm.tokenizer.chat_template = llm.tokenizer.chat_template, TOOLS_TEMPLATE
    with serving(llm, client_timeout_s=1, max_answer_tokens=4) as one:
        yield one
    llm.tokenizer.chat_template = kept


def test_malformed_requests_are_told_so(fuzzed: Running) -> None:
    outcomes, longest = Counter[int](), 0.0
    with httpx2.Client(timeout=LIMIT_S) as http:
        for number, (path, body) in enumerate(requests(SEED, NUMBER)):
            answer = http.post(fuzzed.url + path, content=body)
            longest = max(longest, answer.elapsed.total_seconds())
            outcomes[answer.status_code] += 1
            what = f"request {number}: {path} {body[:2000]!r}: {answer.status_code} {answer.text[:500]}"
            if answer.status_code == 503:
                assert "retry-after" in answer.headers, what
            elif answer.status_code != 200:
                assert answer.status_code in TOLD, what
            if answer.status_code != 200:
                told = json.loads(answer.text)["error"]
                assert told["message"], what
    print(f"{NUMBER} requests, by status: {dict(sorted(outcomes.items()))}, at most {longest:.2f} s")
    assert outcomes[400] > NUMBER / 4, outcomes  # the mutations reach what they shall
    assert outcomes[200] > NUMBER / 20, outcomes
    is_as_before(fuzzed)


def test_malformed_heads_are_answered_or_cut_off(fuzzed: Running) -> None:
    host, port = fuzzed.url.removeprefix("http://").split(":")
    for head in heads(SEED, NUMBER // 2):
        with socket.create_connection((host, int(port)), timeout=LIMIT_S) as connection:
            connection.sendall(head)
            connection.shutdown(socket.SHUT_WR)
            said = b""
            with contextlib.suppress(ConnectionResetError):
                while piece := connection.recv(1 << 16):
                    said += piece
            assert not said or int(said.split()[1]) in TOLD | {100, 200}, (head, said)
    is_as_before(fuzzed)


def is_as_before(running: Running) -> None:
    wait_until(lambda: running.service.num_unfinished == 0)
    wait_until(lambda: running.service.engine.stats().num_running == 0)
    assert running.get("/ready").status_code == 200
    assert running.post("/flush_cache").json()["success"], "a page is held"
    backend = running.service.tokenizer.backend_tokenizer
    assert (backend.truncation, backend.padding) == (None, None)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 << 20, "more than 4 GiB"  # in KiB
