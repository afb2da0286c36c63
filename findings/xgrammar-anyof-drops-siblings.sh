#!/usr/bin/env bash
# xgrammar 0.2.8 takes anyOf beside other keywords as if it stood alone, and a subschema without a type as any JSON:
# {"type": "object", "properties": ..., "anyOf": [{"required": ["a"]}, {"required": ["b"]}]} lets any value through, and
# an integer with allOf beside it takes a text. Bindings raise nothing; a request for such a schema looks constrained.
#
# Seen (xgrammar 0.2.8, jsonschema 4.26.0, Python 3.11):
#   any of two required   5          accepted: True  valid: False
#   any of two required   {"z":1}    accepted: True  valid: False
#   bounds in allOf       "x"        accepted: True  valid: False
#   the same without them "x"        accepted: False valid: False
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq jsonschema==4.26.0 apache-tvm-ffi==0.1.15.post2 pydantic==2.14.3 numpy==2.4.6 torch==2.13.0 transformers==5.23.0
"$folder/venv/bin/python" -m pip install -qq --no-deps xgrammar==0.2.8
cat >"$folder/probe.py" <<'PROBE'
import json

import jsonschema
import xgrammar

required = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
required["anyOf"] = [{"required": ["a"]}, {"required": ["b"]}]
cases = [
    ("any of two required", required, "5", True),
    ("any of two required", required, '{"z":1}', True),
    ("bounds in allOf", {"type": "integer", "maximum": 9, "allOf": [{"minimum": 5}]}, '"x"', True),
    ("the same without them", {"type": "integer", "maximum": 9}, '"x"', False),
]
info = xgrammar.TokenizerInfo([chr(i) for i in range(32, 127)] + ["</s>"], stop_token_ids=[95])
compiler = xgrammar.GrammarCompiler(info)
for name, schema, text, expected in cases:
    matcher = xgrammar.GrammarMatcher(compiler.compile_json_schema(json.dumps(schema)))
    accepted = matcher.accept_string(text) and matcher.accept_token(95)
    valid = jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))
    print(f"{name:22}{text:10} accepted: {accepted!s:5} valid: {valid}")
    assert (accepted, valid) == (expected, False), "it behaves otherwise now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py"
