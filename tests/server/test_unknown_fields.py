"""Fields that no request has: a slip of the pen is refused by name, anything else is answered and logged."""

import logging
import typing
from typing import Any

import pytest
from openai.types import chat, shared_params
from openai.types.responses import FunctionToolParam, ResponseFormatTextJSONSchemaConfigParam
from openai.types.shared_params import response_format_json_schema

from flashdraft.llm import LLM
from flashdraft.server import protocol, responses_api, structured
from flashdraft.server.fields import Fields
from scripted_server import with_template
from server_case import Running, serving

TURNS = [{"role": "user", "content": "a"}]
CHAT = {"messages": TURNS, "max_tokens": 1}
SLIP = {"type": "function", "function": {"name": "f", "paramters": {}}}
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "a", "max_tokens": 1},
    "/v1/responses": {"input": "a", "max_output_tokens": 1},
    "/v1/messages": {"messages": TURNS, "max_tokens": 1},
    "/v1/messages/count_tokens": {"messages": TURNS},
    "/generate": {"text": "a", "sampling_params": {"max_new_tokens": 1}},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [1]},
}


@pytest.mark.parametrize("path", ASKED)
def test_a_field_that_nobody_knows_is_answered_and_logged(
    running: Running, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "flashdraft"):
        assert running.post(path, **ASKED[path], fieldx=1, emptyx=None).status_code == 200
    told = [one.fields for one in caplog.records if one.message == "unknown fields"]  # type: ignore[attr-defined]
    assert told == [{"names": "fieldx"}]


@pytest.mark.parametrize(
    ("path", "more", "param", "meant"),
    [
        ("/v1/chat/completions", {"tempreature": 0}, "tempreature", "temperature"),
        ("/v1/chat/completions", {"max_token": 5}, "max_token", "max_tokens"),
        ("/v1/chat/completions", {"stream_options": {"include_useage": True}}, "stream_options.", "include_usage"),
        ("/v1/chat/completions", {"tools": [SLIP]}, "tools[0].function.", "parameters"),
        ("/v1/chat/completions", {"prompt_cache_keys": "a"}, "prompt_cache_keys", "prompt_cache_key"),
        ("/v1/completions", {"repetition_penality": 1}, "repetition_penality", "repetition_penalty"),
        ("/v1/responses", {"max_ouput_tokens": 5}, "max_ouput_tokens", "max_output_tokens"),
        ("/v1/messages", {"stop_sequence": ["a"]}, "stop_sequence", "stop_sequences"),
        ("/generate", {"sampling_params": {"max_new_token": 1}}, "sampling_params.", "max_new_tokens"),
        ("/tokenize", {"add_special_token": True}, "add_special_token", "add_special_tokens"),
        # As another way of asking calls it.
        ("/v1/chat/completions", {"max_tokens": None, "max_output_tokens": 1}, "max_output_", "max_tokens"),
        ("/v1/chat/completions", {"system": "a"}, "system", "messages[0]"),
        ("/v1/chat/completions", {"stop_sequences": ["a"]}, "stop_sequences", "stop"),
        ("/v1/responses", {"max_output_tokens": None, "max_tokens": 5}, "max_tokens", "max_output_tokens"),
        ("/v1/responses", {"reasoning_effort": "low"}, "reasoning_effort", "reasoning.effort"),
        ("/v1/messages", {"stop": ["a"]}, "stop", "stop_sequences"),
        ("/v1/messages", {"response_format": {"type": "json_object"}}, "response_format", "output_config.format"),
        ("/generate", {"sampling_params": {}, "max_new_tokens": 1}, "max_new_", "sampling_params.max_new_tokens"),
        ("/generate", {"sampling_params": {"max_tokens": 1}}, "sampling_params.max_tokens", "max_new_tokens"),
        ("/tokenize", {"reasoning_effort": "none"}, "reasoning_effort", "chat_template_kwargs"),
    ],
)  # fmt: skip
def test_a_misspelt_field_is_refused_with_the_right_one(
    running: Running, path: str, more: dict[str, Any], param: str, meant: str
) -> None:
    response = running.post(path, **(ASKED[path] | more))
    error = response.json()["error"]
    assert response.status_code == 400
    assert f"did you mean {meant!r}?" in error["message"]
    assert error["message"].startswith(param)


def test_near_names_of_other_programs_are_no_slips(running: Running) -> None:
    others = {"repetition_penalty_range": 9, "top_a": 0.1, "temperature_last": True, "min_k": 1, "n_probs": 0}
    assert running.post("/v1/chat/completions", **CHAT, **others).status_code == 200
    twice = {"max_new_tokens": 1, "stop": "a", "stop_sequences": ["a"]}
    assert running.post("/v1/chat/completions", **CHAT, **twice).status_code == 200


def test_what_an_earlier_turn_cannot_bring_is_refused_by_name(running: Running) -> None:
    turns = [*TURNS, {"role": "assistant", "content": "a", "audio": {"id": "x"}}, *TURNS]
    response = running.post("/v1/chat/completions", messages=turns)
    assert response.json()["error"]["param"] == "messages[1].audio"


MESSAGES = (
    chat.ChatCompletionSystemMessageParam,
    chat.ChatCompletionDeveloperMessageParam,
    chat.ChatCompletionUserMessageParam,
    chat.ChatCompletionAssistantMessageParam,
    chat.ChatCompletionToolMessageParam,
)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (protocol.Message, MESSAGES),
        (protocol.StreamOptions, [chat.ChatCompletionStreamOptionsParam]),
        (protocol.Tool, [chat.ChatCompletionFunctionToolParam]),
        (protocol.Function, [shared_params.FunctionDefinition, FunctionToolParam]),
        (protocol.ToolCall, [chat.ChatCompletionMessageFunctionToolCallParam]),
        (protocol.NamedTool, [chat.ChatCompletionNamedToolChoiceParam]),
        (structured.ResponseFormat, [shared_params.ResponseFormatJSONSchema]),
        (structured.JsonSchema, [response_format_json_schema.JSONSchema]),
        (responses_api.TextFormat, [ResponseFormatTextJSONSchemaConfigParam]),
        (responses_api.Reasoning, [shared_params.Reasoning]),
    ],
)
def test_the_fields_within_fields_of_openai_are_known(ours: type[Fields], theirs: Any) -> None:
    known = {field.alias or name for name, field in ours.model_fields.items()}
    asked = {name for one in theirs for name in typing.get_type_hints(one)} - {"type"}
    assert asked - known - ours.tolerated - ours.refused == set()


def test_who_speaks_reaches_a_template_that_shows_it(llm: LLM) -> None:
    shown = with_template(
        llm, "{% for m in messages %}{{ m.name or '' }}{{ m.tool_call_id or '' }}{% endfor %}"
    )
    with serving(shown) as running:
        turns = [{"role": "user", "content": "a", "name": "Ann"}]
        assert running.post("/tokenize", messages=turns).json()["count"] == 3
