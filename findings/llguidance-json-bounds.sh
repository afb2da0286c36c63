#!/usr/bin/env bash
# llguidance 1.9.1 lets two kinds of invalid JSON through, without an error or a warning:
# - a whole number that an exclusive bound excludes, where the other bound is less than 1 away:
#   {"exclusiveMinimum": 0, "maximum": 0.5} takes 0, {"minimum": -3.5, "exclusiveMaximum": -3} takes -3;
# - fewer properties than minProperties asks for, where one undeclared name stands several times:
#   {"minProperties": 2} takes {"a": 1, "a": 2}, which every parser reads as one property.
#
# Seen (llguidance 1.9.1, jsonschema 4.26.0, Python 3.11):
#   {'type': 'number', 'exclusiveMinimum': 0, 'maximum': 0.5}  0  accepted: True  valid: False
#   {'type': 'number', 'minimum': -3.5, 'exclusiveMaximum': -3}  -3  accepted: True  valid: False
#   {'type': 'object', 'minProperties': 2}  {"a":1,"a":2}  accepted: True  valid: False
#   {'type': 'number', 'exclusiveMinimum': 0, 'maximum': 2}  0  accepted: False  valid: False
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq llguidance==1.9.1 jsonschema==4.26.0
cat >"$folder/probe.py" <<'PROBE'
import json

import jsonschema
import llguidance
from llguidance._tokenizer import TokenizerWrapper


class Bytes:
    """One token a byte, and the end."""

    tokens = [bytes([i]) for i in range(256)] + [b"\xff[end]"]
    eos_token_id, bos_token_id = 256, None

    def __call__(self, text):
        return list(text.encode() if isinstance(text, str) else text)


tokenizer = llguidance.LLTokenizer(TokenizerWrapper(Bytes()))
cases = [
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, "0", True),
    ({"type": "number", "minimum": -3.5, "exclusiveMaximum": -3}, "-3", True),
    ({"type": "object", "minProperties": 2}, '{"a":1,"a":2}', True),
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 2}, "0", False),
]
for schema, text, expected in cases:
    matcher = llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_json_schema(schema))
    assert not matcher.is_error() and not matcher.get_grammar_warnings()
    data = list(text.encode())
    accepted = matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()
    valid = jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))
    print(f"{schema}  {text}  accepted: {accepted}  valid: {valid}")
    assert (accepted, valid) == (expected, False), "it behaves otherwise now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py"
