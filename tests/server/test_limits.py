"""What one request may cost is known before it costs it, and nothing of it reaches what requests share."""

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

import patient
from flashdraft.llm import LLM
from flashdraft.server.api_errors import ApiError
from flashdraft.server.places import Places
from flashdraft.server.prompts import _variables
from flashdraft.server.text_work import TextWork
from server_case import Running, serving, wait_until, waiting_client
from tiny_pair import CHAT_TEMPLATE, TOOLS_TEMPLATE

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI: dict[str, Any] = {"messages": [{"role": "user", "content": "hi, " * 20}], "max_tokens": 1}


@pytest.fixture
def thinking(llm: LLM) -> Iterator[Running]:
    """The same with a template that takes ``enable_thinking``."""
    kept, llm.tokenizer.chat_template = llm.tokenizer.chat_template, TOOLS_TEMPLATE
    with serving(llm) as one:
        yield one
    llm.tokenizer.chat_template = kept


def post(running: Running, path: str, body: Any) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()  # half surrogates too
    return patient.post(running.url + path, content=content)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"truncation": True, "max_length": 3},
        {"padding": "max_length", "max_length": 300},
        {"return_tensors": "pt"},
        {"tokenizer_kwargs": 1},
        {"add_generation_prompt": False},
        {"sanitize_control_tokens": True},
        {"messages": "x"},
        {"raise_exception": 1},
        {"eos_token": "x"},
        {"color": "red"},
    ],
)
def test_a_template_takes_its_own_variables_alone_and_the_tokenizer_keeps_its_state(
    running: Running, kwargs: dict[str, Any]
) -> None:
    before = running.post(CHAT, **HI).json()["usage"]["prompt_tokens"]
    refused = running.post(CHAT, **HI, chat_template_kwargs=kwargs)
    assert refused.status_code == 400, refused.text
    name = refused.json()["error"]["param"].removeprefix("chat_template_kwargs.")
    assert name in kwargs
    backend = running.service.tokenizer.backend_tokenizer
    assert backend.truncation is None
    assert backend.padding is None
    assert running.post(CHAT, **HI).json()["usage"]["prompt_tokens"] == before


def test_a_variable_of_the_template_arrives_and_false_asks_for_nothing(
    thinking: Running,
) -> None:
    def num_prompt_tokens(one: Running, **kwargs: Any) -> int:
        answer = one.post(CHAT, **HI, chat_template_kwargs=kwargs)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["usage"]["prompt_tokens"])

    opened, closed = num_prompt_tokens(thinking), num_prompt_tokens(thinking, enable_thinking=False)
    assert closed - opened == len("<think>\n\n</think>\n\n") - len("<think>\n")
    refused = thinking.post(CHAT, **HI, chat_template_kwargs={"think": True})
    assert "it takes enable_thinking" in refused.json()["error"]["message"]


def test_the_variables_of_a_template_are_found_behind_the_tags_of_transformers() -> None:
    assert _variables(CHAT_TEMPLATE) == {"messages", "add_generation_prompt"}
    more = "{% generation %}{{ mood }}{% endgeneration %}{% for m in messages %}{% break %}{% endfor %}"
    assert _variables(
        more + "{% if not level is defined %}{% set level = 1 %}{% endif %}{{ namespace() }}"
    ) == {
        "mood",
        "messages",
        "level",
    }


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [  # each prompt has a fault of its own, so that an answer about the number tells that none was looked at
        (TEXT, {"prompt": ["a\ud800"] * 2000, "n": 200}, "n"),
        (TEXT, {"prompt": [[10**6]] * 2000, "n": 4096}, "n"),
        (TEXT, {"prompt": ["a\ud800"] * 17}, "n"),
        (CHAT, {"messages": [{"role": "user", "content": "a\ud800"}], "n": 17}, "n"),
        ("/generate", {"text": ["a\ud800"] * 20_000, "sampling_params": {"n": 100}}, "n"),
        ("/generate", {"input_ids": [[10**6]] * 9, "sampling_params": {"n": 2}}, "n"),
        (TEXT, {"prompt": "a", "logit_bias": {str(i): 1 for i in range(5000)}}, "logit_bias"),
    ],
)
def test_answers_are_counted_before_any_work_on_them(
    running: Running, path: str, body: dict[str, Any], param: str
) -> None:
    refused = post(running, path, body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (TEXT, {"prompt": "a" * 2040, "max_tokens": 100_000}, "max_tokens"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "a" * 2000}], "max_completion_tokens": 32_000},
            "max_tokens",
        ),
        (
            "/v1/messages",
            {"messages": [{"role": "user", "content": "a" * 2000}], "max_tokens": 32_000},
            "max_tokens",
        ),
        ("/v1/responses", {"input": "a" * 2000, "max_output_tokens": 32_000}, "max_output_tokens"),
    ],
)
def test_an_answer_longer_than_the_context_is_shortened_and_logged(
    running: Running, path: str, body: dict[str, Any], param: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "flashdraft"):
        answer = running.post(path, **body)
    assert answer.status_code == 200
    shortened = [one.fields for one in caplog.records if one.message == "answer shortened to the context"]  # type: ignore[attr-defined]
    usage = answer.json()["usage"]
    num_prompt = usage.get("prompt_tokens") or usage["input_tokens"] + usage.get("cache_read_input_tokens", 0)
    asked = body.get(param) or body["max_completion_tokens"]
    assert shortened == [{"param": param, "asked": asked, "room": 2048 - num_prompt}]


def test_an_answer_that_fills_the_context_ends_by_its_length(running: Running) -> None:
    for stream in (False, True):
        answers = running.openai().completions.create(
            model="tiny",
            prompt="a" * 2040,
            max_tokens=100_000,
            stream=stream,
            extra_body={"ignore_eos": True},
        )
        choices = [one.choices[0] for one in (answers if stream else [answers])]
        assert [one.finish_reason for one in choices if one.finish_reason] == ["length"]
        assert stream or answers.usage.total_tokens == 2048


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (TEXT, {"prompt": "a" * 100_000}),
        ("/generate", {"text": "a" * 100_000}),
        ("/tokenize", {"prompt": "a" * 100_000}),
        (CHAT, {"messages": [{"role": "user", "content": "a" * 100_000}]}),
        ("/v1/responses", {"input": "a" * 100_000}),
    ],
)
def test_a_text_that_no_context_holds_is_refused_by_its_characters(
    running: Running, path: str, body: dict[str, Any]
) -> None:
    refused = running.post(path, **body).json()["error"]
    assert refused["code"] == "context_length_exceeded"
    assert "characters; expected at most 24576" in refused["message"]  # 2048 tokens, the longest <|im_start|>


def test_more_messages_than_a_context_has_tokens_are_refused(running: Running) -> None:
    refused = running.post(CHAT, messages=[{"role": "user", "content": ""}] * 2049).json()["error"]
    assert refused["code"] == "context_length_exceeded"
    assert "2049 messages; expected at most 2048" in refused["message"]


def test_the_tools_of_a_chat_count_too(thinking: Running) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "a" * 100_000}}
    refused = thinking.post(CHAT, **HI, tools=[tool]).json()["error"]
    assert (refused["code"], refused["param"]) == ("context_length_exceeded", "tools")


def test_values_are_counted_before_they_are_read(running: Running) -> None:
    for body in (b"[" * 70_000, b'{"prompt": [' + b"1," * 70_000 + b"1]}"):
        refused = post(running, TEXT, body).json()["error"]["message"]
        assert "commas and brackets; expected at most 65536" in refused
    too_many = running.post("/detokenize", tokens=[5] * 2049)
    assert "2049 tokens; expected at most 2048" in too_many.json()["error"]["message"]


def test_a_waiting_text_is_dropped_with_its_client_and_short_ones_pass_long_ones() -> None:
    held, begun = threading.Event(), list[str]()

    def work(name: str) -> str:
        begun.append(name)
        assert held.wait(patient.PATIENCE_S) or name == "short"
        return name

    async def run() -> None:
        pool = TextWork(Places("texts", 3, 3, retry_after_s=1), retry_after_s=1)
        long = [
            asyncio.create_task(pool.run(lambda name=name: work(name), 10**6)) for name in ("first", "left")
        ]
        while not begun:
            await asyncio.sleep(0.01)
        assert await pool.run(lambda: "short", 5) == "short"  # beside a long one
        third = asyncio.create_task(pool.run(lambda: work("third"), 10**6))
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as caught:  # first, left and third
            await pool.run(lambda: work("fourth"), 5)
        assert (caught.value.status, caught.value.retry_after_s) == (429, 1)
        long[1].cancel()
        await asyncio.wait(long[1:])
        held.set()
        assert await long[0] == "first"
        assert await third == "third"
        pool.close()

    asyncio.run(run())
    assert begun == ["first", "third"]


def test_a_text_that_waits_in_vain_is_told_so() -> None:
    held = threading.Event()

    async def run() -> None:
        pool = TextWork(Places("texts", 9, 9, 1), retry_after_s=2, limit_s=0.1)
        first = asyncio.create_task(pool.run(lambda: held.wait(patient.PATIENCE_S), 10**6))
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as caught:
            await pool.run(lambda: None, 10**6)
        assert (caught.value.status, caught.value.retry_after_s) == (503, 2)
        held.set()
        await asyncio.gather(first, return_exceptions=True)
        pool.close()

    asyncio.run(run())


def test_a_client_that_leaves_while_its_text_waits_takes_no_place(running: Running) -> None:
    held = threading.Event()
    pool = running.service.text_work
    blockers = [pool._short.submit(held.wait, patient.PATIENCE_S) for _ in range(2)]
    try:
        with waiting_client(running, TEXT, prompt="abc"):
            wait_until(lambda: pool._places.num_held == 1)
        wait_until(lambda: pool._places.num_held == 0)
    finally:
        held.set()
    assert all(one.result(patient.PATIENCE_S) for one in blockers)
    assert running.service.num_unfinished == 0
    assert running.post(TEXT, prompt="abc", max_tokens=1).status_code == 200
