#!/usr/bin/env bash
# outlines-core 0.2.14 leaves the bounds of numbers out: minimum, maximum, exclusiveMinimum, exclusiveMaximum and
# multipleOf of an integer or a number change nothing in the regular expression that it builds, and nothing is raised,
# while bounds of strings and arrays are kept. An engineer who saw minLength work would guess that minimum does, or that
# it is refused. For us: an answer guided by it is to be validated afterwards; flashdraft's llguidance keeps these
# bounds.
#
# Seen (outlines-core 0.2.14, jsonschema 4.26.0, Python 3.11):
#   {'type': 'integer', 'minimum': 5, 'maximum': 10}          99     accepted: True  valid: False
#   {'type': 'integer', 'exclusiveMinimum': 0}                -3     accepted: True  valid: False
#   {'type': 'integer', 'multipleOf': 3}                      10     accepted: True  valid: False
#   {'type': 'number', 'minimum': 0, 'maximum': 1}            7.5    accepted: True  valid: False
#   {'type': 'string', 'minLength': 2}                        "a"    accepted: False valid: False
#   {'type': 'array', 'items': {'type': 'null'}, 'maxItems': 1} [null,null] accepted: False valid: False
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq outlines-core==0.2.14 jsonschema==4.26.0
cat >"$folder/probe.py" <<'PROBE'
import json
import re

import jsonschema
from outlines_core.json_schema import build_regex_from_schema

cases = [
    ({"type": "integer", "minimum": 5, "maximum": 10}, "99", True),
    ({"type": "integer", "exclusiveMinimum": 0}, "-3", True),
    ({"type": "integer", "multipleOf": 3}, "10", True),
    ({"type": "number", "minimum": 0, "maximum": 1}, "7.5", True),
    ({"type": "string", "minLength": 2}, '"a"', False),
    ({"type": "array", "items": {"type": "null"}, "maxItems": 1}, "[null,null]", False),
]
for schema, text, expected in cases:
    accepted = re.fullmatch(build_regex_from_schema(json.dumps(schema)), text) is not None
    valid = jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))
    print(f"{schema!s:57} {text:6} accepted: {accepted!s:5} valid: {valid}")
    assert (accepted, valid) == (expected, False), "it behaves otherwise now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py"
