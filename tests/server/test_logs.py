"""Lines of the log: one for every request and answer, with the request's id, in both formats."""

import asyncio
import json
import logging
from dataclasses import replace

import httpx2
import pytest

import patient
from flashdraft.server.logs import JsonLines, TextLines
from flashdraft.server.status_line import report_status, status_of
from server_case import Running, wait_until

BODY = {"prompt": "abc", "max_tokens": 4, "ignore_eos": True}


def ask(running: Running, request_id: str) -> httpx2.Response:
    headers = {"X-Request-Id": request_id, "Authorization": "Bearer hidden"}
    return patient.post(f"{running.url}/v1/completions?secret=1", json=BODY, headers=headers)


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
    wait_until(lambda: any(text in line for line in caught))


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


def test_a_status_line_tells_what_was_done_since_the_last_one(running: Running) -> None:
    stats, before = running.service.engine.stats(), running.service.metrics.totals()
    assert status_of(before, before, 10, stats) is None
    ask(running, "mine-3")
    now = running.service.metrics.totals()
    assert (now.output_tokens - before.output_tokens, now.round_tokens - before.round_tokens) == (4, 3)
    told = status_of(before, now, 0.5, stats)
    assert told is not None
    assert (told["output_tokens_per_s"], told["prompt_tokens_per_s"]) == (8.0, 6.0)
    assert told["acceptance_length"] == round(3 / (now.rounds - before.rounds), 2)
    assert (told["running"], told["waiting"], told["cache_used"]) == (0, 0, "0%")
    busy = status_of(now, now, 10, replace(stats, num_waiting=2, num_free_pages=stats.num_pages // 2))
    assert busy is not None
    assert (busy["waiting"], busy["acceptance_length"], busy["cache_used"]) == (2, None, "50%")


@pytest.mark.parametrize("caught", [TextLines()], indirect=True)
def test_status_lines_are_written_while_there_is_work(running: Running, caught: list[str]) -> None:
    async def report() -> None:
        task = asyncio.create_task(report_status(running.service, every_s=0.01))
        await asyncio.to_thread(ask, running, "mine-4")
        await asyncio.to_thread(wait_for, caught, " INFO status output_tokens_per_s=")
        task.cancel()

    asyncio.run(report())
    assert any(" INFO status output_tokens_per_s=" in line for line in caught)


def test_a_line_of_text_is_one_line_whatever_a_client_calls_its_path() -> None:
    fields = {
        "path": "/a\n2026 INFO forged\x00\u2028\ud800",
        "quoted": 'x" status=200',
        "plain": "/v1/models",
        "n": 2,
    }
    record = logging.makeLogRecord({"msg": "request\r\nforged", "fields": fields, "levelname": "INFO"})
    line = TextLines().format(record)
    assert line.isprintable()
    assert line.endswith(
        r'''INFO request\r\nforged path="/a\n2026 INFO forged\u0000\u2028\ud800" quoted="x\" status=200"'''
        " plain=/v1/models n=2"
    )


@pytest.mark.parametrize("caught", [TextLines()], indirect=True)
def test_a_path_with_a_line_break_is_logged_in_one_line(running: Running, caught: list[str]) -> None:
    running.get("/a%0A2026-01-01%20INFO%20forged")
    wait_for(caught, "forged")
    [line] = [line for line in caught if "forged" in line]
    assert "\n" not in line
    assert 'path="/a\\n2026-01-01 INFO forged"' in line
