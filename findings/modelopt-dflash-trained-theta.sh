#!/usr/bin/env bash
# NVIDIA ModelOpt 0.47.0 trains a DFlash drafter with RoPE theta 10000 and writes the target's into its config.json,
# under transformers 5. Training looks for config.rope_theta, which is not there any more, and so leaves the default of
# the drafter's own Qwen3Config; the export looks into rope_parameters too. What is served turns keys by another theta
# than what was trained, and few drafts are accepted. Under transformers 4.57.6, which it also takes, both are the
# target's, and so they are with rope_theta stated in dflash_architecture_config. An engineer would guess that a
# drafter is exported as it was trained, the more as ModelOpt says that it enforces the target's. Nothing is raised or
# logged. For us: a drafter of ModelOpt that accepts little is tried with "rope_theta": 10000 in its config.json.
#
# Seen (nvidia-modelopt 0.47.0, transformers 5.14.1, torch 2.13.0 on a CPU, Python 3.11); a target of theta 1000000:
#   dflash_architecture_config without rope_theta  trained 10000    exported 1000000
#   rope_theta 1000000 in it                       trained 1000000  exported 1000000
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
import contextlib
import io
import sys

import modelopt.torch.speculative as mtsp
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

MASK, THETA = 60, 1_000_000
heads = dict(num_attention_heads=4, num_key_value_heads=2, head_dim=16, intermediate_size=96)
found = {}
for name, stated in (("without rope_theta", {}), ("rope_theta 1000000 in it", {"rope_theta": THETA})):
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": float(THETA)}
    sizes = dict(vocab_size=64, hidden_size=64, num_hidden_layers=6, **heads)
    target = Qwen3ForCausalLM(Qwen3Config(rope_parameters=rope, dtype="float32", **sizes))
    settings = {
        "dflash_mask_token_id": MASK, "dflash_block_size": 4, "dflash_use_torch_compile": False,
        "dflash_architecture_config": {"num_hidden_layers": 2, **heads, **stated},
    }
    model = mtsp.convert(target, [("dflash", settings)]).train()
    tokens = torch.randint(0, MASK, (2, 32))
    loss = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=tokens).loss
    assert loss > 0, "no block was trained"
    step = model.dflash_module.rotary_emb.inv_freq[1].item()  # theta ** (-2 / head_dim)
    with contextlib.redirect_stdout(io.StringIO()):
        model.get_exporter().export(sys.argv[1] + "/drafter")
    exported = Qwen3Config.from_pretrained(sys.argv[1] + "/drafter").rope_parameters["rope_theta"]
    found[name] = round(step ** (-heads["head_dim"] / 2), -2), exported
    print(f"{name:26} trained {found[name][0]:<8.0f} exported {exported:.0f}")
assert found["rope_theta 1000000 in it"] == (THETA, THETA), "a stated theta is used otherwise now"
assert found["without rope_theta"] == (10000, THETA), "it is trained as exported now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py" "$folder" 2>/dev/null
