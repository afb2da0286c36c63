#!/usr/bin/env bash
# Triton 3.6.0 lets the width of a load decide in which order tl.dot sums. On mma.sync (here 16 rows, so on an H200 too) a
# thread takes as many neighbouring inputs as fit 32 bits of what was loaded, and twice as many behind tl.join: two of
# bfloat16 from memory, four of values made of joined halves of 16-bit words, eight of bytes. The same bfloat16 values,
# so made of codes, are summed in another order than the floats, and a few results in 100,000 have another last bit.
# For us: weights that stay in codes had other bits than the same weights as floats, now and then. An inline assembly
# that may not be moved (is_pure=False) before tl.dot hides the load, and then the order is that of floats.
#
# Seen (triton 3.6.0, compiled for sm_90, no GPU needed):
#   bfloat16 from memory   neighbouring inputs of a thread: 2
#   codes of 16-bit words  neighbouring inputs of a thread: 4
#   codes of bytes         neighbouring inputs of a thread: 8
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq triton==3.6.0
cat >"$folder/probe.py" <<'PROBE'
import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def product(x, weight, out, kind: tl.constexpr):
    row, inner, column = tl.arange(0, 16), tl.arange(0, 64), tl.arange(0, 32)
    if kind == "floats":
        values = tl.load(weight + inner[:, None] + column[None, :] * 64)
    else:  # two codes of one loaded word
        word = tl.load(weight + tl.arange(0, 32)[None, :] + column[:, None] * 32)
        values = tl.join((word & 15).to(tl.bfloat16), ((word >> 4) & 15).to(tl.bfloat16)).reshape(32, 64).trans()
    taken = tl.load(x + row[:, None] * 64 + inner[None, :])
    tl.store(out + row[:, None] * 32 + column[None, :], tl.dot(taken, values))


def inputs_of_a_thread(kind, loaded):
    types = {"x": "*bf16", "weight": "*" + loaded, "out": "*fp32", "kind": "constexpr"}
    source = ASTSource(product, types, {(3,): kind}, {(i,): [["tt.divisibility", 16]] for i in range(3)})
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    return sorted(set(re.findall(r"kWidth = (\d+)", made.asm["ttgir"])))


seen = {}
for name, *one in (
    ("bfloat16 from memory", "floats", "bf16"),
    ("codes of 16-bit words", "codes", "i16"),
    ("codes of bytes", "codes", "i8"),
):
    seen[name] = inputs_of_a_thread(*one)
    print(f"{name:22} neighbouring inputs of a thread: {', '.join(seen[name])}")
assert triton.__version__ == "3.6.0", triton.__version__
assert list(seen.values()) == [["2"], ["4"], ["8"]], "Triton sums in one order now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py"
