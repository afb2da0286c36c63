"""Thoughts and tool calls through the official client. A grammar makes the random model say what the script wants."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from flashdraft.llm import LLM
from scripted_server import saying, with_template
from server_case import MODEL, Running, serving
from tiny_pair import TOOLS_TEMPLATE as TEMPLATE

HERMES_TEMPLATE = (
    'Tools: {{ tools }} <tool_call>\n{"name": .., "arguments": ..}\n</tool_call>'
    "{% for m in messages %}{{ m.content }}{% endfor %}"
)
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
NOW: Any = {
    "type": "function",
    "function": {"name": "now", "parameters": {"type": "object", "properties": {}}},
}
CALL = (
    "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n2\n</parameter>\n"
    "</function>\n</tool_call>"
)
MESSAGES: Any = [{"role": "user", "content": "hello"}]
NO_THOUGHTS = {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.fixture(scope="module")
def qwen(llm: LLM) -> Iterator[Running]:
    with serving(with_template(llm, TEMPLATE)) as running:
        yield running


@pytest.fixture
def client(qwen: Running) -> Iterator[openai.OpenAI]:
    with qwen.openai() as one:
        yield one


def ask(client: openai.OpenAI, **more: Any) -> tuple[str, str, list[tuple[str, Any]], str]:
    """Thoughts, words, calls and the reason for the end; the same streamed."""
    asked: Any = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 400} | more
    choice = client.chat.completions.create(**asked).choices[0]
    message = choice.message
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]
    thoughts = getattr(message, "reasoning_content", None) or ""
    whole = (thoughts, message.content or "", calls, choice.finish_reason)
    streamed: dict[int, list[str]] = {}
    said, thought, reason = "", "", None
    for chunk in client.chat.completions.create(**asked, stream=True):
        delta, reason = chunk.choices[0].delta, chunk.choices[0].finish_reason or reason
        said += delta.content or ""
        thought += getattr(delta, "reasoning_content", None) or ""
        for call in delta.tool_calls or []:
            if call.id:
                streamed[call.index] = [call.function.name, ""]
            streamed[call.index][1] += call.function.arguments
    told = [(name, json.loads(arguments)) for name, arguments in streamed.values()]
    assert (thought, said, told, reason) == whole
    return whole


def script(text: str) -> dict[str, Any]:
    return {"guided_choice": [text]}


def test_thoughts_are_apart_from_words(client: openai.OpenAI) -> None:
    # The template has opened the thoughts: the grammar's free text is cut short by what must end it.
    asked = {"extra_body": {"guided_regex": "[xy]{3}"}, "logit_bias": {"27": 8}, "max_tokens": 60}
    thoughts, words, _, reason = ask(client, **asked)
    assert (words, reason) == ("", "length")
    assert len(thoughts) > 10
    assert ask(client, extra_body=script("plain") | NO_THOUGHTS) == ("", "plain", [], "stop")


@pytest.mark.parametrize("num_tokens", [1, 16])
def test_a_template_that_leaves_thinking_to_the_model(llm: LLM, num_tokens: int) -> None:
    with saying(llm, "<think>\nhm, so\n</think>\n\nyes: 1 < 2", num_tokens) as client:
        assert ask(client) == ("hm, so", "yes: 1 < 2", [], "stop")
    with saying(llm, f"<think>hm</think>I ask. {CALL}", num_tokens) as client:
        calls = [("weather", {"city": "Rome", "days": 2})]
        assert ask(client, tools=[WEATHER]) == ("hm", "I ask.", calls, "tool_calls")


@pytest.mark.parametrize("text", ["<think>\nhm, so\n</think>\n\nyes", "yes"])
def test_a_responses_thoughts_are_an_item_of_their_own(llm: LLM, text: str) -> None:
    with saying(llm, text, 3) as client:
        asked: Any = {"model": MODEL, "input": "hi"}
        whole = client.responses.create(**asked)
        assert [item.type for item in whole.output] == ["reasoning", "message"]
        thoughts = "".join(part.text for part in whole.output[0].content)
        assert (thoughts, whole.output_text) == ("hm, so" if "<" in text else "", "yes")
        said = {"response.reasoning_text.delta": "", "response.output_text.delta": ""}
        for one in client.responses.create(**asked, stream=True):
            if one.type in said:
                said[one.type] += one.delta
        assert tuple(said.values()) == (thoughts, "yes")
        with client.responses.stream(**asked) as stream:
            assert stream.get_final_response().output_text == "yes"


def test_a_grammar_leaves_room_for_thoughts(llm: LLM) -> None:
    template = TEMPLATE.replace("{% else %}<think>\n{% endif %}", "{% endif %}")
    with serving(with_template(llm, template)) as running:
        for bias, thinks in ((30, True), (-30, False)):
            asked: Any = {"logit_bias": {"27": bias}, "max_tokens": 30, "temperature": 0}
            body = {"messages": MESSAGES, "guided_choice": ["yes"], **asked}
            choice = running.post("/v1/chat/completions", **body).json()["choices"][0]
            assert (choice["message"]["content"] == "yes") == (not thinks)
            assert bool(choice["message"]["reasoning_content"]) == thinks


def test_without_a_thinking_template_nothing_is_taken_apart(running: Running) -> None:
    body = {"messages": MESSAGES, **script("<think>a</think>b"), "max_tokens": 50}
    message = running.post("/v1/chat/completions", **body).json()["choices"][0]["message"]
    assert message["content"] == "<think>a</think>b"
    assert "reasoning_content" not in message


def test_a_call_is_read_from_the_answer(client: openai.OpenAI) -> None:
    body = script(f"I ask.\n{CALL}\n<tool_call>\n<function=now>\n</function>\n</tool_call>") | NO_THOUGHTS
    calls = [("weather", {"city": "Rome", "days": 2}), ("now", {})]
    assert ask(client, tools=[WEATHER, NOW], extra_body=body) == ("", "I ask.", calls, "tool_calls")
    unknown = CALL.replace("weather", "nobody")
    body = script(unknown) | NO_THOUGHTS
    assert ask(client, tools=[WEATHER], extra_body=body) == ("", unknown, [], "stop")
    assert ask(client, extra_body=script(CALL) | NO_THOUGHTS) == ("", CALL, [], "stop")
    none = ask(client, tools=[WEATHER], tool_choice="none", extra_body=script(CALL) | NO_THOUGHTS)
    assert none == ("", CALL, [], "stop")


@pytest.mark.parametrize("template", [TEMPLATE, HERMES_TEMPLATE])
def test_a_call_can_be_forced(llm: LLM, template: str) -> None:
    with serving(with_template(llm, template)) as running, running.openai() as client:
        named: Any = {"type": "function", "function": {"name": "weather"}}
        asked: Any = {"tools": [NOW, WEATHER], "extra_body": NO_THOUGHTS}
        bias = {str(token): -30 for token in (197, 198, 201, 220)}  # no more white space than there must be
        _, words, [(name, arguments)], reason = ask(client, tool_choice=named, **asked, logit_bias=bias)
        assert (words, name, reason) == ("", "weather", "tool_calls")
        assert arguments["city"] in ("Oslo", "Rome")
        assert arguments["days"] in (1, 2)
        more = {"tool_choice": "required", "parallel_tool_calls": False, "logit_bias": bias}
        _, words, calls, reason = ask(client, **asked, **more)
        assert (words, len(calls), reason) == ("", 1, "tool_calls")
        assert calls[0][0] in ("weather", "now")


@pytest.mark.parametrize("strict", [False, True])
def test_tools_beside_a_schema_give_a_call_or_the_schema(client: openai.OpenAI, strict: bool) -> None:
    tool = {"type": "function", "function": WEATHER["function"] | {"strict": strict}}
    schema = {"name": "n", "schema": {"enum": ["p", "q"]}, "strict": True}
    asked: Any = {"tools": [tool], "response_format": {"type": "json_schema", "json_schema": schema}}
    kinds = set()
    for bias in ({"27": 9, "1": -9}, {"27": -9, "1": 9}):  # < and "
        _, words, calls, reason = ask(client, **asked, extra_body=NO_THOUGHTS, logit_bias=bias)
        kinds.add(reason)
        assert (reason == "tool_calls") == bool(calls) == (not words)
        assert calls or words in ('"p"', '"q"')
    assert kinds == {"stop", "tool_calls"}
    _, words, calls, _ = ask(client, **asked, tool_choice="required", extra_body=NO_THOUGHTS)
    assert calls
    assert not words


def test_some_tools_may_be_allowed(client: openai.OpenAI) -> None:
    only = {"type": "function", "function": {"name": "now"}}
    choice: Any = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [only]}}
    asked: Any = {"tools": [WEATHER, NOW], "extra_body": NO_THOUGHTS, "max_tokens": 1000}
    _, _, calls, _ = ask(client, tool_choice=choice, parallel_tool_calls=False, **asked)
    assert calls == [("now", {})]


def test_a_call_that_is_cut_off_is_told_as_far_as_it_came(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": MESSAGES, "tools": [WEATHER], "temperature": 0}
    asked |= {"max_tokens": CALL.index("days>"), "extra_body": script(CALL) | NO_THOUGHTS}
    choice = client.chat.completions.create(**asked).choices[0]
    [call] = choice.message.tool_calls
    told = '{"city": "Rome"'
    assert (call.function.arguments, choice.message.content, choice.finish_reason) == (told, None, "length")
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
    calls = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
    assert "".join(call.function.arguments for call in calls) == told
    assert "".join(chunk.delta.content or "" for chunk in chunks) == ""
    assert chunks[-1].finish_reason == "length"


def test_a_conversation_with_calls_goes_through_the_template(client: openai.OpenAI, qwen: Running) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
    }
    turns: Any = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=turns, tools=[WEATHER], max_tokens=1)
    rendered: Any = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
    said = [*turns[:1], {"role": "assistant", "content": "", "tool_calls": [rendered]}, turns[2]]
    template = qwen.service.tokenizer.apply_chat_template
    ids = template(said, tools=[WEATHER], add_generation_prompt=True, return_dict=False)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids)
    turns[1]["tool_calls"][0]["function"]["arguments"] = "[1]"
    refused = qwen.post("/v1/chat/completions", messages=turns)
    assert refused.json()["error"]["param"] == "messages[1].tool_calls[0].function.arguments"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": "required", "guided_regex": "a"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(qwen: Running, more: dict[str, Any], param: str) -> None:
    response = qwen.post("/v1/chat/completions", messages=MESSAGES, **more)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_of_templates_by_name_the_one_for_tools_is_taken(llm: LLM) -> None:
    plain = "{% for m in messages %}{{ m.content }}{% endfor %}"
    named: Any = {"default": plain, "tool_use": TEMPLATE}
    asked: Any = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    tools = [{"type": "function", "function": {"name": "f"}}]
    with serving(with_template(llm, named)) as running:
        told = running.post("/v1/chat/completions", **asked).json()
        assert told["usage"]["prompt_tokens"] == len("hello")
        assert "reasoning_content" not in told["choices"][0]["message"]
        told = running.post("/v1/chat/completions", **asked, tools=tools).json()
        assert told["choices"][0]["message"]["reasoning_content"]
        quiet = {"chat_template_kwargs": {"enable_thinking": False}}
        assert running.post("/v1/chat/completions", **asked, **quiet, tools=tools).status_code == 200
        assert running.post("/v1/messages", **asked).status_code == 200
        assert running.get("/v1/models").json()["data"][0]["thinking"] is False


def test_tools_for_a_template_that_has_none_are_refused(running: Running) -> None:
    response = running.post("/v1/chat/completions", messages=MESSAGES, tools=[WEATHER])
    assert response.status_code == 400
    assert "chat template has no tools" in response.json()["error"]["message"]
