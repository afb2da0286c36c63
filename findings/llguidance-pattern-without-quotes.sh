#!/usr/bin/env bash
# llguidance 1.9.1: a JSON schema's `pattern` whose class leaves out the quote or the backslash, such as `^[^"]+$`, lets
# them through: "a\"b" is accepted, a text that has a quote. Not so where the class leaves out control characters too.
#
# Seen (llguidance 1.9.1, jsonschema 4.26.0, Python 3.11):
#   ^[^"]+$           "a\"b"   accepted: True   valid: False
#   ^[^\\]+$          "a\\b"   accepted: True   valid: False
#   ^[^x]+$           "axb"    accepted: False  valid: False
#   ^[^"\x00-\x1f]+$  "a\"b"   accepted: False  valid: False
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
    (r'^[^"]+$', 'a"b', True),
    (r"^[^\\]+$", "a\\b", True),
    (r"^[^x]+$", "axb", False),
    (r'^[^"\x00-\x1f]+$', 'a"b', False),
]
for pattern, text, expected in cases:
    schema, said = {"type": "string", "pattern": pattern}, json.dumps(text)
    matcher = llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_json_schema(schema))
    assert not matcher.is_error() and not matcher.get_grammar_warnings()
    data = list(said.encode())
    accepted = matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()
    valid = jsonschema.Draft202012Validator(schema).is_valid(text)
    print(f"{pattern:<17} {said:<8} accepted: {accepted!s:<5}  valid: {valid}")
    assert (accepted, valid) == (expected, False), "it behaves otherwise now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py"
