"""An argument that was written as bare text gets the JSON type that the whole of its schema has for it."""

import json
from typing import Any

import jsonschema
import pytest

from flashdraft.server.argument_types import ArgumentTypes

TEXT, WHOLE, NOTHING = {"type": "string"}, {"type": "integer"}, {"type": "null"}
DEFS = {
    "text": TEXT,
    "maybe": {"anyOf": [{"$ref": "#/$defs/text"}, NOTHING]},
    "loop": {"$ref": "#/$defs/loop"},
}
ZIP = {"type": "string", "pattern": "^[0-9]{5}$"}

CASES: list[tuple[Any, str, Any]] = [
    (TEXT, "1.10", "1.10"),
    ({"anyOf": [TEXT, NOTHING]}, "1.10", "1.10"),
    ({"anyOf": [TEXT, NOTHING]}, "null", None),
    ({"anyOf": [TEXT, NOTHING]}, "None", None),
    ({"oneOf": [ZIP, NOTHING]}, "20010", "20010"),
    ({"type": ["string", "null"]}, "true", "true"),
    ({"type": "string", "nullable": True}, "null", None),
    ({"$ref": "#/$defs/text"}, "12345", "12345"),
    ({"$ref": "#/$defs/maybe"}, "12345", "12345"),
    ({"$ref": "#/$defs/maybe"}, "None", None),
    ({"$ref": "#/$defs/loop"}, "7", 7),
    ({"$ref": "#/$defs/gone"}, "x", "x"),
    ({"allOf": [{"$ref": "#/$defs/text"}, {"minLength": 1}]}, "5", "5"),
    ({"enum": ["1", "2"]}, "1", "1"),
    ({"enum": ["1", "2"]}, "\n1 ", "1"),
    ({"enum": ["1", 2, None]}, "2", 2),
    ({"enum": ["1", 2, None]}, "1", "1"),
    ({"const": "true"}, "true", "true"),
    ({"pattern": "^a"}, "12", "12"),
    ({"format": "date"}, "2024", "2024"),
    ({"type": "boolean"}, "True", True),
    ({"type": "boolean"}, "FALSE", False),
    (WHOLE, "3", 3),
    (WHOLE, "3.0", 3),
    ({"type": "number"}, "1e3", 1000),
    ({"type": "number"}, "2", 2),
    (WHOLE, "three", "three"),
    (NOTHING, "None", None),
    ({"anyOf": [WHOLE, TEXT]}, "5", 5),
    ({"anyOf": [{"type": "integer", "maximum": 9}, TEXT]}, "12", "12"),
    ({"anyOf": [WHOLE, TEXT]}, "5a", "5a"),
    ({"type": "object"}, "{'a': 1, 'b': [True, None]}", {"a": 1, "b": [True, None]}),
    ({"properties": {"a": {}}}, '{"a": "x"}', {"a": "x"}),
    ({"type": "array", "items": TEXT}, "('a', 'b')", ["a", "b"]),
    ({"anyOf": [{"type": "array", "items": TEXT}, TEXT]}, '["a"]', ["a"]),
    ({"anyOf": [{"type": "array", "items": TEXT}, TEXT]}, "[1]", "[1]"),
    ({"type": "array"}, "__import__('os')", "__import__('os')"),
    ({}, "True", True),
    ({}, "plain", "plain"),
    (True, '{"a": 1}', {"a": 1}),
    ({}, "NaN", "NaN"),
    ({"type": "number"}, "9" * 5000, "9" * 5000),
    ({"type": "number"}, "1e400", "1e400"),
    ({"type": "array"}, "[1e999, 1]", ["1e999", 1]),
    ({"type": "array"}, '["a\nb"]', ["a\nb"]),
    ({"type": "object"}, '"{\\"a\\": 1}"', {"a": 1}),
    ({"enum": ["none", "some", None]}, "none", "none"),
    ({"enum": ["none", None]}, "None", None),
    ({"type": ["string", "null"]}, "NULL", "NULL"),
    (WHOLE, "007", 7),
    (WHOLE, "+5", 5),
    ({"type": "number"}, ".5", 0.5),
    ({"type": ["string", "integer"]}, "007", "007"),
]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_a_text_gets_its_type_from_the_whole_schema(case: tuple[Any, str, Any]) -> None:
    schema, text, expected = case
    root = {"type": "object", "properties": {"x": schema}, "$defs": DEFS}
    types = ArgumentTypes(root)
    value = json.loads(types.typed(text, types.named("x")))
    assert (value, type(value)) == (expected, type(expected))


def test_a_schema_that_branches_without_end_takes_no_time() -> None:
    defs: dict[str, Any] = {"d300": TEXT}
    for i in range(300):
        next_one = {"$ref": f"#/$defs/d{i + 1}"}
        defs[f"d{i}"] = {"anyOf": [next_one, next_one], "allOf": [next_one, next_one]}
    types = ArgumentTypes({"$defs": defs})
    assert types.typed("7", {"$ref": "#/$defs/d0"}) == "7"
    assert types.typed("7", {"$ref": "#/$defs/d290"}) == '"7"'


def test_what_jsonschema_calls_valid_is_kept() -> None:
    for schema, text, expected in CASES:
        if isinstance(expected, str) and expected == text:
            continue
        if isinstance(schema, dict) and "nullable" not in schema and "$ref" not in schema:
            jsonschema.validate(expected, schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": 5},
        {"type": "any"},
        {"allOf": 5},
        {"anyOf": 3},
        {"oneOf": "x"},
        {"enum": 3},
        {"$ref": 5},
        {"items": 3},
        {"properties": [1]},
        {"anyOf": ["x", 1]},
        {"maxLength": "1"},
    ],
)
def test_what_is_no_schema_allows_anything(schema: Any) -> None:
    types = ArgumentTypes({"type": "object", "properties": {"x": schema}})
    for text, value in (("x", "x"), ("[1]", [1]), ('{"a": 1}', {"a": 1})):
        assert json.loads(types.typed(text, types.named("x"))) == value
    assert ArgumentTypes({"properties": [1], "required": True, "allOf": 3}).named("x") is True


def test_half_a_surrogate_pair_can_be_sent() -> None:
    assert ArgumentTypes({}).typed('["\\ud800é"]', {}).encode() == '["\\ud800é"]'.encode()


V_TEXT, V_NULL = {"properties": {"v": TEXT}}, {"properties": {"v": NOTHING}}
V_AUTO, V_WHOLE = {"properties": {"v": {"const": "auto"}}}, {"properties": {"v": WHOLE}}


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"additionalProperties": TEXT}, "007", "007"),
        ({"additionalProperties": False}, "007", "007"),
        ({"patternProperties": {"^v": TEXT}}, "12345", "12345"),
        ({"patternProperties": {"^v": TEXT, "w": WHOLE}, "additionalProperties": False}, "12345", 12345),
        ({"allOf": [V_TEXT]}, "12345", "12345"),
        ({"$defs": {"p": V_TEXT}, "allOf": [{"$ref": "#/$defs/p"}]}, "1", "1"),
        ({"anyOf": [V_TEXT, V_NULL]}, "1.10", "1.10"),
        ({"oneOf": [V_AUTO, V_WHOLE]}, "3", 3),
        ({"properties": {"v": {"oneOf": [WHOLE, {"const": "auto"}]}}}, "auto", "auto"),
        ({"properties": {"v": {"prefixItems": [{}, {}]}}}, "(1, 'a')", [1, "a"]),
        ({"properties": {"v": {"format": "date"}}}, "2024", "2024"),
        ({"allOf": [{"$ref": "#"}]}, "5", 5),
    ],
)
def test_an_argument_has_the_type_of_wherever_it_is_declared(schema: Any, text: str, value: Any) -> None:
    types = ArgumentTypes(schema)
    assert json.loads(types.typed(text, types.named("v"))) == value
