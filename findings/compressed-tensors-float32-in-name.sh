#!/usr/bin/env bash
# compressed-tensors 0.20.1: dequantize(..., dtype=torch.float32) gives a float32 tensor whose values were rounded to the
# type of the scales before, bfloat16 in most checkpoints. Neighbouring codes of one group, which a scale of 1.0078125
# keeps 1.0078125 apart, come out between 1 and 1.03125 apart: a 4-bit checkpoint "in float32" lies on no grid of 16 values,
# and whoever finds codes again from its floats, or compares with code times scale in float32, is off by up to a 32nd of
# a step. With scales in float32 the same call is exact.
#
# Seen (compressed-tensors 0.20.1, torch 2.13.0 on a CPU, transformers 5.23.0, Python 3.11):
#   scales in bfloat16: torch.float32, steps 1.0 to 1.03125
#   scales in float32: torch.float32, steps 1.0078125 to 1.0078125
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq torch==2.13.0 compressed-tensors==0.20.1 transformers==5.23.0 numpy==2.4.6
cat >"$folder/probe.py" <<'PROBE'
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize

how = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=16, symmetric=True)
codes = torch.arange(-8, 8, dtype=torch.int8)[None]
found = {}
for kind in (torch.bfloat16, torch.float32):
    scale = torch.tensor([[1.0078125]], dtype=kind)  # exact in either
    weight = dequantize(codes, scale, args=how, dtype=torch.float32)
    steps = found[kind] = weight.diff()[0]
    name = str(kind).removeprefix("torch.")
    print(f"scales in {name}: {weight.dtype}, steps {steps.min().item()} to {steps.max().item()}")
assert (found[torch.float32] == 1.0078125).all()
assert found[torch.bfloat16].min() == 1.0 and found[torch.bfloat16].max() == 1.03125, "float32 is computed in float32 now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py" 2>/dev/null
