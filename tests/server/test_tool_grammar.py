"""Forced calls fit their schema to the character, and nothing comes behind them."""

import json
import random
from typing import Any

import jsonschema
import pytest
import torch

from call_cases import EOS, TOKENIZER, VOCAB, accepts
from flashdraft.errors import UsageError
from flashdraft.grammar import Grammar, begin_grammar, json_rule
from flashdraft.server.answer_parts import read_whole
from flashdraft.server.call_styles import CallStyle, Tools
from flashdraft.server.tool_grammar import CallRules, calls_lark, containing

ZIP = {"type": "string", "pattern": "^[0-9]{5}$"}
DEFS = {"zip": ZIP, "point": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}}
ARGUMENTS: list[Any] = [
    ZIP,
    {"anyOf": [ZIP, {"type": "null"}]},
    {"$ref": "#/$defs/zip"},
    {"enum": ["10115", "20010", "a/b"]},
    {"const": "1.10"},
    {"type": ["string", "integer"], "minLength": 2, "maxLength": 4, "maximum": 3},
    {"type": "string", "minLength": 1, "maxLength": 3},
    {"allOf": [{"$ref": "#/$defs/zip"}, {"pattern": "^1"}]},
    {"type": "string", "format": "date"},
    {"type": "boolean"},
    {"type": "array", "items": {"$ref": "#/$defs/zip"}, "minItems": 1, "maxItems": 2},
    {"$ref": "#/$defs/point"},
    {"anyOf": [{"$ref": "#/$defs/point"}, {"enum": ["off", None]}]},
    {"type": "string", "pattern": "b"},
    {"$ref": "#/properties/more"},
    {
        "type": "object",
        "properties": {"p": {"$ref": "#/$defs/point"}, "q": {"$ref": "#/$defs/point/properties/x"}},
    },
]


def tool(argument: Any) -> dict[str, Any]:
    properties = {"first": argument, "more": {"type": "integer", "maximum": 9}}
    root = {"type": "object", "properties": properties, "required": ["first"], "additionalProperties": False}
    return root | {"$defs": DEFS}


def said(rules: CallRules, seed: int) -> str | None:
    """What the grammar says at random; None where it did not come to an end."""
    state = begin_grammar(Grammar("lark", calls_lark(rules)), TOKENIZER, VOCAB, [EOS])
    assert state is not None
    rng, output = torch.Generator().manual_seed(seed), list[int]()
    while len(output) < 400:
        logits = torch.rand(1, VOCAB, generator=rng)
        logits[0, TOKENIZER.encode("\n<")] += 0.2
        logits[0, TOKENIZER.encode(" \t\r")] -= 1
        state.forbid(logits, output, [])
        output.append(int(logits.argmax()))
        if output[-1] == EOS:
            return str(TOKENIZER.decode(output[:-1]))
    return None


@pytest.mark.parametrize("style", ["xml", "json", "llama", "mistral", "mistral-args", "pythonic"])
@pytest.mark.parametrize("is_single", [True, False])
def test_no_special_token_is_free_text(style: CallStyle, is_single: bool) -> None:
    """llguidance would let it through where a text is only forbidden to hold something, and not take it."""
    rules = CallRules({"f": tool(ZIP)}, style, must_call=False, is_single=is_single)
    special = [token for token, one in TOKENIZER.added_tokens_decoder.items() if one.special and token != EOS]
    rng = torch.Generator().manual_seed(0)
    for _ in range(4):
        state = begin_grammar(Grammar("lark", calls_lark(rules)), TOKENIZER, VOCAB, [EOS])
        assert state is not None
        output: list[int] = []
        while len(output) < 30 and EOS not in output:
            logits = torch.rand(1, VOCAB, generator=rng)
            logits[0, special] += 1
            state.forbid(logits, output, [])  # raises for a token that it let through and does not take
            output.append(int(logits.argmax()))
        assert not set(special) & set(output)
        assert len(output) > 3


@pytest.mark.parametrize("style", ["xml", "json", "llama", "mistral-args"])
@pytest.mark.parametrize("argument", ARGUMENTS, ids=range(len(ARGUMENTS)))
def test_what_a_forced_call_says_is_read_as_its_schema_has_it(argument: Any, style: CallStyle) -> None:
    schema = tool(argument)
    rules = CallRules({"f": schema, "g": {}}, style, must_call=True, is_single=False)
    num_read = 0
    for seed in range(6):
        if (text := said(rules, seed)) is None:
            continue
        parts, calls, num_whole = read_whole(text, "none", Tools(rules.tools, style))
        assert (parts.content, num_whole) == ("", len(calls)), text
        assert calls
        for call in calls:
            arguments = json.loads(call.arguments)
            assert arguments == {} if call.name == "g" else jsonschema.validate(arguments, schema) is None
        num_read += 1
    assert num_read


def xml(value: str, behind: str = "") -> str:
    head = f"<tool_call>\n<function=f>\n<parameter=first>\n{value}\n</parameter>\n"
    return f"{head}</function>\n</tool_call>{behind}"


def test_a_value_has_no_white_space_of_its_own_and_nothing_comes_behind_a_call() -> None:
    rules = CallRules({"f": tool(ZIP)}, "xml", must_call=True, is_single=False)
    assert accepts(rules, xml("12320"))
    assert accepts(rules, xml("12320", "\n" + xml("12321")))
    assert not accepts(rules, xml("12320 "))
    assert not accepts(rules, xml("\n12320"))
    assert not accepts(rules, xml("12320", " and"))
    assert not accepts(rules, "I call " + xml("12320"))
    single = CallRules({"f": tool(ZIP)}, "xml", must_call=True, is_single=True)
    assert not accepts(single, xml("12320", "\n" + xml("12321")))


def test_free_text_may_be_any_but_the_end_tag() -> None:
    rules = CallRules({"f": tool({"type": "string"})}, "xml", must_call=True, is_single=True)
    for value in ("", "a\n\nb", "</function>\n</tool_call>", "<parameter=x>", " é ", "a < b / c"):
        assert accepts(rules, xml(value))
    assert not accepts(rules, xml("a</parameter>b"))


def test_beside_a_schema_an_answer_is_calls_or_fits_it() -> None:
    answer = json_rule({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
    rules = CallRules({"f": tool(ZIP)}, "xml", must_call=False, is_single=False, answer=answer)
    assert accepts(rules, '{"n": 1}')
    assert accepts(rules, xml("12320"))
    assert not accepts(rules, "words")
    assert not accepts(rules, xml("12320", '\n{"n": 1}'))


def test_free_answers_hold_only_right_calls() -> None:
    rules = CallRules({"f": tool(ZIP)}, "xml", must_call=False, is_single=False)
    for text in ("", "a < b", xml("12320"), "I ask.\n" + xml("12320", "\n" + xml("12321", "\nok"))):
        assert accepts(rules, text)
    assert not accepts(rules, xml("1232"))
    assert not accepts(rules, "<tool_call>\n<function=g>")


@pytest.mark.parametrize(
    ("schema", "part"),
    [
        ({"type": "object", "anyOf": [{"required": ["a"]}]}, "demands anyOf of all arguments"),
        ({"type": "array"}, "no object"),
        (tool({"not": {}}), "demands not"),
        (tool(False) | {"properties": {"first": {"enum": []}}}, "allows no value"),
        (tool({"$ref": "#/properties/none"}), "expected a place in the same schema"),
        (tool({"type": "any"}), "the type 'any'"),
        (tool({"type": "string", "required": True}), "required is True; expected a list of texts"),
        (tool({"type": "string", "minLength": "1"}), "minLength is '1'; expected a number"),
        (tool(None), "holds None"),
        ({"type": "object", "properties": [1]}, "properties is [1]; expected an object"),
        ({"type": "object", "properties": {"a>b": {}}}, "'a>b'"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "requires 'a'"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_named(schema: Any, part: str) -> None:
    with pytest.raises(UsageError, match="tool 'f': ") as error:
        calls_lark(CallRules({"f": schema}, "xml", True, True))
    assert part in str(error.value)


def test_a_pattern_is_found_anywhere_as_the_standard_has_it() -> None:
    import re

    rng = random.Random(0)
    for pattern in ("^a", "b$", "a|^b$", "^(a|b)$", "[|]", r"\$$", r"a\|b", "^$", "ab", "a+b"):
        whole = containing(pattern)
        for _ in range(200):
            text = "".join(rng.choices("ab|$", k=rng.randrange(5)))
            assert bool(re.fullmatch(whole, text)) == bool(re.search(pattern, text)), (pattern, text)
