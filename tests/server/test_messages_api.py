"""Anthropic's form of a chat: blocks in and out, whole and as events, errors and keys as its clients expect them."""

import json
from typing import Any

import pytest

import patient
from flashdraft.llm import LLM
from scripted_server import ScriptedEngine, with_template
from server_case import MODEL, Running, serving
from tiny_pair import TOOLS_TEMPLATE

PATH = "/v1/messages"
HI: Any = [{"role": "user", "content": "hello"}]
TOOL = {
    "name": "weather",
    "description": "the weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>"


def events(response: Any) -> list[dict[str, Any]]:
    told = []
    for block in response.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        told.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {told[-1]['type']}"
    return told


def rebuilt(told: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a client puts together from events."""
    assert (told[0]["type"], told[1]["type"], told[-1]["type"]) == ("message_start", "ping", "message_stop")
    message, blocks = dict(told[0]["message"]), []
    for one in told[2:-1]:
        if one["type"] == "content_block_start":
            assert one["index"] == len(blocks)
            blocks.append(dict(one["content_block"]) | {"json": ""})
        elif one["type"] == "content_block_delta":
            delta, block = one["delta"], blocks[one["index"]]
            if delta["type"] == "input_json_delta":
                block["json"] += delta["partial_json"]
            else:
                name = delta["type"].removesuffix("_delta")
                block[name] += delta[name]
        elif one["type"] == "message_delta":
            message |= one["delta"] | {"usage": one["usage"]}
    for block in blocks:
        if text := block.pop("json"):
            block["input"] = json.loads(text)
    return message | {"content": blocks}


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    blocks = [{key: value for key, value in one.items() if key != "id"} for one in message["content"]]
    return {key: value for key, value in message.items() if key not in ("id", "usage")} | {"content": blocks}


@pytest.mark.parametrize("num_tokens", [1, 16])
def test_thoughts_words_and_calls_are_blocks(llm: LLM, num_tokens: int) -> None:
    free = with_template(llm, TOOLS_TEMPLATE.replace("{% else %}<think>\n{% endif %}", "{% endif %}"))
    text = f"<think>hm</think>I ask.\n{CALL}\n{CALL}"
    with serving(free, ScriptedEngine(free, text, num_tokens)) as running:
        body = {"model": MODEL, "messages": HI, "max_tokens": 500, "tools": [TOOL]}
        whole = running.post(PATH, **body).json()
        use = {"type": "tool_use", "name": "weather", "input": {"city": "Rome"}}
        told = [{"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "I ask."}]
        assert without_ids(whole)["content"] == [*told, use, use]
        assert (whole["stop_reason"], whole["stop_sequence"]) == ("tool_use", None)
        assert len({block["id"] for block in whole["content"][2:]}) == 2
        streamed = rebuilt(events(running.post(PATH, **body, stream=True)))
        assert without_ids(streamed) == without_ids(whole)
        assert streamed["usage"]["output_tokens"] == whole["usage"]["output_tokens"] == len(text)


def test_an_answer_that_the_client_begins_is_refused(running: Running) -> None:
    begun = [*HI, {"role": "assistant", "content": "The"}]
    response = running.post(PATH, model=MODEL, messages=begun, max_tokens=4)
    assert response.status_code == 400
    assert "messages[1] begins the answer" in response.json()["error"]["message"]
    assert running.post(f"{PATH}/count_tokens", model=MODEL, messages=begun).status_code == 200


def test_what_claude_code_sends_is_taken(running: Running) -> None:
    """The fields of version 2.1.197 beside the conversation."""
    keeps = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
    body: dict[str, Any] = {"model": MODEL, "messages": HI, "max_tokens": 4, "context_management": keeps}
    body |= {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}
    body |= {"system": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]}
    assert running.post(f"{PATH}?beta=true", **body, metadata={"user_id": "{}"}).status_code == 200
    clears = {"edits": [{"type": "clear_tool_uses_20250919"}]}
    refused = running.post(PATH, **(body | {"context_management": clears}))
    assert refused.status_code == 400
    assert "context_management is not supported" in refused.json()["error"]["message"]


def test_a_conversation_with_tools_is_the_chats(llm: LLM) -> None:
    with serving(with_template(llm, TOOLS_TEMPLATE)) as running:
        turns: Any = [
            *HI,
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "x"},
                    {"type": "text", "text": "I ask."},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "t1",
                        "content": [{"type": "text", "text": "sunny"}],
                    },
                    {"type": "text", "text": "And now?", "cache_control": {"type": "ephemeral"}},
                ],
            },
        ]
        function = {"name": "weather", "arguments": '{"city": "Rome"}'}
        chat: Any = [
            {"role": "system", "content": "Be terse."},
            *HI,
            {
                "role": "assistant",
                "content": "I ask.",
                "reasoning_content": "hm",
                "tool_calls": [{"id": "t1", "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": "t1", "content": "sunny"},
            {"role": "user", "content": "And now?"},
        ]
        system = [{"type": "text", "text": "Be terse."}]
        body = {"messages": turns, "system": system, "tools": [TOOL], "thinking": {"type": "disabled"}}
        counted = running.post(f"{PATH}/count_tokens", **body).json()["input_tokens"]
        told = running.post(PATH, **body, max_tokens=8, temperature=0).json()
        usage = told["usage"]
        assert counted == usage["input_tokens"] + usage["cache_read_input_tokens"]
        tool = {
            "type": "function",
            "function": {
                "name": "weather",
                "description": TOOL["description"],
                "parameters": TOOL["input_schema"],
            },
        }
        asked = {"messages": chat, "tools": [tool], "chat_template_kwargs": {"enable_thinking": False}}
        answer = running.post("/v1/chat/completions", **asked, max_tokens=8, temperature=0).json()
        assert answer["usage"]["prompt_tokens"] == counted
        assert told["content"] == [{"type": "text", "text": answer["choices"][0]["message"]["content"]}]
        assert told["stop_reason"] == "max_tokens"
        forced = running.post(PATH, **body, max_tokens=400, temperature=0, tool_choice={"type": "any"}).json()
        assert {block["type"] for block in forced["content"]} == {"tool_use"}


def test_a_stop_sequence_is_told(running: Running) -> None:
    body = {"messages": HI, "max_tokens": 30, "temperature": 0}
    text = running.post(PATH, **body).json()["content"][0]["text"]
    stop = next(char for char in text[2:] if char.isascii() and char.strip())
    told = running.post(PATH, **body, stop_sequences=[stop]).json()
    assert (told["stop_reason"], told["stop_sequence"]) == ("stop_sequence", stop)


NOT = {"type": "json_schema", "schema": {"not": {}}}


def used(**block: Any) -> list[Any]:
    call: Any = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
    return [{"role": "assistant", "content": [call | block]}]


def test_more_and_longer_tools_than_openais_are_taken(llm: LLM) -> None:
    tools = [{"name": f"mcp__{'a' * 110}_{i}", "input_schema": {"type": "object"}} for i in range(3)]
    body: Any = {"messages": HI, "max_tokens": 2}
    with serving(with_template(llm, TOOLS_TEMPLATE)) as running:
        assert running.post(PATH, **body, tools=tools).status_code == 200
        many = [{"name": f"t{i}", "input_schema": {}} for i in range(130)]
        told = running.post(f"{PATH}/count_tokens", messages=HI, tools=many)
        assert told.status_code == 200


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ({"messages": HI}, "max_tokens"),
        (
            {"messages": HI, "max_tokens": 5, "tools": [{"type": "web_search_20250305", "name": "web"}]},
            "tools[0]",
        ),
        ({"messages": HI, "max_tokens": 5, "mcp_servers": [{"name": "a"}]}, "mcp_servers"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}], "max_tokens": 5}, "'image'"),
        ({"messages": HI, "max_tokens": 5, "tools": [TOOL]}, "tools"),
        (
            {"messages": HI, "max_tokens": 5, "output_config": {"format": NOT}},
            "output_config.format: the json_schema",
        ),
        ({"messages": [{"role": "user", "content": []}], "max_tokens": 5}, "messages[0]: content is missing"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}], "max_tokens": 5},
            "messages[0].content[0].text",
        ),
        ({"messages": [*HI, *used(name=None), *HI], "max_tokens": 5}, "messages[1].content[0].name is None"),
        ({"messages": [*HI, *used(input=[1]), *HI], "max_tokens": 5}, "messages[1].content[0].input is [1]"),
        ({"messages": HI, "max_tokens": 5, "tools": [TOOL | {"name": "a b"}]}, "tools[0].name"),
        (
            {"messages": HI, "max_tokens": 5, "system": [{"type": "text", "text": None}]},
            "system[0].text is None",
        ),
    ],
)
def test_an_error_has_anthropics_shape(running: Running, body: dict[str, Any], part: str) -> None:
    response = running.post(PATH, **body)
    told = response.json()
    assert (response.status_code, told["type"], told["error"]["type"]) == (
        400,
        "error",
        "invalid_request_error",
    )
    assert part in told["error"]["message"]


def test_its_key_header_is_a_key(llm: LLM) -> None:
    with serving(llm, api_keys=("secret",)) as running:
        body = {"messages": HI, "max_tokens": 2}
        for headers, status in (({}, 401), ({"x-api-key": "no"}, 401), ({"x-api-key": "secret"}, 200)):
            response = patient.post(running.url + PATH, json=body, headers=headers)
            assert response.status_code == status
        assert patient.post(running.url + PATH, json=body).json()["error"]["type"] == "authentication_error"
        unknown = patient.post(
            running.url + PATH, json=body | {"model": "x"}, headers={"x-api-key": "secret"}
        )
        assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")
