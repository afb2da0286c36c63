#!/usr/bin/env bash
# outlines-core 0.2.14 pastes a string's pattern and a property's name into its regular expression between two quotes,
# as they are. JSON Schema's pattern says what the decoded text holds; here "." and "[^a]" take a bare quote or
# backslash, "|" splits the quotes from each other, and a name with a quote in it is not escaped. What it lets through
# is then not JSON at all. build_regex_from_schema and Index raise nothing. For us: constrain by llguidance, as
# flashdraft does, or escape.
#
# Seen (outlines-core 0.2.14, Python 3.11):
#   {'type': 'string', 'pattern': '^.$'}          """         accepted: True  JSON: False
#   {'type': 'string', 'pattern': '^[^a]$'}       "\"         accepted: True  JSON: False
#   {'type': 'string', 'pattern': '^yes|no$'}     "yes        accepted: True  JSON: False
#   {'type': 'string', 'pattern': '^yes|no$'}     "yes"       accepted: False JSON: True
#   an object whose property is named a"b         {"a"b":1}   accepted: True  JSON: False
#   an object whose property is named a"b         {"a\"b":1}  accepted: False JSON: True
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq outlines-core==0.2.14
cat >"$folder/probe.py" <<'PROBE'
import json

from outlines_core import Guide, Index, Vocabulary
from outlines_core.json_schema import build_regex_from_schema

END = 95
vocabulary = Vocabulary(END, {chr(32 + i): [i] for i in range(95)})  # a token for each printable character


def accepts(schema, text):
    """Whether the guide of ``schema`` takes ``text`` and may end there."""
    guide = Guide(Index(build_regex_from_schema(json.dumps(schema)), vocabulary))
    for token in (ord(character) - 32 for character in text):
        if token not in guide.get_tokens():
            return False
        guide.advance(token, return_tokens=False)
    return END in guide.get_tokens() or guide.is_finished()


def is_json(text):
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


dot, but_a, either = ({"type": "string", "pattern": pattern} for pattern in ("^.$", "^[^a]$", "^yes|no$"))
named = {"type": "object", "properties": {'a"b': {"type": "integer"}}, "required": ['a"b']}
cases = [
    (dot, '"""', True),
    (but_a, '"\\"', True),
    (either, '"yes', True),
    (either, '"yes"', False),
    (named, '{"a"b":1}', True),
    (named, '{"a\\"b":1}', False),
]
for schema, text, expected in cases:
    name = "an object whose property is named a\"b" if schema is named else str(schema)
    accepted = accepts(schema, text)
    print(f"{name:45} {text:11} accepted: {accepted!s:5} JSON: {is_json(text)}")
    assert accepted == expected and is_json(text) != expected, "it behaves otherwise now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py"
