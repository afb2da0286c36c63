"""Responses with function calls: items in and out, as the official client and agent programs send them."""

import json
from typing import Any

import openai
import pytest

import patient
from flashdraft.llm import LLM
from scripted_server import ScriptedEngine, with_template
from server_case import MODEL, Running, serving
from tiny_pair import TOOLS_TEMPLATE

PARAMETERS = {"type": "object", "properties": {"cmd": {"type": "array", "items": {"type": "string"}}}}
TOOL: Any = {"type": "function", "name": "shell", "parameters": PARAMETERS, "strict": False}
CALL = '<tool_call>\n<function=shell>\n<parameter=cmd>\n["ls"]\n</parameter>\n</function>\n</tool_call>'
# As Codex CLI sends a second turn.
TURNS: Any = [
    {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "sandbox"}]},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "list"}]},
    {
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "hm"}],
        "encrypted_content": None,
    },
    {"type": "function_call", "name": "shell", "arguments": '{"cmd": ["ls"]}', "call_id": "c1"},
    {"type": "function_call_output", "call_id": "c1", "output": "a.txt"},
]
CODEX: Any = {
    "model": MODEL,
    "instructions": "You are an agent.",
    "input": TURNS,
    "tools": [TOOL],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "x",
}


@pytest.mark.parametrize("num_tokens", [1, 16])
def test_a_call_is_an_item(llm: LLM, num_tokens: int) -> None:
    other = with_template(llm, TOOLS_TEMPLATE)
    text = f"hm</think>I look.\n{CALL}"
    with serving(other, ScriptedEngine(other, text, num_tokens)) as running, running.openai() as client:
        whole = client.responses.create(**CODEX)
        assert [item.type for item in whole.output] == ["reasoning", "message", "function_call"]
        thoughts, message, call = whole.output
        assert (thoughts.content[0].text, message.content[0].text) == ("hm", "I look.")
        assert (call.name, call.arguments, call.status) == ("shell", '{"cmd": ["ls"]}', "completed")
        assert whole.tools[0].name == "shell"
        told = list(client.responses.create(**CODEX, stream=True))
        assert [one.sequence_number for one in told] == list(range(len(told)))
        done = [one.item for one in told if one.type == "response.output_item.done"]
        assert [item.type for item in done] == ["reasoning", "message", "function_call"]
        assert told[-1].type == "response.completed"
        last = told[-1].response.output
        assert [item.to_dict() for item in done] == [item.to_dict() for item in last]
        deltas = [one.delta for one in told if one.type == "response.function_call_arguments.delta"]
        assert "".join(deltas) == call.arguments
        with client.responses.stream(**CODEX) as stream:
            assert stream.get_final_response().output[2].arguments == call.arguments


def test_the_prompt_is_the_chats(llm: LLM) -> None:
    with serving(with_template(llm, TOOLS_TEMPLATE)) as running, running.openai() as client:
        answer = client.responses.create(**CODEX, max_output_tokens=1)
        call = {"id": "c1", "type": "function", "function": {"name": "shell", "arguments": '{"cmd": ["ls"]}'}}
        turns: Any = [
            {"role": "system", "content": "You are an agent."},
            {"role": "system", "content": "sandbox"},
            {"role": "user", "content": "list"},
            {"role": "assistant", "reasoning_content": "hm", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "a.txt"},
        ]
        tool = {"type": "function", "function": {"name": "shell", "parameters": PARAMETERS, "strict": False}}
        chat = running.post("/v1/chat/completions", messages=turns, tools=[tool], max_tokens=1).json()
        assert answer.usage is not None
        assert answer.usage.input_tokens == chat["usage"]["prompt_tokens"]
        forced = client.responses.create(
            model=MODEL,
            input="x",
            tools=[TOOL],
            tool_choice={"type": "function", "name": "shell"},
            temperature=0,
            max_output_tokens=900,
            extra_body={"chat_template_kwargs": {"enable_thinking": False}},
        )
        assert [item.type for item in forced.output] == ["function_call"]


def test_functions_of_a_namespace_are_called_by_both_names(llm: LLM) -> None:
    """As Codex CLI 0.171 sends its tools: a namespace and the web's search among functions."""
    other = with_template(llm, TOOLS_TEMPLATE)
    tools = [{"type": "namespace", "name": "crew", "description": "c", "tools": [TOOL]}]
    asked = CODEX | {"tools": [*tools, {"type": "web_search", "external_web_access": False}, TOOL]}
    asked |= {"extra_body": {"client_metadata": {"session_id": "x"}}}
    said = f"hm</think>{CALL.replace('shell', 'crew.shell')}{CALL}"
    with serving(other, ScriptedEngine(other, said, 16)) as running, running.openai() as client:
        _, *calls = client.responses.create(**asked).output
        assert [(one.name, one.namespace) for one in calls] == [("shell", "crew"), ("shell", None)]
        told = list(client.responses.create(**asked, stream=True))
        done = [one.item for one in told if one.type == "response.output_item.done"]
        assert [(one.name, one.namespace) for one in done[1:]] == [("shell", "crew"), ("shell", None)]
        turns = [*TURNS, *(one.to_dict() for one in calls)]
        turns += [{"type": "function_call_output", "call_id": one.call_id, "output": "ok"} for one in calls]
        again = client.responses.create(**(asked | {"input": turns}))
        assert again.usage.input_tokens > 0


@pytest.mark.parametrize(
    ("size", "kinds", "num_whole"),
    [
        (1, ["reasoning", "message"], 0),
        (15, ["reasoning", "message"], 1),
        (60, ["reasoning", "message", "function_call"], 2),
    ],
)
def test_an_item_that_the_length_cut_is_incomplete_and_those_before_it_are_not(
    llm: LLM, size: int, kinds: list[str], num_whole: int
) -> None:
    other = with_template(llm, TOOLS_TEMPLATE)
    engine = ScriptedEngine(other, f"hm</think>I look.\n{CALL}", 4, "length")
    engine.token_ids = engine.token_ids[:size]
    with serving(other, engine) as running, running.openai() as client:
        whole = client.responses.create(**CODEX)
        assert whole.status == "incomplete"
        assert [one.type for one in whole.output] == kinds
        statuses = ["completed"] * num_whole + ["incomplete"] * (len(kinds) - num_whole)
        assert [one.status for one in whole.output] == statuses
        told = list(client.responses.create(**CODEX, stream=True))
        done = [one.item for one in told if one.type == "response.output_item.done"]
        assert [item.to_dict() for item in done] == [item.to_dict() for item in told[-1].response.output]


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ({"input": [{"type": "image_generation_call"}]}, "input[0] is of type 'image_generation_call'"),
        ({"tools": [{"type": "web_search"}]}, "tools[0] is of type 'web_search'"),
        ({"tools": [TOOL, {"type": "file_search"}]}, "tools[1] is of type 'file_search'"),
        (
            {"tools": [TOOL, {"type": "namespace", "name": "n", "tools": [3]}]},
            "tools[1].tools[0] is of type None",
        ),
        ({"previous_response_id": "resp_1"}, "previous_response_id is not supported"),
        ({"tool_choice": {"type": "mcp"}, "tools": [TOOL]}, "tool_choice is of type 'mcp'"),
        ({"truncation": "auto"}, "truncation is not supported"),
        (
            {"input": [{"type": "function_call", "name": "f", "arguments": "[", "call_id": "1"}]},
            "input[0].tool_calls[0].function.arguments is no JSON object",
        ),
        ({"input": [*TURNS, {"role": "robot", "content": "x"}]}, "input[5].role: Input should be 'system'"),
        ({"input": [{"type": "function_call", "call_id": "1", "arguments": "{}"}]}, "input[0].name is None"),
        (
            {"input": [{"type": "function_call_output", "call_id": "1", "output": {}}]},
            "input[0].output is {}",
        ),
        (
            {"input": [{"type": "reasoning", "content": ["x"]}]},
            "input[0].content is ['x']; expected a list of obj",
        ),
        ({"input": [{"type": "reasoning", "summary": [{}]}]}, "input[0].text is None; expected a text"),
        (
            {"input": [*TURNS, {"role": "user", "content": [{"type": "input_image"}]}]},
            "input[5].content[0] is",
        ),
        ({"tools": [{"type": "function"}]}, "tools[0].name is None; expected a text"),
        ({"tools": [TOOL | {"name": "a b"}]}, "tools[0].name: String should match"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "tools": 5}}, "tool_choice.tools is 5"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.name is None"),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"not": {}}}}},
            "text.format: the json_",
        ),
    ],
)
def test_what_cannot_be_is_told_by_name(llm: LLM, more: dict[str, Any], part: str) -> None:
    with serving(with_template(llm, TOOLS_TEMPLATE)) as running, running.openai() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(**({"model": MODEL, "input": "hi"} | more))
        assert part in str(caught.value)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({"metadata": {"a": "\ud800"}}, "metadata"),
        ({"tools": [TOOL | {"description": "\ud800"}], "tool_choice": "none"}, "tools"),
        ({"tools": [TOOL, {"type": "web_search", "x": float("nan")}], "tool_choice": "none"}, "tools"),
        ({"tools": [TOOL | {"parameters": {"maximum": float("inf")}}], "tool_choice": "none"}, "tools"),
    ],
)
def test_what_no_answer_can_repeat_is_refused(
    running: Running, more: dict[str, Any], name: str, stream: bool
) -> None:
    body = json.dumps({"input": "hi", "stream": stream} | more).encode()  # Python's JSON has NaN too
    told = patient.post(f"{running.url}/v1/responses", content=body)
    assert (told.status_code, told.json()["error"]["param"]) == (400, name), told.text
    assert f"{name} cannot be told again in JSON" in told.json()["error"]["message"]
    assert running.service.num_unfinished == 0
