"""Scripted answers, token by token and in chunks: thoughts, words and tool calls come apart the same way."""

import random

import pytest

from call_cases import SCHEMAS, Calls, added_up, cuts
from flashdraft.server.answer_parts import Parts, PartsReader, Thinking, read_whole, thinking_of
from flashdraft.server.call_styles import Tools

TOOLS = Tools(SCHEMAS)
XML = """<tool_call>
<function=get_weather>
<parameter=city>
Zürich "old" town
second line
</parameter>
<parameter=days>
3
</parameter>
<parameter=flags>
["a", {"b": null}]
</parameter>
</function>
</tool_call>"""
XML_ARGUMENTS = {"city": 'Zürich "old" town\nsecond line', "days": 3, "flags": ["a", {"b": None}]}
SPACED = 'Zürich "old" town\n  \n'
HERMES = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "a}b\\"</tool_call>", "days": 2}}\n</tool_call>'
HERMES_ARGUMENTS = {"city": 'a}b"</tool_call>', "days": 2}
NOW = "<tool_call>\n<function=now>\n</function>\n</tool_call>"
TURNED = '<tool_call>{"arguments": {"days": 1}, "name": "get_weather"}</tool_call>'


def call_of(arguments: str) -> str:
    return f'<tool_call>\n{{"name": "get_weather", "arguments": {arguments}}}\n</tool_call>'


SCRIPTS: list[tuple[str, Thinking, str, str, Calls]] = [
    ("just words", "none", "", "just words", []),
    ("a < b <tool> c\n", "none", "", "a < b <tool> c\n", []),
    ("\nhm, <b>\n</think>\n\nwords\n", "open", "hm, <b>", "words\n", []),
    ("<think>\nhm\n</think>\n\nwords", "possible", "hm", "words", []),
    ("words <think>no</think>", "possible", "", "words <think>no</think>", []),
    ("hm", "open", "hm", "", []),
    ("<think>\n\n</think>\n\n", "possible", "", "", []),
    (XML, "none", "", "", [("get_weather", XML_ARGUMENTS)]),
    (HERMES, "none", "", "", [("get_weather", HERMES_ARGUMENTS)]),
    (TURNED, "none", "", "", [("get_weather", {"days": 1})]),
    (
        f"so\n</think>\n\nI ask.\n\n{XML}\n{NOW}\n",
        "open",
        "so",
        "I ask.",
        [("get_weather", XML_ARGUMENTS), ("now", {})],
    ),
    (XML.replace("second line", "  \n"), "none", "", "", [("get_weather", XML_ARGUMENTS | {"city": SPACED})]),
    (f"{HERMES}\n{HERMES} done", "none", "", "done", [("get_weather", HERMES_ARGUMENTS)] * 2),
    ("<tool_call>{no json}</tool_call> x", "none", "", "<tool_call>{no json}</tool_call> x", []),
    ("a <tool_call>\n<function=nobody>\n", "none", "", "a <tool_call>\n<function=nobody>\n", []),
    (f"b <tool_call>{XML}", "none", "", "b <tool_call>", [("get_weather", XML_ARGUMENTS)]),
    (XML[:-20], "none", "", "", [("get_weather", XML_ARGUMENTS)]),
    # What was told of a call stands, though it has no end.
    (HERMES[:50] + NOW, "none", "", "", []),
    (f"{HERMES.replace('2}', '2]')} {NOW}", "none", "", "", [("now", {})]),
    (XML.replace("</function>", "oops"), "none", "", "", [("get_weather", XML_ARGUMENTS)]),
    (XML.replace("</function>\n", ""), "none", "", "", [("get_weather", XML_ARGUMENTS)]),
    (
        XML.replace("</parameter>\n<", "</parameter>\nand\n<"),
        "none",
        "",
        "",
        [("get_weather", XML_ARGUMENTS)],
    ),
    ("use <function=now> so", "none", "", "use <function=now> so", []),
    ("use <tool_call><function=now> so", "none", "", "use <tool_call><function=now> so", []),
    # What models forget and write otherwise.
    (f"hm\n{XML}", "open", "hm", "", [("get_weather", XML_ARGUMENTS)]),
    (f"hm\n{HERMES}\nso\n</think>\n\nok", "open", "hmso", "ok", [("get_weather", HERMES_ARGUMENTS)]),
    (f"<think>hm {NOW}", "possible", "hm", "", [("now", {})]),
    ("a <tool_call> b </think> c", "open", "a <tool_call> b", "c", []),
    (HERMES.removesuffix("\n</tool_call>"), "none", "", "", [("get_weather", HERMES_ARGUMENTS)]),
    (HERMES.removesuffix("}\n</tool_call>"), "none", "", "", [("get_weather", HERMES_ARGUMENTS)]),
    (XML.removesuffix("\n</tool_call>") + "\nso", "none", "", "so", [("get_weather", XML_ARGUMENTS)]),
    (XML.removeprefix("<tool_call>\n"), "none", "", "", [("get_weather", XML_ARGUMENTS)]),
    (f"I ask {XML[12:-13]} <function=x>", "none", "", "I ask<function=x>", [("get_weather", XML_ARGUMENTS)]),
    (
        XML.replace("\n</parameter>\n<parameter=days", "\n<parameter=days"),
        "none",
        "",
        "",
        [("get_weather", XML_ARGUMENTS)],
    ),
    (
        XML.replace("\n</parameter>\n</function>", "\n</function>"),
        "none",
        "",
        "",
        [("get_weather", XML_ARGUMENTS)],
    ),
    (HERMES.replace("arguments", "parameters"), "none", "", "", [("get_weather", HERMES_ARGUMENTS)]),
    (call_of('"{\\"days\\": 2}"'), "none", "", "", [("get_weather", {"days": 2})]),
    (call_of("null"), "none", "", "", [("get_weather", {})]),
    ("<tool_call>{'name': 'now', 'arguments': {}}</tool_call>", "none", "", "", [("now", {})]),
    (
        '<tool_call>{"type": "function", "function": {"name": "now"}}</tool_call>',
        "none",
        "",
        "",
        [("now", {})],
    ),
    (call_of("[1]"), "none", "", call_of("[1]"), []),
    ('<tool_call>{"function": "now", "arguments": {}}</tool_call>', "none", "", "", [("now", {})]),
    ('<tool_call>{"function": 3, "name": "now"}</tool_call>', "none", "", "", [("now", {})]),
    (XML.replace("=city>", '="city" >'), "none", "", "", [("get_weather", XML_ARGUMENTS)]),
    (XML.replace("=get_weather>", "='get_weather'>"), "none", "", "", [("get_weather", XML_ARGUMENTS)]),
    (call_of('{"city": "a\n\tb"}'), "none", "", "", [("get_weather", {"city": "a\n\tb"})]),
    (
        call_of('{"flags": [True, None, NaN],}'),
        "none",
        "",
        "",
        [("get_weather", {"flags": [True, None, "NaN"]})],
    ),
    (
        call_of("{'city': 'it\\'s \"x\"', days: 2}"),
        "none",
        "",
        "",
        [("get_weather", {"city": 'it\'s "x"', "days": 2})],
    ),
    (call_of(r'{"city": "\d C:\new"}'), "none", "", "", [("get_weather", {"city": "\\d C:\new"})]),
]


def streamed(pieces: list[Parts]) -> list[tuple[str, str]]:
    """The calls that a client has who puts together what it is told, cut ones too."""
    calls: list[list[str]] = []
    for one in (news for parts in pieces for news in parts.calls):
        if one.kind == "name":
            calls.append([one.text, ""])
        elif one.kind == "arguments":
            calls[-1][1] += one.text
    return [(name, text) for name, text in calls]


@pytest.mark.parametrize("script", SCRIPTS, ids=range(len(SCRIPTS)))
def test_an_answer_comes_apart_the_same_however_it_is_cut(
    script: tuple[str, Thinking, str, str, Calls],
) -> None:
    text, thinking, *expected = script
    for pieces in cuts(text):
        reader = PartsReader(thinking, TOOLS)
        assert list(added_up([*map(reader.push, pieces), reader.flush()])) == expected
        assert reader.num_whole_calls == len(expected[2])
    parts, calls, num_whole = read_whole(text, thinking, TOOLS)
    assert [parts.reasoning, parts.content, num_whole] == [*expected[:2], len(expected[2])]
    reader = PartsReader(thinking, TOOLS)
    assert [(call.name, call.arguments) for call in calls] == streamed(
        [*map(reader.push, text), reader.flush()]
    )


def test_without_tools_a_call_is_text_and_nothing_is_held_back() -> None:
    reader = PartsReader("none")
    assert reader.push("a <tool").content == "a <tool"
    assert read_whole(XML, "none", None)[0].content == XML


@pytest.mark.parametrize("text", [XML, HERMES])
def test_arguments_are_streamed_before_the_call_is_over(text: str) -> None:
    reader = PartsReader("none", TOOLS)
    early = [one for char in text[: -len(text) // 4] for one in reader.push(char).calls]
    assert early[0].kind == "name"
    assert len([one for one in early if one.kind == "arguments"]) > 5


def test_random_garbage_is_read_the_same_however_it_is_cut() -> None:
    rng = random.Random(1)
    words = [
        "<tool_call>",
        "</tool_call>",
        "<function=now>",
        "</function>",
        "<parameter=city>",
        "</parameter>",
    ]
    words += [
        '{"name": "now", "arguments": {',
        "}",
        "}}",
        '"',
        "\n",
        " ",
        "a",
        "<",
        "<think>",
        "</think>",
        "\\",
    ]
    for _ in range(400):
        text = "".join(rng.choices(words, k=rng.randrange(2, 14)))
        thinking: Thinking = rng.choice(["none", "open", "possible"])
        results = []
        for pieces in cuts(text):
            reader = PartsReader(thinking, TOOLS)
            results.append(added_up([*map(reader.push, pieces), reader.flush()]))
        assert all(result == results[0] for result in results), text


def test_the_prompts_end_says_whether_there_are_thoughts() -> None:
    template = "{% if enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}"
    assert thinking_of(template, "<|im_start|>assistant\n<think>\n") == "open"
    assert thinking_of(template, "<think>\n\n</think>\n\n") == "none"
    assert thinking_of(template, "<|im_start|>assistant\n") == "possible"
    assert thinking_of("{{ messages }}", "<think>") == thinking_of(None, "<think>") == "none"
