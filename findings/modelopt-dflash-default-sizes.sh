#!/usr/bin/env bash
# NVIDIA ModelOpt 0.47.0 gives a DFlash drafter the sizes of no model of its user: what dflash_architecture_config
# leaves out, its code says, is inherited from the target, but a Qwen3Config has a value for everything, so nothing is
# ever found missing. Each drafter gets the MLP of 22,016, the 32 heads, the 32 key-value heads and the head_dim of 128
# of that class, and of the target the hidden size alone. For Qwen3-8B that is 1.77 in place of 1.05 billion parameters
# to read in each round, and four times the keys and values to keep. An engineer would guess that {} makes the drafter
# of the paper, whose layers have the target's sizes. Nothing is raised or logged; the exported config.json has them
# too. For us: sizes are stated for ModelOpt; `flashdraft train` takes the target's.
#
# Seen (nvidia-modelopt 0.47.0, transformers 5.14.1, torch 2.13.0 on a CPU, Python 3.11); Qwen3-8B without its weights:
#   dflash_architecture_config {}  MLP 22016  key-value heads 32  1.77 billion parameters
#   with the target's sizes        MLP 12288  key-value heads 8   1.05 billion parameters
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq \
  torch==2.13.0 transformers==5.14.1 numpy==2.4.6 accelerate==1.15.0 ninja==1.13.2 nvidia-ml-py==13.615.71 \
  omegaconf==2.3.0 pulp==3.3.2 pydantic==2.14.4 regex==2026.11.19 requests==2.34.2 rich==15.0.0 scipy==1.17.1 \
  setuptools==84.2.1
"$folder/venv/bin/python" -m pip install -qq --no-deps nvidia-modelopt==0.47.0
cat >"$folder/probe.py" <<'PROBE'
import modelopt.torch.speculative as mtsp
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

sizes = dict(intermediate_size=12288, num_attention_heads=32, num_key_value_heads=8, head_dim=128)
found = []
for name, stated in (("dflash_architecture_config {}", {}), ("with the target's sizes", sizes)):
    settings = {"dflash_mask_token_id": 151669, "dflash_architecture_config": stated}
    with torch.device("meta"):
        target = Qwen3ForCausalLM(Qwen3Config(vocab_size=151936, hidden_size=4096, num_hidden_layers=36, **sizes))
        drafter = mtsp.convert(target, [("dflash", settings)]).dflash_module
    layer = drafter.layers[0]
    wide, heads = layer.mlp.gate_proj.out_features, layer.self_attn.k_proj.out_features // sizes["head_dim"]
    billions = sum(parameter.numel() for parameter in drafter.parameters()) / 1e9
    found.append((wide, heads))
    print(f"{name:30} MLP {wide}  key-value heads {heads:<3} {billions:.2f} billion parameters")
assert found[1] == (12288, 8), "stated sizes are used otherwise now"
assert found[0] == (22016, 32), "the target's sizes are inherited now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py" 2>/dev/null
