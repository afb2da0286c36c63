#!/usr/bin/env bash
# mlx 0.32.4's mx.load reads a GGUF file up to the first tensor of a type that it has no code for, and returns what
# came before as if it were the file. MXFP4 is such a type: the experts of every gpt-oss GGUF have it, and lie between
# the other weights; TQ1_0 and TQ2_0 are others. What stands behind it is missing too, also where its type is well
# known. For Q5_0, which it does know and cannot unpack, it raises. An engineer would guess that a reader of weights
# returns all of them or raises. Nothing is raised or logged; the metadata is whole, and does not tell how many tensors
# there are. For us: a GGUF goes to MLX by way of safetensors (`flashdraft convert --to hf`), never by mx.load.
#
# Seen (mlx 0.32.4 on a CPU, gguf 0.19.0, numpy 2.4.6, Python 3.11); tensors of three that mx.load returns:
#   F32, F16, Q8_0    first second third
#   F32, MXFP4, Q8_0  first
#   F32, TQ2_0, Q8_0  first
#   MXFP4, F32, Q8_0  none
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq mlx==0.32.4 mlx-cpu==0.32.4 gguf==0.19.0 numpy==2.4.6
cat >"$folder/probe.py" <<'PROBE'
import sys

import gguf
import mlx.core as mx
import numpy as np
from gguf import GGMLQuantizationType, quants

path = sys.argv[1] + "/model.gguf"
weight = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
places = ("first", "second", "third")
for kinds, expected in (
    (("F32", "F16", "Q8_0"), ("first", "second", "third")),
    (("F32", "MXFP4", "Q8_0"), ("first",)),
    (("F32", "TQ2_0", "Q8_0"), ("first",)),
    (("MXFP4", "F32", "Q8_0"), ()),
):
    writer = gguf.GGUFWriter(path, "gpt-oss")
    for place, kind in zip(places, kinds):
        kind = GGMLQuantizationType[kind]
        writer.add_tensor(f"{place}.weight", quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert len(gguf.GGUFReader(path).tensors) == 3, "the file has not three tensors"
    read = mx.load(path)
    found = tuple(place for place in places if f"{place}.weight" in read)
    print(f"{', '.join(kinds):17} {' '.join(found) or 'none'}")
    assert found == expected, "it behaves otherwise now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py" "$folder"
