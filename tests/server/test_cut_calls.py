"""A call that the answer's length cut comes back in the history, as clients send it: it is taken."""

from typing import Any

import pytest

from flashdraft.llm import LLM
from flashdraft.server.tool_calls import read_arguments
from scripted_server import ScriptedEngine, with_template
from server_case import MODEL, Running, serving
from tiny_pair import TOOLS_TEMPLATE

PARAMETERS = {"type": "object", "properties": {"cmd": {"type": "array"}, "why": {"type": "string"}}}
XML = 'hm</think>\n<tool_call>\n<function=shell>\n<parameter=why>\nto "see"\n</parameter>\n'
XML += '<parameter=cmd>\n["ls", "é"]\n</parameter>\n</function>\n</tool_call>'
HERMES = (
    'hm</think>\n<tool_call>\n{"name": "shell", "arguments": {"why": "to \\"see\\"", "cmd": ["ls", 12]}}\n'
)
FUNCTION = {"name": "shell", "parameters": PARAMETERS}


def by_chat(running: Running) -> int:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "go"}]}
    body["tools"] = [{"type": "function", "function": FUNCTION}]
    message = running.post("/v1/chat/completions", **body).json()["choices"][0]["message"]
    results = [
        {"role": "tool", "tool_call_id": one["id"], "content": "?"} for one in message.get("tool_calls") or []
    ]
    body["messages"] += [message, *results]
    return running.post("/v1/chat/completions", **body).status_code


def by_responses(running: Running) -> int:
    body: dict[str, Any] = {"input": [{"role": "user", "content": "go"}]}
    body["tools"] = [{"type": "function"} | FUNCTION]
    items = running.post("/v1/responses", **body).json()["output"]
    calls = [one["call_id"] for one in items if one["type"] == "function_call"]
    results = [{"type": "function_call_output", "call_id": one, "output": "?"} for one in calls]
    body["input"] += [*items, *results]
    return running.post("/v1/responses", **body).status_code


def by_messages(running: Running) -> int:
    body: dict[str, Any] = {"max_tokens": 9, "messages": [{"role": "user", "content": "go"}]}
    body["tools"] = [{"name": "shell", "input_schema": PARAMETERS}]
    blocks = running.post("/v1/messages", **body).json()["content"]
    results = [
        {"type": "tool_result", "tool_use_id": one["id"], "content": "?"}
        for one in blocks
        if one["type"] == "tool_use"
    ]
    body["messages"].append({"role": "assistant", "content": blocks})
    body["messages"].append({"role": "user", "content": [*results, {"type": "text", "text": "on"}]})
    return running.post("/v1/messages", **body).status_code


@pytest.mark.parametrize("text", [XML, HERMES])
def test_what_is_answered_is_taken_back(llm: LLM, text: str) -> None:
    other = with_template(llm, TOOLS_TEMPLATE)
    engine = ScriptedEngine(other, text, 16, "length")
    with serving(other, engine, model_names=(MODEL,)) as running:
        whole = engine.token_ids
        for size in range(2, len(whole), 5):
            engine.token_ids = whole[:size]
            said = [ask(running) for ask in (by_chat, by_responses, by_messages)]
            assert said == [200] * 3, other.tokenizer.decode(engine.token_ids)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('{"why": "to se', {"why": "to se"}),
        ('{"why": "a", "cmd": ["ls", 1', {"why": "a", "cmd": ["ls", 1]}),
        ('{"why": "a", "cm', {"why": "a"}),
        ('{"why": "a\\u00', {"why": "a"}),
        ("{", {}),
        ("", {}),
        ('{"why": "a"}', {"why": "a"}),
        ('{"why": "a"}}', None),
        ("[1", None),
        ("ls", None),
        ('{"why": NaN', {}),
        ('{"why": NaN}', {"why": "NaN"}),
        ("{'why': 1}", {"why": 1}),
        ('{"why": "a\nb"}', {"why": "a\nb"}),
        ('{"why" 1}', None),
    ],
)
def test_arguments_that_end_early_are_read_as_far_as_they_go(
    text: str, arguments: dict[str, Any] | None
) -> None:
    assert read_arguments(text) == arguments


def test_arguments_may_be_an_object(llm: LLM) -> None:
    with serving(with_template(llm, TOOLS_TEMPLATE)) as running:
        counts = []
        for arguments in ('{"why": "é"}', {"why": "é"}):
            call = {"id": "1", "type": "function", "function": {"name": "shell", "arguments": arguments}}
            turns = [{"role": "user", "content": "go"}, {"role": "assistant", "tool_calls": [call]}]
            counts.append(running.post("/tokenize", messages=turns).json()["count"])
        assert counts[0] == counts[1]
