#!/usr/bin/env bash
# SGLang 0.5.23's streaming parser of Mistral's calls (--tool-call-parser mistral) knows one call of the list that the
# models write, [TOOL_CALLS] [{...}, {...}]: the second comes to the client as text, JSON and comma, even token by
# token. The whole answer gives both. An engineer who tried two calls without streaming would guess that streaming does
# them too. For us: a client of streamed answers misses calls that the same client without streaming runs.
#
# Seen (sglang 0.5.23, Python 3.11):
#   whole     text ''  calls [('weather', {'city': 'Rome'}), ('book', {'city': 'Oslo'})]
#   streamed  text ', {"name": "book", "arguments": {"city": "Oslo"}}'  calls [('weather', {'city': 'Rome'})]
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq \
  torch==2.13.0 transformers==5.23.0 numpy==2.4.6 Jinja2==3.1.6 aiohttp==3.14.5 dill==0.4.1 ipython==9.18.1 \
  msgspec==0.23.0 openai==3.57.0 orjson==3.13.0 partial-json-parser==0.2.1.1.post7 pillow==13.0.0 psutil==7.2.2 \
  pybase64==1.5.1 pydantic==2.14.4 pyzmq==27.3.0 requests==2.34.2 setuptools==84.2.1 starlette==1.10.0 \
  apache-tvm-ffi==0.1.15.post2 accelerate==1.15.0 sentencepiece==0.2.3 tiktoken==0.14.0 protobuf==7.36.2
"$folder/venv/bin/python" -m pip install -qq --no-deps sglang==0.5.23 triton==3.9.0 xgrammar==0.2.8
cat >"$folder/probe.py" <<'PROBE'
import json

from sglang.srt.entrypoints.openai.protocol import Function, Tool
from sglang.srt.function_call.function_call_parser import FunctionCallParser

fields = {"city": {"type": "string"}, "days": {"type": "integer"}}
schema = {"type": "object", "properties": fields}
tools = [Tool(type="function", function=Function(name=name, parameters=schema)) for name in ("weather", "book")]


def streamed(parser, pieces):
    """Text and calls, (name, arguments), of an answer that comes in pieces."""
    text, calls = "", {}
    for piece in pieces:
        said, items = FunctionCallParser.parse_stream_chunk(parser, piece)
        text += said or ""
        for item in items:
            name, arguments = calls.get(item.tool_index, (None, ""))
            calls[item.tool_index] = name or item.name, arguments + (item.parameters or "")
    return text, [calls[index] for index in sorted(calls)]


calls = [{"name": "weather", "arguments": {"city": "Rome"}}, {"name": "book", "arguments": {"city": "Oslo"}}]
answer = "[TOOL_CALLS] " + json.dumps(calls)
text, items = FunctionCallParser(tools, "mistral").parse_non_stream(answer)
whole = text, [(item.name, item.parameters) for item in items]
pieces = ["[TOOL_CALLS]", *answer.removeprefix("[TOOL_CALLS]")]  # the special token, then a character a piece
found = {"whole": whole, "streamed": streamed(FunctionCallParser(tools, "mistral"), pieces)}
found = {name: (text, [(called, json.loads(told)) for called, told in calls]) for name, (text, calls) in found.items()}
for name, (text, calls) in found.items():
    print(f"{name:9} text {text!r}  calls {calls}")
both = [("weather", {"city": "Rome"}), ("book", {"city": "Oslo"})]
assert found["whole"] == ("", both), "whole answers are read otherwise now"
assert found["streamed"][1] == both[:1] and '"name": "book"' in found["streamed"][0], "streams are read otherwise now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py" 2>/dev/null
