#!/usr/bin/env bash
# compressed-tensors 0.20.1 changes weights that already lie on its own grid when they are quantized again: symmetric
# integers get the scale of half the span of codes (7.5 for 4 bits, 127.5 for 8), so a row from -7 to 7 loses 7% of its
# largest weight, and rounding what it gave once more gives other weights. FP8 and FP4 are not changed by a second
# rounding; gguf's Q8_0, which takes 127, is not either. An engineer would guess that integers -7 to 7 fit into 4 bits as
# they are: weights after QAT, or a checkpoint that is read back and written again, do not come through. Nothing is raised or
# logged. For us: codes are kept as they are stored, and are never rounded again from their weights.
#
# Seen (compressed-tensors 0.20.1, torch 2.13.0 on a CPU, Python 3.11); min-max scale of the row, then its rounding:
#   int4, -7 to 7      scale 0.9333  largest 7.00 becomes 6.53  a second time changes 0.50
#   int8, -127 to 127  scale 0.9961  largest 127.00 becomes 126.50  a second time changes 0.50
#   float8, noise      scale 0.0054  largest 2.44 becomes 2.44  a second time changes 0.00
#   float4, its grid   scale 1.0000  largest 6.00 becomes 6.00  a second time changes 0.00
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq torch==2.13.0 compressed-tensors==0.20.1 transformers==5.23.0 numpy==2.4.6
cat >"$folder/probe.py" <<'PROBE'
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams


def rounded(row, args):
    """The row's scale from its least and largest weight, and the weights after rounding."""
    scale, zero = calculate_qparams(row.amin(1, keepdim=True), row.amax(1, keepdim=True), args)
    return scale.item(), fake_quantize(row, scale, zero, args)


noise = torch.randn(1, 64, generator=torch.Generator().manual_seed(3))
rows = {
    "int4, -7 to 7": (torch.arange(-7.0, 8.0)[None], 4, "int"),
    "int8, -127 to 127": (torch.arange(-127.0, 128.0)[None], 8, "int"),
    "float8, noise": (noise, 8, "float"),
    "float4, its grid": (torch.tensor([[-6.0, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6]]), 4, "float"),
}
for name, (row, bits, kind) in rows.items():
    args = QuantizationArgs(num_bits=bits, type=kind, symmetric=True, strategy="channel")
    scale, once = rounded(row, args)
    _, twice = rounded(once, args)
    first, again = (once - row).abs().max().item(), (twice - once).abs().max().item()
    largest = f"largest {row.max():.2f} becomes {once.max():.2f}"
    print(f"{name:18} scale {scale:.4f}  {largest}  a second time changes {again:.2f}")
    if kind == "int":
        assert scale < 1 and first > 0.4 and again > 0.4, "integers keep their grid now"
    else:
        assert again < 1e-6, "floats are changed by a second rounding"
PROBE
TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" "$folder/probe.py" 2>/dev/null
