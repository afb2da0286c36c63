#!/usr/bin/env bash
# xgrammar 0.2.8 forgets a required property that stands not under properties: {"properties": {"a": ...}, "required":
# ["z"]} lets {"a":1} through, and, in its default strict mode, refuses {"a":1,"z":2}, so that no valid answer is left.
# JSON Schema asks for no declaration: such schemas come out of hand-written tools and of allOf that was merged. Nothing
# is raised. For us: declare what is required, or take llguidance, as flashdraft does.
#
# Seen (xgrammar 0.2.8, jsonschema 4.26.0, Python 3.11):
#   strict      {"a":1}        accepted: True  valid: False
#   strict      {"a":1,"z":2}  accepted: False valid: True
#   not strict  {"a":1}        accepted: True  valid: False
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

schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["z"]}
cases = [(True, '{"a":1}', True, False), (True, '{"a":1,"z":2}', False, True), (False, '{"a":1}', True, False)]
info = xgrammar.TokenizerInfo([chr(i) for i in range(32, 127)] + ["</s>"], stop_token_ids=[95])
compiler = xgrammar.GrammarCompiler(info)
for strict, text, *expected in cases:
    compiled = compiler.compile_json_schema(json.dumps(schema), strict_mode=strict)
    matcher = xgrammar.GrammarMatcher(compiled)
    accepted = matcher.accept_string(text) and matcher.accept_token(95)
    valid = jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))
    print(f"{'strict' if strict else 'not strict':11} {text:14} accepted: {accepted!s:5} valid: {valid}")
    assert [accepted, valid] == expected, "it behaves otherwise now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py"
