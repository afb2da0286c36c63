"""What cannot be served is told in OpenAI's error shape, with the field's name, and never ignored."""

import json
from typing import Any

import openai
import pytest

import patient
from flashdraft.llm import LLM
from server_case import MODEL, Running, serving

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


def image(content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {}, "messages"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": [{"role": "nobody", "content": "x"}]}, "messages.0.role"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages.0"),
        (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        (CHAT, HI | {"max_tokens": 0}, "max_tokens"),
        (TEXT, {"prompt": "a", "max_tokens": 0}, None),
        (CHAT, HI | {"reasoning_effort": "high"}, "reasoning_effort"),
        (CHAT, HI | {"n": 0}, "n"),
        (CHAT, HI | {"n": 17}, "n"),
        (CHAT, HI | {"stop": [""]}, "stop"),
        (CHAT, HI | {"tools": [{"type": "function"}]}, "tools.0.function"),
        (CHAT, HI | {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        (CHAT, HI | {"tool_choice": "required"}, "tool_choice"),
        (CHAT, HI | {"top_logprobs": 2}, None),
        (CHAT, HI | {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, HI | {"response_format": {"type": "xml"}}, "response_format"),
        (CHAT, HI | {"response_format": {"type": "json_schema"}}, "response_format"),
        (CHAT, HI | {"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice"),
        (CHAT, HI | {"structured_outputs": {"whitespace_pattern": " "}}, "structured_outputs"),
        (CHAT, HI | {"guided_json": "{"}, "guided_json"),
        (CHAT, HI | {"chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs.tokenize"),
        (CHAT, image([{"type": "image_url", "image_url": {"url": "x"}}]), "messages[0].content[0]"),
        (TEXT, {}, None),
        (TEXT, {"prompt": "a", "best_of": 3}, "best_of"),
        (TEXT, {"prompt": "a", "suffix": "b"}, "suffix"),
        (TEXT, {"prompt": "a\ud800"}, "prompt"),
    ],
)
def test_a_bad_request_names_its_field(running: Running, path: str, body: dict[str, Any], param: str) -> None:
    response = patient.post(running.url + path, content=json.dumps(body).encode())
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert param is None or error["param"].startswith(param)


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"min_p": 2}, "min_p"),
        ({"block_size": 9}, "block_size is 9; expected 1 to 8"),
        ({"block_size": "most"}, "expected auto or a number of tokens"),
        ({"prompt": [5] * 2048}, "2048 tokens"),
        ({"prompt": [100000]}, "100000"),
        ({"prompt": ""}, "empty"),
        ({"prompt": []}, "empty"),
    ],
)
def test_a_value_out_of_range_says_what_was_expected(
    running: Running, more: dict[str, Any], part: str
) -> None:
    response = running.post(TEXT, **({"prompt": "a"} | more))
    assert response.status_code == 400, response.text
    assert part in response.json()["error"]["message"]


def test_a_parameter_that_the_engine_lacks_is_refused_unless_it_asks_for_nothing(running: Running) -> None:
    refused = running.post(TEXT, prompt="a", max_tokens=1, length_penalty=2)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "length_penalty")
    assert running.post(TEXT, prompt="a", max_tokens=1, length_penalty=1).status_code == 200
    assert "may have 1 tokens" in running.post(TEXT, prompt="a", max_tokens=1, min_tokens=2).text


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (CHAT, HI | {"stop": ["x"] * 17}, "stop: List should have at most 16 items"),
        (TEXT, {"prompt": [1.5]}, "prompt.0: Input should be a valid integer"),
        (
            TEXT,
            {"prompt": {"a": 1}},
            "prompt: Input should be a valid string; or Input should be a valid list",
        ),
        (CHAT, HI | {"tool_choice": "must"}, "tool_choice: Input should be 'none', 'auto' or 'required'"),
        (
            CHAT,
            HI | {"tool_choice": {"type": "function", "name": "f"}},
            "tool_choice.function: Field required",
        ),
        (CHAT, HI | {"tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools: Field required"),
        (
            CHAT,
            HI | {"tools": [{"type": "custom", "custom": {}}]},
            "tools.0.type: Input should be 'function'",
        ),
        (CHAT, HI | {"guided_json": 3}, "guided_json: Input should be a valid dictionary"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": 3}]},
            "messages.0.content: Input should be a valid str",
        ),
    ],
)
def test_an_error_of_alternatives_names_the_field(
    running: Running, path: str, body: dict[str, Any], said: str
) -> None:
    error = running.post(path, **body).json()["error"]
    assert error["message"].startswith(said), error
    assert error["param"] == said.partition(":")[0]


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ({"guided_regex": "(a"}, "the regex cannot be used: Regex parsing error"),
        ({"guided_grammar": "root ::= b"}, 'Rule "b" is not defined'),
        ({"guided_json": {"type": "colour"}}, "the json_schema has the type 'colour'"),
        ({"guided_json": {"required": True}}, "required is True; expected a list of texts"),
        ({"guided_choice": []}, "at least one element"),
        ({"guided_regex": "a" * 70_000}, "70000 bytes; expected at most 65536"),
        ({"guided_regex": "a", "ignore_eos": True}, "leave one out"),
    ],
)
def test_a_bad_grammar_is_a_400_that_says_what_is_wrong(
    running: Running, more: dict[str, Any], part: str
) -> None:
    for stream in (False, True):
        response = running.post(TEXT, prompt="a", stream=stream, **more)
        assert response.status_code == 400, response.text
        assert part in response.json()["error"]["message"]


def test_unknown_fields_are_tolerated_and_unknown_models_are_not(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"prompt": "a", "max_tokens": 1, "extra_body": {"what_is_this": 1}}
    assert client.completions.create(model=MODEL, **asked).choices
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt-5", **asked)
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"[" * 100_000, b"\xff"])
def test_a_body_that_is_no_json_object_is_a_400(running: Running, content: bytes) -> None:
    response = patient.post(running.url + CHAT, content=content)
    assert response.status_code == 400
    assert "body" in response.json()["error"]["message"]


def test_unknown_paths_and_methods_have_the_same_shape(running: Running) -> None:
    assert running.get("/v2/nothing").json()["error"]["message"] == "GET /v2/nothing: Not Found"
    assert running.get(CHAT).status_code == 405
    assert running.get("/v1/models/nothing").json()["error"]["code"] == "model_not_found"


def test_limits_are_the_servers_own(llm: LLM) -> None:
    with serving(llm, max_body_bytes=2000, max_answer_tokens=8) as small:
        too_long = small.post(TEXT, prompt="a", max_tokens=9)
        assert (too_long.status_code, too_long.json()["error"]["param"]) == (400, "max_tokens")
        assert small.post(CHAT, **HI).json()["usage"]["completion_tokens"] <= 8
        assert small.post(TEXT, prompt="a" * 2000).status_code == 413
        pieces = (b"x" * 1000 for _ in range(3))  # sent in chunks: no length is said
        assert patient.post(small.url + TEXT, content=pieces).status_code == 413
