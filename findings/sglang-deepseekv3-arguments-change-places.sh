#!/usr/bin/env bash
# SGLang 0.5.23's streaming parser of DeepSeek V3's calls (--tool-call-parser deepseekv3) gives a call the arguments of
# the next one when the end of a call and the beginning of the next come in one piece: here weather gets book's
# arguments, and there is no second call. Both calls stand in the answer, token by token both come, and so they do from
# the whole answer. Multi-token prediction, DeepSeek's own, sends several tokens a piece. Nothing is raised: a tool runs
# with wrong arguments. For us: two calls in one answer of SGLang with a drafter are not to be trusted while streaming.
#
# Seen (sglang 0.5.23, Python 3.11):
#   a token a piece    [('weather', {'city': 'Rome', 'days': 3}), ('book', {'city': 'Oslo'})]
#   whole              [('weather', {'city': 'Rome', 'days': 3}), ('book', {'city': 'Oslo'})]
#   rounds of tokens   [('weather', {'city': 'Oslo'})]
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


begin, end, sep = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
first = [begin, "function", sep, "weather", "\n", "```", "json", "\n", '{"', "city", '":', ' "', "Rome", '",']
first += [' "', "days", '":', " ", "3", "}", "\n", "```", end]
second = [begin, "function", sep, "book", "\n", "```", "json", "\n", '{"', "city", '":', ' "', "Oslo", '"}']
second += ["\n", "```", end]
tokens = ["<｜tool▁calls▁begin｜>", *first, "\n", *second, "<｜tool▁calls▁end｜>"]
rounds = ["".join(tokens[i : i + 11]) for i in range(0, len(tokens), 11)]
found = {name: streamed(FunctionCallParser(tools, "deepseekv3"), pieces)[1]
         for name, pieces in (("a token a piece", tokens), ("rounds of tokens", rounds))}
_, items = FunctionCallParser(tools, "deepseekv3").parse_non_stream("".join(tokens))
found["whole"] = [(item.name, item.parameters) for item in items]
found = {name: [(called, json.loads(arguments)) for called, arguments in calls] for name, calls in found.items()}
for name in ("a token a piece", "whole", "rounds of tokens"):
    print(f"{name:18} {found[name]}")
both = [("weather", {"city": "Rome", "days": 3}), ("book", {"city": "Oslo"})]
assert found["a token a piece"] == found["whole"] == both, "it behaves otherwise now"
assert found["rounds of tokens"] == [("weather", {"city": "Oslo"})], "rounds are read otherwise now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py" 2>/dev/null
