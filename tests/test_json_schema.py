"""A schema is followed or refused: what the grammar lets through, ``jsonschema`` finds valid."""

import json
import random
from functools import cache
from typing import Any

import jsonschema
import pytest
import torch

from flashdraft.errors import UsageError
from flashdraft.grammar import Grammar, GrammarState, begin_grammar
from tiny_pair import byte_tokenizer

TOKENIZER = byte_tokenizer()
EOS = TOKENIZER.eos_token_id
VOCAB = len(TOKENIZER)
Rng = random.Random
NUM_SCHEMAS, NUM_VALUES = 250, 20


@cache
def begin(text: str) -> GrammarState:
    state = begin_grammar(Grammar("json_schema", text), TOKENIZER, VOCAB, [EOS])
    assert state is not None
    return state


def accepts(schema: Any, text: str) -> bool:
    ids = [*TOKENIZER.encode(text), EOS]
    return begin(json.dumps(schema)).cut([], ids) == ids


def is_valid(schema: Any, text: str) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return jsonschema.Draft202012Validator(schema).is_valid(value)


# Schemas as they are met: every keyword beside every other.


def some_schema(rng: Rng, depth: int = 3) -> Any:
    schema: dict[str, Any] = {}
    for make in rng.sample([typed, bounds, texts, objects, arrays, values, joined], rng.randrange(1, 4)):
        schema |= make(rng, depth - 1)
    return schema


def typed(rng: Rng, depth: int) -> dict[str, Any]:
    names = ["string", "integer", "number", "boolean", "null", "object", "array"]
    return {"type": rng.choice(names) if depth and rng.random() < 0.8 else rng.sample(names, 2)}


def bounds(rng: Rng, _: int) -> dict[str, Any]:
    pairs = {"minimum": rng.randrange(-5, 9), "maximum": rng.randrange(-5, 90), "exclusiveMinimum": 3}
    pairs |= {"exclusiveMaximum": rng.randrange(4, 12) / 2, "multipleOf": rng.choice([2, 3, 0.5, 0.25])}
    return dict(rng.sample(list(pairs.items()), rng.randrange(1, 3)))


def texts(rng: Rng, _: int) -> dict[str, Any]:
    patterns = ["^[ab]+$", "b", "^a", r"^\d{2,3}$", '"', r"^a\\b$", "^(a|bb)$", "a$|^b", r"^\w{3}", "[^a]"]
    pairs: dict[str, Any] = {"minLength": rng.randrange(4), "maxLength": rng.randrange(2, 6)}
    pairs |= {"pattern": rng.choice(patterns), "format": rng.choice(["date", "ipv4", "uuid", "int32"])}
    return dict(rng.sample(list(pairs.items()), rng.randrange(1, 3)))


def objects(rng: Rng, depth: int) -> dict[str, Any]:
    inner = [some_schema(rng, depth) if depth > 0 else {} for _ in range(3)]
    some = rng.sample(["a", "b", "c"], rng.randrange(3))
    pairs: dict[str, Any] = {"properties": {"a": inner[0], "b": inner[1]}, "required": some}
    pairs |= {"additionalProperties": rng.choice([False, inner[2]]), "minProperties": rng.randrange(3)}
    pairs |= {"patternProperties": {"^a": inner[2]}, "maxProperties": rng.randrange(1, 4)}
    pairs |= {"propertyNames": rng.choice([{"pattern": "^a"}, {"maxLength": 1}, {"enum": ["a", "c"]}])}
    pairs |= {"dependentRequired": {"a": ["b"]}, "dependentSchemas": {"b": inner[2]}}
    pairs |= {"dependencies": {"a": ["c"]}, "unevaluatedProperties": rng.choice([False, True, inner[2]])}
    told = dict(rng.sample(list(pairs.items()), rng.randrange(1, 4)))
    return told | ({"type": "object"} if rng.random() < 0.7 else {})


def arrays(rng: Rng, depth: int) -> dict[str, Any]:
    inner = [some_schema(rng, depth) if depth > 0 else {} for _ in range(2)]
    pairs: dict[str, Any] = {"items": inner[0], "prefixItems": [inner[1]], "minItems": rng.randrange(3)}
    pairs |= {"maxItems": rng.randrange(1, 3), "contains": inner[1], "uniqueItems": rng.random() < 0.5}
    pairs |= {"unevaluatedItems": False, "minContains": 1}
    return dict(rng.sample(list(pairs.items()), rng.randrange(1, 4))) | {"type": "array"}


def values(rng: Rng, _: int) -> dict[str, Any]:
    some = rng.sample(VALUES, rng.randrange(1, 4))
    return {"enum": some} if rng.random() < 0.6 else {"const": some[0]}


def joined(rng: Rng, depth: int) -> dict[str, Any]:
    inner = [some_schema(rng, depth) if depth > 0 else {"type": "integer"} for _ in range(2)]
    if rng.random() < 0.2:
        inner = [{"required": ["a"]}, {"required": ["b"]}]
    key = rng.choice(["anyOf", "oneOf", "allOf", "allOf", "not", "if", "$ref", "anchor", "far", "dynamic"])
    if key in ("anyOf", "oneOf", "allOf"):
        return {key: inner}
    return {
        "not": {"not": inner[0]},
        "if": {"if": inner[0], "then": inner[1]},
        "$ref": {"$ref": "#/$defs/one", "$defs": {"one": inner[0]}},
        "anchor": {"$ref": "#one", "$defs": {"x": {"$anchor": "one"} | inner[0]}},
        "far": {"$ref": "#/properties/a"},
        "dynamic": {"$dynamicRef": "#one", "$defs": {"x": {"$dynamicAnchor": "one"} | inner[0]}},
    }[key]


VALUES: list[Any] = [None, True, False, 0, 1, -3, 4, 7, 12, 1.5, 2.25, "", "a", "b", "ab", "bb", "12", 'x"y']
VALUES += ["a\\b", "abcdef", "2024-02-29", "1.2.3.4", [], [1], ["a", "b"], [1, 1], [[1], None], {}]
VALUES += [{"a": 1}, {"b": "x"}, {"a": None, "b": 2}, {"ab": 1}, {"a": {"a": 1}, "c": [1]}, {"z": 1}]


def some_text(rng: Rng, text: str) -> str:
    """A value, or what the grammar itself says at random."""
    if rng.random() < 0.5:
        return json.dumps(rng.choice(VALUES))
    state, said = begin(text), list[int]()
    for _ in range(60):
        logits = torch.rand(1, VOCAB, generator=torch.Generator().manual_seed(rng.randrange(2**40)))
        for token in [*TOKENIZER.encode('"}]'), EOS]:
            logits[0, token] += 0.5
        for token in TOKENIZER.encode(" \n\t\r\\"):
            logits[0, token] -= 1
        try:
            state.forbid(logits, said, [])
        except UsageError:
            break
        said.append(int(logits.argmax()))
        if said[-1] == EOS:
            break
    state.rewind()
    return TOKENIZER.decode(said[:-1])


def count_wrong(seed: int, num_schemas: int) -> tuple[list[tuple[Any, str]], int, int]:
    """Texts that are let through against their schema; how many schemas were followed, how many texts let through."""
    rng, wrong, num_followed, num_accepted = Rng(seed), [], 0, 0
    for _ in range(num_schemas):
        schema = some_schema(rng)
        try:
            jsonschema.Draft202012Validator(schema).is_valid(1)
            begin(json.dumps(schema))
        except (UsageError, RecursionError, jsonschema.exceptions._WrappedReferencingError):
            continue
        num_followed += 1
        for _ in range(NUM_VALUES):
            text = some_text(rng, json.dumps(schema))
            if accepts(schema, text):
                num_accepted += 1
                wrong += [] if is_valid(schema, text) else [(schema, text)]
    return wrong, num_followed, num_accepted


def test_what_the_grammar_lets_through_is_valid() -> None:
    wrong, num_followed, num_accepted = count_wrong(0, NUM_SCHEMAS)
    assert wrong == []
    assert num_followed > NUM_SCHEMAS / 5
    assert num_accepted > num_followed


@pytest.mark.parametrize(
    "pattern",
    [
        '^[^"]*$',
        '^[^"x]+$',
        r"^[^\\]*$",
        r'^[^"\n]*$',
        "^[^'\"]{1,5}$",
        '^([^"]|x)+$',
        r"^[^\x22]*$",
        r'^\[[^"]*\]$',
        r"^[\w\s]+$",
    ],
)
def test_a_class_without_the_quote_or_the_backslash_has_none(pattern: str) -> None:
    texts = ["ab", 'a"b', "a\\b", "a\nb", "a\tb", "[a]", '["]', "[\\]", "é", "a\x01b"]
    as_name = {"type": "object", "patternProperties": {pattern: {}}, "additionalProperties": False}
    num_accepted = 0
    for text in texts:
        for schema, said in (
            ({"type": "string", "pattern": pattern}, json.dumps(text)),
            (as_name, json.dumps({text: 1})),
        ):
            if accepts(schema, said):
                assert is_valid(schema, said), (schema, said)
                num_accepted += 1
    assert num_accepted >= 2


def test_a_range_of_control_characters_is_refused() -> None:
    for pattern in (r"[\x00-!#-~]", r"[a\u0001-b]"):
        with pytest.raises(UsageError, match="of control characters"):
            begin(json.dumps({"type": "string", "pattern": pattern}))


def test_a_dead_end_is_told_and_leaves_the_state_where_it_stood() -> None:
    nothing = {
        "type": "object",
        "properties": {"b": {"allOf": [{"minimum": 5, "type": "number"}, {"maximum": 3}]}},
    }
    for schema in (
        {"anyOf": [nothing, {"type": "integer"}]},
        {"anyOf": [{"type": "string", "pattern": "a&b"}]},
    ):
        state = begin(json.dumps(schema))
        for text in ('{"b":', "12", '"a&b"', '{"b":4}', "12", "{}"):
            fits = accepts(schema, text)
            assert fits == accepts(schema, text)
            assert not fits or is_valid(schema, text)
        assert state.cut([], TOKENIZER.encode("x")) == []


def test_names_that_may_be_are_not_thereby_evaluated() -> None:
    schema = {"unevaluatedProperties": False, "properties": {"a": {}}, "propertyNames": {"enum": ["a", "c"]}}
    assert accepts(schema, '{"a":1}')
    assert not accepts(schema, '{"c":1}')


@pytest.mark.filterwarnings("ignore:Possible")  # Python's own, of the same signs
@pytest.mark.parametrize(
    ("pattern", "accepted", "refused"),
    [
        (r'^[^<>()[\]\\.,;:\s@"]+$', ["ab", "a&b"], ["a[b", "a]b", "a b", "a.b"]),  # as pages check addresses
        ("^[a&&b]$", ["a", "&", "b"], ["c"]),
        ("^[a~~b]$", ["a", "~", "b"], ["c"]),
        ("^[[a]b]$", ["[b]", "ab]"], ["a", "b", "ab"]),
        ("^[[:alpha:]]$", ["a]", ":]"], ["b", "a"]),
        ("^[+--]$", ["+", ",", "-"], ["a"]),
        (r"^\[a&&b]$", ["[a&&b]"], ["a"]),
    ],
)
def test_a_class_has_the_characters_that_stand_in_it(
    pattern: str, accepted: list[str], refused: list[str]
) -> None:
    schema = {"type": "string", "pattern": pattern}
    for text in (*accepted, *refused):
        assert accepts(schema, json.dumps(text)) == (text in accepted), text
        assert is_valid(schema, json.dumps(text)) == (text in accepted), text
