#!/usr/bin/env bash
# gguf 0.19.0 (llama.cpp's Python package) writes no key for an empty list or text: add_array(key, []), add_string(key,
# "") and what calls them, add_token_merges([]) or add_chat_template(""), return without a word, though the format has
# arrays and texts of length 0; add_key_value(key, "", STRING) keeps it. A reader that tells "none" from "unknown" by
# the key's presence gets the other answer. For us: what may be empty is read with a default, never by file.fields[key].
#
# Seen (gguf 0.19.0, numpy 2.4.6, Python 3.11):
#   add_array [1, 2]        kept [1, 2]
#   add_array []            no such key
#   add_token_merges []     no such key
#   add_string ""           no such key
#   add_key_value "" STRING kept ''
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq gguf==0.19.0 numpy==2.4.6
cat >"$folder/probe.py" <<'PROBE'
import tempfile

import gguf

MISSING = object()
with tempfile.TemporaryDirectory() as folder:
    path = f"{folder}/model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("x.two", [1, 2])
    writer.add_array("x.none", [])
    writer.add_token_merges([])
    writer.add_string("x.text", "")
    writer.add_key_value("x.value", "", gguf.GGUFValueType.STRING)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    fields = gguf.GGUFReader(path).fields
    found = {}
    for call, key in [
        ("add_array [1, 2]", "x.two"),
        ("add_array []", "x.none"),
        ("add_token_merges []", "tokenizer.ggml.merges"),
        ('add_string ""', "x.text"),
        ('add_key_value "" STRING', "x.value"),
    ]:
        found[key] = fields[key].contents() if key in fields else MISSING
        print(f"{call:23}", "no such key" if found[key] is MISSING else f"kept {found[key]!r}")
assert (found["x.two"], found["x.value"]) == ([1, 2], ""), "it behaves otherwise now"
dropped = (found[key] is MISSING for key in ("x.none", "tokenizer.ggml.merges", "x.text"))
assert all(dropped), "empty values are written now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py"
