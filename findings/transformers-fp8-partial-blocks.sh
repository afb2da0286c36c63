#!/usr/bin/env bash
# transformers 5.23.0 loads a block FP8 checkpoint with other numbers when it dequantizes it (FineGrainedFP8Config,
# dequantize=True): Fp8Dequantize divides the matrix by the grid of scales in place of taking weight_block_size. A matrix
# of 192 rows in blocks of 128 has 2 scales, one for 128 rows and one for 64, as its own FP8Linear lays them out; it takes
# 96 and 96. No error, no warning. Where the division leaves a rest (576 rows, 5 scales: DeepSeek-V3) it raises ValueError.
#
# Seen (transformers 5.23.0, torch 2.13.0 on a CPU, accelerate 1.15.0, Python 3.11):
#   FP8Linear(192, 192) has scales [2, 2]
#   q_proj [192, 192]: largest weight 0.079, largest error 0.232
#   up_proj [256, 192]: largest weight 0.084, largest error 0.138
#   up_proj [256, 256] of a model of hidden size 256: largest error 0.000
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 safetensors==0.8.0 numpy==2.4.6
cat >"$folder/probe.py" <<'PROBE'
import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, LlamaConfig, LlamaForCausalLM
from transformers.integrations.finegrained_fp8 import FP8Linear

BLOCK = 128


def quantize(weight):
    """Codes, a scale for each block of 128 x 128 (the last ones smaller), and what they stand for."""
    rows, columns = weight.shape
    scales = torch.empty(math.ceil(rows / BLOCK), math.ceil(columns / BLOCK))
    codes, whole = torch.empty(rows, columns, dtype=torch.float8_e4m3fn), torch.empty(rows, columns)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            at = slice(BLOCK * i, BLOCK * (i + 1)), slice(BLOCK * j, BLOCK * (j + 1))
            scales[i, j] = weight[at].abs().amax() * (1 + i + 2 * j) / 448
            codes[at] = (weight[at] / scales[i, j]).to(torch.float8_e4m3fn)
            whole[at] = codes[at].float() * scales[i, j]
    return codes, scales, whole


def errors(place, hidden_size):
    """The largest error of each matrix, by its name, of a checkpoint written to ``place``."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=hidden_size, intermediate_size=256, num_hidden_layers=1,
        num_attention_heads=hidden_size // 64, num_key_value_heads=hidden_size // 64, head_dim=64,
    )
    LlamaForCausalLM(config).save_pretrained(place)
    state, expected = load_file(place / "model.safetensors"), {}
    for name in [name for name, tensor in state.items() if ".layers." in name and tensor.dim() == 2]:
        state[name], state[f"{name}_scale_inv"], expected[name] = quantize(state[name])
    save_file(state, place / "model.safetensors", metadata={"format": "pt"})
    told = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    raw = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**raw, "quantization_config": told}))
    how = FineGrainedFP8Config(dequantize=True)
    found = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, quantization_config=how).state_dict()
    return {name.split(".")[-2]: (whole, (found[name] - whole).abs().max().item()) for name, whole in expected.items()}


print("FP8Linear(192, 192) has scales", list(FP8Linear(192, 192, block_size=(BLOCK, BLOCK)).weight_scale_inv.shape))
partial, full = (errors(Path(sys.argv[1]) / str(size), size) for size in (192, 256))
for name in ("q_proj", "up_proj"):
    whole, error = partial[name]
    print(f"{name} {list(whole.shape)}: largest weight {whole.abs().max():.3f}, largest error {error:.3f}")
whole, error = full["up_proj"]
print(f"up_proj {list(whole.shape)} of a model of hidden size 256: largest error {error:.3f}")
assert all(error < 1e-6 for _, error in full.values()), "whole blocks are read otherwise now"
assert all(error > 0.5 * whole.abs().max() for whole, error in partial.values()), "partial blocks are read rightly now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py" "$folder" 2>/dev/null
