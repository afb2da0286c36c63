#!/usr/bin/env bash
# safetensors 0.8.0 writes a numpy array that is not C-contiguous in the order of its memory, under its own shape:
# safetensors.numpy.save and save_file of a transposed matrix, or of some of its columns, give a good file with the
# weights at other places. The docstring asks for contiguous tensors; safetensors.torch raises a ValueError for others,
# safetensors 0.7.0 wrote them right, and converters transpose (GPT-2's Conv1D, Flax and GGUF layouts). An engineer would
# guess one of the two. Nothing is raised or logged. For us: flashdraft writes by safetensors.torch alone; who writes a
# drafter by numpy calls numpy.ascontiguousarray first.
#
# Seen (numpy 2.4.6, Python 3.11); what load gives for what was saved:
#   safetensors 0.7.0  transposed [[0, 3], [1, 4], [2, 5]] as [[0, 3], [1, 4], [2, 5]]
#   safetensors 0.7.0  contiguous [[0, 1, 2], [3, 4, 5]] as [[0, 1, 2], [3, 4, 5]]
#   safetensors 0.8.0  transposed [[0, 3], [1, 4], [2, 5]] as [[0, 1], [2, 3], [4, 5]]
#   safetensors 0.8.0  contiguous [[0, 1, 2], [3, 4, 5]] as [[0, 1, 2], [3, 4, 5]]
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --no-deps numpy==2.4.6
cat >"$folder/probe.py" <<'PROBE'
import sys

import numpy
import safetensors
from safetensors.numpy import load, save

right = {}
matrix = numpy.arange(6).reshape(2, 3)
for name, saved in (("transposed", matrix.T), ("contiguous", matrix)):
    loaded = load(save({"weight": saved}))["weight"]
    print(f"safetensors {safetensors.__version__}  {name} {saved.tolist()} as {loaded.tolist()}")
    right[name] = bool((loaded == saved).all())
assert right == {"transposed": sys.argv[1] == "right", "contiguous": True}, "transposed arrays are written otherwise"
PROBE
for version in 0.7.0:right 0.8.0:wrong; do
  "$folder/venv/bin/python" -m pip install -qq --no-deps "safetensors==${version%:*}"
  "$folder/venv/bin/python" "$folder/probe.py" "${version#*:}"
done
