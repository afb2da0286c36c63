"""Answers put together at random from marks, calls and slips: how they are cut into pieces changes nothing."""

import json
import random
from types import SimpleNamespace
from typing import Any

import pytest

from flashdraft.server.accounts import ThoughtCounts
from flashdraft.server.answer_parts import Thinking, reader_of
from flashdraft.server.answer_segments import SegmentReader
from flashdraft.server.answer_text import TokenPiece
from flashdraft.server.call_styles import CallStyle, Tools
from flashdraft.server.tool_calls import CallNews

ARGUMENTS = {
    "a": {"type": "string"},
    "b": {"type": "integer"},
    "c": {"anyOf": [{"type": "string"}, {"type": "null"}]},
}
SCHEMAS: dict[str, Any] = {
    "f": {"type": "object", "properties": ARGUMENTS},
    "get-x.y": {"type": "object", "properties": {}},
}
SLIPS = (
    *(
        "<think>",
        "</think>",
        "\n",
        "\n\n",
        " ",
        "hello",
        "{",
        "}",
        "[",
        "]",
        '"',
        "'",
        "\\",
        "\\u00e9",
        "\\ud83d",
    ),
    *("é", "😀", "f", "get-x.y", "unknown", "a", "1", ":", ",", ";", "null", "True", "<", "</", "<|"),
)
CALL = '{"name": "f", "arguments": {"a": "x"}}'
MARKS: dict[CallStyle, tuple[str, ...]] = {
    "xml": (
        *("<tool_call>", "</tool_call>", "<function=f>", "<function=get-x.y>", "<function=unknown>"),
        *("<parameter=a>", "<parameter=b>", "<parameter=c>", "</parameter>", "</function>"),
        "<tool_call>\n<function=f>\n<parameter=a>\nx\n</parameter>\n</function>\n</tool_call>",
        "<function=f>\n<parameter=b>\n1\n</parameter>\n</function>",
        f"<tool_call>\n{CALL}\n</tool_call>",
    ),
    "json": (
        *("<tool_call>", "</tool_call>", '{"name": "f", "arguments": ', '{"a": "x"}', '"parameters"'),
        *('{"arguments": {"a": 1}, "name": "f"}', '{"name": "unknown", "arguments": {}}'),
        *(f"<tool_call>\n{CALL}\n</tool_call>", '{"name": "get-x.y", "parameters": "{}"}'),
    ),
    "llama": (
        *('{"name": "f", "parameters": ', '{"a": "x"}', "; ", '{"name": "f", "parameters": {"a": "x"}}'),
        *('{"type": "function", "name": "f", "parameters": {}}', '{"function": "f", "parameters": {}}'),
        '{"x": 1}',
    ),
    "pythonic": (
        *("[f(", "a='y'", ")", "]", "[get-x.y()]", "f(a=1, b=[1, 2])", ", ", '[f(a="x"), f(b=2)]', "[1]"),
        *('[f(a="x")]', "[unknown(a=1)]", "{'a': 1}", 'a="\\ud800"'),
    ),
    "mistral": (
        *("[TOOL_CALLS]", f"[{CALL}]", CALL, '"id": "abc123456"', f"[TOOL_CALLS][{CALL}, {CALL}]"),
        "[TOOL_CALLS][]",
    ),
    "mistral-args": (
        *("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "abc123456", '[TOOL_CALLS]f[ARGS]{"a": "x"}', "f[ARGS]{}"),
        '[TOOL_CALLS]get-x.y[CALL_ID]abc[ARGS]{"a": 1}',
    ),
    "harmony": (
        *("<|channel|>", "<|message|>", "<|end|>", "<|start|>assistant", "<|call|>", "<|return|>"),
        *(
            "analysis",
            "final",
            "commentary",
            "to=functions.f",
            " <|constrain|>json",
            '{"a": "x"}',
            "x" * 1100,
        ),
        "<|channel|>analysis<|message|>hm<|end|>",
        "<|start|>assistant<|channel|>final<|message|>hi",
        '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>',
    ),
}
SEED, NUMBER = 24, 150  # of each style


def answers(style: CallStyle) -> list[tuple[str, Thinking, bool]]:
    """Texts, whether they begin with thoughts, and whether their length has cut them."""
    dice = random.Random(f"{SEED} {style}")
    found: list[tuple[str, Thinking, bool]] = []
    for _ in range(NUMBER):
        parts = [
            dice.choice(MARKS[style] if dice.random() < 0.55 else SLIPS) for _ in range(dice.randint(1, 9))
        ]
        thinking: Thinking = "harmony" if style == "harmony" else dice.choice(("open", "possible", "none"))
        found.append(("".join(parts), thinking, dice.random() < 0.5))
    return found


def pieces_of(text: str, dice: random.Random) -> list[str]:
    pieces = []
    while text:
        size = dice.randint(1, 12)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def read(pieces: list[str], thinking: Thinking, tools: Tools, is_cut: bool) -> list[tuple[str, ...]]:
    """Thoughts, words and calls in their order: what a stream tells, put together."""
    reader = reader_of(thinking, tools)
    news = [one for piece in pieces for one in reader.push(piece).news] + reader.flush(is_cut).news
    told: list[tuple[str, ...]] = []
    for one in news:
        if not isinstance(one, CallNews):
            same = told and told[-1][0] == one.kind
            told[-1:] = [(one.kind, told[-1][1] + one.text)] if same else [*told[-1:], (one.kind, one.text)]
        elif one.kind == "name":
            told.append(("call", one.text, ""))
        elif one.kind != "broken":
            kind, name, arguments = told[-1]
            assert kind == "call"
            told[-1] = ("call", name, arguments + one.text)
            if one.kind == "end":
                assert isinstance(json.loads(told[-1][2]), dict)
            told[-1][2].encode()
    return told


@pytest.mark.parametrize("style", MARKS)
def test_an_answer_is_read_alike_however_it_is_cut(style: CallStyle) -> None:
    dice, tools = random.Random(SEED), Tools(SCHEMAS, style)
    num_calls = 0
    for text, thinking, is_cut in answers(style):
        whole = read([text], thinking, tools, is_cut)
        for pieces in (list(text), pieces_of(text, dice), pieces_of(text, dice)):
            assert read(pieces, thinking, tools, is_cut) == whole, (text, pieces)
        reader = SegmentReader(thinking, tools)
        for _ in (*reader.begin(), *reader.push(text), *reader.flush(is_cut)):
            pass
        told = [(one.kind, *([one.name] if one.kind == "call" else []), one.text) for one in reader.segments]
        assert [one for one in told if one[-1] or one[0] == "call"] == whole, text
        num_calls += sum(one[0] == "call" for one in whole)
    assert num_calls > NUMBER / 8


@pytest.mark.parametrize("style", MARKS)
def test_thoughts_counted_as_they_come_are_those_counted_at_the_end(style: CallStyle) -> None:
    tools = Tools(SCHEMAS, style)
    for text, thinking, _ in answers(style):
        answer: Any = SimpleNamespace(pieces=[])
        counts = ThoughtCounts(thinking, tools)
        seen = []
        for char in text:
            answer.pieces.append(TokenPiece(1, char, "plain"))
            seen.append(counts.of(answer))
        assert seen == sorted(seen)
        assert counts.of(answer) == ThoughtCounts(thinking, tools).of(answer), text


def test_what_looks_like_a_header_and_never_ends_is_text() -> None:
    for opener in ("<|start|>", "<|channel|>", "<|end|>", "to="):
        text = opener + "x" * 3000
        assert read([text], "harmony", Tools(SCHEMAS, "harmony"), False) == [("words", text)]
    said = "no header<|message|>hi"
    assert read([said], "harmony", Tools(SCHEMAS, "harmony"), False) == [("words", said)]


def test_a_tool_is_called_in_python_though_its_name_is_none_there() -> None:
    told = read(['[get-x.y(a="\\ud800")]'], "none", Tools(SCHEMAS, "pythonic"), False)
    assert told == [("call", "get-x.y", '{"a": "\\ud800"}')]
