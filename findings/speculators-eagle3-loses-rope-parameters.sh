#!/usr/bin/env bash
# speculators 0.9.0's conversion of an EAGLE-3 drafter reads `rope_theta`, `rope_scaling` and `torch_dtype`; a config.json
# that transformers 5 saved says `rope_parameters` and `dtype` instead, and the drafter becomes one of theta 10000 without
# scaling, in float32, twice as large. Its own output has `rope_parameters`, and its validation succeeds. The same
# drafter with the older names comes through. An engineer would guess that a tool which needs transformers 5 reads what
# transformers 5 writes. Drafts stay lossless, and fewer of them are accepted, the more the longer the text. Nothing is
# raised or logged. For us: EAGLE-3 drafters go to vLLM and SGLang as they were published, never through this conversion.
#
# Seen (speculators 0.9.0, transformers 5.19.0, torch 2.13.0 on a CPU, Python 3.11); stored as bfloat16:
#   rope_theta, rope_scaling  theta 500000.0 type llama3   weights bfloat16
#   rope_parameters           theta 10000.0  type default  weights float32
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq \
  torch==2.13.0 transformers==5.19.0 numpy==2.4.6 accelerate==1.15.0 datasets==5.1.0 loguru==0.7.3 openai==3.57.0 \
  pydantic==2.14.4 pydantic-settings==2.16.3 aiohttp==3.14.5 httpx psutil==7.2.2 protobuf==7.36.2 rich==15.0.0 \
  typer==0.29.2 click==8.5.1
"$folder/venv/bin/python" -m pip install -qq --no-deps speculators==0.9.0 hs-connectors==0.9.0
cat >"$folder/probe.py" <<'PROBE'
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from speculators.convert.entrypoints import convert_model
from transformers import LlamaConfig

HIDDEN, WIDE, KEYS, VOCABULARY, DRAFTED = 64, 96, 32, 256, 128
folder = Path(sys.argv[1])
rope = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
common = dict(
    vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=WIDE, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, rope_parameters=rope, dtype="bfloat16",
)
LlamaConfig(num_hidden_layers=6, architectures=["LlamaForCausalLM"], **common).save_pretrained(folder / "target")
drafter = LlamaConfig(
    num_hidden_layers=1, architectures=["LlamaForCausalLMEagle3"], draft_vocab_size=DRAFTED, **common
)
drafter.save_pretrained(folder / "new")
written = json.loads((folder / "new" / "config.json").read_text())
older = {name: value for name, value in written.items() if name not in ("rope_parameters", "dtype")}
scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
older |= {"rope_theta": rope["rope_theta"], "rope_scaling": scaling, "torch_dtype": written["dtype"]}
(folder / "old").mkdir()
(folder / "old" / "config.json").write_text(json.dumps(older))

shapes = {
    "midlayer.self_attn.q_proj": (HIDDEN, 2 * HIDDEN), "midlayer.self_attn.k_proj": (KEYS, 2 * HIDDEN),
    "midlayer.self_attn.v_proj": (KEYS, 2 * HIDDEN), "midlayer.self_attn.o_proj": (HIDDEN, HIDDEN),
    "midlayer.mlp.gate_proj": (WIDE, HIDDEN), "midlayer.mlp.up_proj": (WIDE, HIDDEN),
    "midlayer.mlp.down_proj": (HIDDEN, WIDE), "midlayer.hidden_norm": (HIDDEN,), "midlayer.input_layernorm": (HIDDEN,),
    "midlayer.post_attention_layernorm": (HIDDEN,), "norm": (HIDDEN,), "fc": (HIDDEN, 3 * HIDDEN),
    "lm_head": (DRAFTED, HIDDEN), "embed_tokens": (VOCABULARY, HIDDEN),
}
weights = {f"{name}.weight": torch.randn(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
weights |= {"d2t": torch.zeros(DRAFTED, dtype=torch.long), "t2d": torch.arange(VOCABULARY) < DRAFTED}

found = {}
for name, keys in (("old", "rope_theta, rope_scaling"), ("new", "rope_parameters")):
    save_file(weights, folder / name / "model.safetensors")
    output = folder / f"{name}-converted"
    convert_model(
        model=str(folder / name), verifier=str(folder / "target"), algorithm="eagle3", output_path=str(output),
        validate_device="cpu",
    )
    layer = json.loads((output / "config.json").read_text())["transformer_layer_config"]["rope_parameters"]
    kind = str(load_file(output / "model.safetensors")["fc.weight"].dtype).removeprefix("torch.")
    found[name] = layer["rope_theta"], layer["rope_type"], kind
    print(f"{keys:25} theta {layer['rope_theta']!s:8} type {layer['rope_type']:8} weights {kind}")
assert written["rope_parameters"] == rope and "rope_theta" not in written, "transformers writes other names now"
assert found["old"] == (500000.0, "llama3", "bfloat16"), "the older names are read otherwise now"
assert found["new"] == (10000.0, "default", "float32"), "rope_parameters are read now"
PROBE
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/probe.py" "$folder" 2>/dev/null
