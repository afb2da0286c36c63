#!/usr/bin/env bash
# datasets 5.2.0 fills the rows of tool calls with each other's keys: Dataset.from_list makes one struct of all rows'
# arguments and of all tools' parameters, and what a row has not comes back as None. A call weather(city) beside a call
# book(days) reads weather(city, days=None) and book(city=None, days), and each tool's schema has the other's parameters
# as null. to_parquet and save_to_disk keep it so for every reader. load_dataset("json") of the very same rows, in the
# same release, keeps them as they are, so an engineer who tried that would guess that from_list does too. Nothing is
# raised; chat templates write the nulls into the prompt. For us: `flashdraft train` leaves such nulls of Parquet and
# Arrow rows out.
#
# Seen (datasets 5.2.0, pyarrow 26.0.1, Python 3.11); the first of two rows, of which the second calls book(days=3):
#   as written            {'city': 'Rome'}                 tool has ['city']
#   load_dataset("json")  {'city': 'Rome'}                 tool has ['city']
#   Dataset.from_list     {'city': 'Rome', 'days': None}   tool has ['city', 'days']
#   to_parquet, pyarrow   {'city': 'Rome', 'days': None}   tool has ['city', 'days']
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq datasets==5.2.0 pyarrow==26.0.1
cat >"$folder/probe.py" <<'PROBE'
import json
import sys
from pathlib import Path

import datasets
import pyarrow.parquet as pq

folder = Path(sys.argv[0]).parent


def row(tool, name, kind, value):
    """A question and the call that answers it, of a tool with one parameter."""
    call = {"type": "function", "function": {"name": tool, "arguments": {name: value}}}
    parameters = {"type": "object", "properties": {name: {"type": kind}}}
    messages = [{"role": "user", "content": "Go."}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    return {"messages": messages, "tools": [{"type": "function", "function": {"name": tool, "parameters": parameters}}]}


def of(first):
    """The arguments of a row's call, and the names of its tool's parameters."""
    call, tool = first["messages"][1]["tool_calls"][0], first["tools"][0]
    return call["function"]["arguments"], list(tool["function"]["parameters"]["properties"])


rows = [row("weather", "city", "string", "Rome"), row("book", "days", "integer", 3)]
lines = folder / "rows.jsonl"
lines.write_text("\n".join(map(json.dumps, rows)))
read = datasets.load_dataset("json", data_files=str(lines), split="train", cache_dir=str(folder))
made = datasets.Dataset.from_list(rows)
made.to_parquet(folder / "rows.parquet")
found = {
    "as written": of(rows[0]),
    'load_dataset("json")': of(read[0]),
    "Dataset.from_list": of(made[0]),
    "to_parquet, pyarrow": of(pq.read_table(folder / "rows.parquet").to_pylist()[0]),
}
for name, (arguments, parameters) in found.items():
    print(f"{name:21} {str(arguments):32} tool has {parameters}")
plain, read, made, stored = found.values()
assert plain == read == ({"city": "Rome"}, ["city"]), "load_dataset reads otherwise now"
assert made == stored == ({"city": "Rome", "days": None}, ["city", "days"]), "from_list keeps rows apart now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py" 2>/dev/null
