#!/usr/bin/env bash
# Triton 3.9.0's interpreter (TRITON_INTERPRET=1) casts float32 to bfloat16 by cutting bits off, where a GPU rounds to
# the nearest; also when the kernel asks for that by name (fp_downcast_rounding="rtne"). tl.dot of bfloat16 multiplies bit
# patterns as integers. No error, no warning: a kernel's test against PyTorch fails by a unit here and there, or by 1e9.
# The documentation says that bfloat16 is not supported there; nothing in the output does.
#
# Seen (triton 3.9.0, torch 2.13.0 on a CPU, numpy 2.4.6, Python 3.11):
#   torch    [1.0, 1.0078125, 2.0, 4.0]
#   plain    [1.0, 1.0, 1.9921875, 3.984375]
#   rtne     [1.0, 1.0, 1.9921875, 3.984375]
#   dot      torch 16.0, interpreter 4228120576.0
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" -m pip install -qq --no-deps triton==3.9.0
cat >"$folder/probe.py" <<'PROBE'
import torch
import triton
import triton.language as tl


@triton.jit
def cast(x, plain, rtne, n: tl.constexpr):
    at = tl.arange(0, n)
    value = tl.load(x + at)
    tl.store(plain + at, value.to(tl.bfloat16))
    tl.store(rtne + at, value.to(tl.bfloat16, fp_downcast_rounding="rtne"))


@triton.jit
def square(x, out, n: tl.constexpr):
    at = tl.arange(0, n)[:, None] * n + tl.arange(0, n)[None, :]
    value = tl.load(x + at)
    tl.store(out + at, tl.dot(value, value))


x = torch.tensor([1.0, 1.0078, 1.9999, 3.9999])
plain, rtne = (torch.empty(4, dtype=torch.bfloat16) for _ in range(2))
cast[(1,)](x, plain, rtne, n=4)
ones, product = torch.ones(16, 16, dtype=torch.bfloat16), torch.empty(16, 16)
square[(1,)](ones, product, n=16)
print("torch   ", x.bfloat16().tolist())
print("plain   ", plain.tolist())
print("rtne    ", rtne.tolist())
print("dot      torch", (ones @ ones)[0, 0].item(), "interpreter", product[0, 0].item())
cut = (x.view(torch.int32) >> 16 << 16).view(torch.float32)
assert torch.equal(plain.float(), cut) and torch.equal(rtne.float(), cut), "the interpreter rounds now"
assert product[0, 0] != (ones @ ones)[0, 0], "the interpreter multiplies bfloat16 as numbers now"
PROBE
TRITON_INTERPRET=1 "$folder/venv/bin/python" "$folder/probe.py"
