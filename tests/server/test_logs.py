"""Lines of the log: one for every request and answer, with the request's id, in both formats."""

import json
import logging
import time

import httpx2
import pytest

from flashdraft.server.logs import JsonLines, TextLines
from server_case import Running

BODY = {"prompt": "abc", "max_tokens": 4, "ignore_eos": True}


def ask(running: Running, request_id: str) -> httpx2.Response:
    headers = {"X-Request-Id": request_id, "Authorization": "Bearer hidden"}
    return httpx2.post(f"{running.url}/v1/completions?secret=1", json=BODY, headers=headers)


class Lines(logging.Handler):
    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.formatter, self.lines = formatter, []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def caught(request: pytest.FixtureRequest):
    handler, logger = Lines(request.param), logging.getLogger("flashdraft")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler.lines
    logger.removeHandler(handler)
    logger.setLevel(level)


def wait_for(caught: list[str], text: str) -> None:
    """A request's line is written once its answer is out: the client may be faster."""
    end = time.monotonic() + 10
    while not any(text in line for line in caught) and time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.parametrize("caught", [JsonLines()], indirect=True)
def test_json_lines_share_the_id_of_their_request(running: Running, caught: list[str]) -> None:
    assert ask(running, "mine-1").headers["x-request-id"] == "mine-1"
    wait_for(caught, "/v1/completions")
    lines = [json.loads(line) for line in caught]
    answer, request = (next(one for one in lines if one["message"] == name) for name in ("answer", "request"))
    assert answer["request_id"] == request["request_id"] == "mine-1"
    assert (answer["output_tokens"], answer["prompt_tokens"], answer["finish_reason"]) == (4, 3, "length")
    assert (request["path"], request["status"]) == ("/v1/completions", 200)
    assert "hidden" not in "".join(caught)
    assert "secret" not in "".join(caught)


@pytest.mark.parametrize("caught", [TextLines()], indirect=True)
def test_text_lines_name_their_fields_and_probes_are_quiet(running: Running, caught: list[str]) -> None:
    running.get("/health")
    assert not caught
    ask(running, "mine-2")
    wait_for(caught, "request_id=mine-2 method=POST")
    assert any(" INFO request request_id=mine-2 method=POST" in line for line in caught)


def test_an_id_that_would_break_a_line_is_replaced(running: Running) -> None:
    for given in ("two words", "x" * 129, ""):
        told = ask(running, given).headers["x-request-id"]
        assert told != given
        assert len(told) == 32
