#!/usr/bin/env bash
# xgrammar 0.2.8 takes a JSON Schema pattern for the whole text, where JSON Schema searches with it: "^INV-" is a prefix
# there, and here the one text "INV-", "\\d" is one digit and nothing else. No error, no warning. The answer is valid,
# but it is always the shortest: a model asked for an invoice's number can write no number. Property names go the same
# way: with patternProperties {"^x-": ...} the only name is "x-". For us: anchored patterns alone mean the same in both.
#
# Seen (xgrammar 0.2.8, jsonschema 4.26.0, Python 3.11):
#   {'type': 'string', 'pattern': '^INV-'}      "INV-"     accepted: True  valid: True
#   {'type': 'string', 'pattern': '^INV-'}      "INV-7"    accepted: False valid: True
#   {'type': 'string', 'pattern': '\\d'}        "7"        accepted: True  valid: True
#   {'type': 'string', 'pattern': '\\d'}        "room 7"   accepted: False valid: True
#   {'type': 'string', 'pattern': '^INV-.*$'}   "INV-7"    accepted: True  valid: True
#   patternProperties ^x-                       {"x-":1}   accepted: True  valid: True
#   patternProperties ^x-                       {"x-a":1}  accepted: False valid: True
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq \
  jsonschema==4.26.0 apache-tvm-ffi==0.1.15.post2 pydantic==2.14.3 numpy==2.4.6 torch==2.13.0 transformers==5.23.0
"$folder/venv/bin/python" -m pip install -qq --no-deps xgrammar==0.2.8
cat >"$folder/probe.py" <<'PROBE'
import json

import jsonschema
import xgrammar

prefix, digit, anchored = ({"type": "string", "pattern": pattern} for pattern in ("^INV-", "\\d", "^INV-.*$"))
names = {"type": "object", "patternProperties": {"^x-": {"type": "integer"}}}
cases = [
    (prefix, '"INV-"', True),
    (prefix, '"INV-7"', False),
    (digit, '"7"', True),
    (digit, '"room 7"', False),
    (anchored, '"INV-7"', True),
    (names, '{"x-":1}', True),
    (names, '{"x-a":1}', False),
]
info = xgrammar.TokenizerInfo([chr(i) for i in range(32, 127)] + ["</s>"], stop_token_ids=[95])
compiler = xgrammar.GrammarCompiler(info)
for schema, text, expected in cases:
    name = "patternProperties ^x-" if schema is names else str(schema)
    compiled = compiler.compile_json_schema(json.dumps(schema), strict_mode=False)
    matcher = xgrammar.GrammarMatcher(compiled)
    accepted = matcher.accept_string(text) and matcher.accept_token(95)
    valid = jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))
    print(f"{name:43} {text:10} accepted: {accepted!s:5} valid: {valid}")
    assert (accepted, valid) == (expected, True), "it behaves otherwise now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py"
