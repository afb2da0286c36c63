#!/usr/bin/env bash
# datasets 5.2.0 gives a column of objects with unlike keys a type of its own, Json, and stores each as a text of Arrow's
# extension arrow.json. load_dataset("json") does that to chats with tool calls, and to_parquet and save_to_disk keep it:
# pyarrow, which knows the extension by name, gives messages as texts of JSON, not as objects. In one file messages are a
# list of texts, in the next, whose chats have no calls, a list of structs. Nothing is raised or logged; datasets itself
# reads both as objects, so an engineer would guess that the file has them. For us: `flashdraft train` reads both.
#
# Seen (datasets 5.2.0, pyarrow 26.0.1, Python 3.11); the first message of a row, written by to_parquet:
#   without calls  datasets {'role': 'user', 'content': 'Go.'}  pyarrow {'role': 'user', 'content': 'Go.'}
#   with calls     datasets {'role': 'user', 'content': 'Go.'}  pyarrow '{"role":"user","content":"Go."}'
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
ASKED = {"role": "user", "content": "Go."}


def answered(*functions):
    """A question and what is said to it: the calls of ``functions``, or words."""
    said = {"role": "assistant", "content": "Gone."}
    if functions:
        said["tool_calls"] = [{"type": "function", "function": function} for function in functions]
    return {"messages": [ASKED, said]}


def stored(name, rows):
    """The first message of rows that datasets read from JSON lines and wrote: as it reads it, as pyarrow does."""
    lines, table = folder / f"{name}.jsonl", folder / f"{name}.parquet"
    lines.write_text("\n".join(map(json.dumps, rows)))
    read = datasets.load_dataset("json", data_files=str(lines), split="train", cache_dir=str(folder / name))
    read.to_parquet(table)
    again = datasets.load_dataset("parquet", data_files=str(table), split="train", cache_dir=str(folder / name))
    return again[0]["messages"][0], pq.read_table(table).to_pylist()[0]["messages"][0]


weather, book = {"name": "weather", "arguments": {"city": "Rome"}}, {"name": "book", "arguments": {"days": 3}}
plain = stored("plain", [answered(), answered()])
called = stored("called", [answered(weather), answered(book)])
for name, (theirs, arrows) in {"without calls": plain, "with calls": called}.items():
    print(f"{name:14} datasets {theirs}  pyarrow {arrows!r}")
assert plain == (ASKED, ASKED), "plain chats are stored otherwise now"
assert called[0] == ASKED and isinstance(called[1], str), "chats with calls are stored as objects now"
assert json.loads(called[1]) == ASKED, "chats with calls are stored otherwise now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py" 2>/dev/null
