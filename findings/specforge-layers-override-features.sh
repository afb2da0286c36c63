#!/usr/bin/env bash
# SpecForge 0.2.0's model.draft_num_hidden_layers also says which of the target's layers a DFlash drafter reads, and how
# many: the dflash_config.target_layer_ids of a draft config that is given are replaced by as many evenly spread ones, in
# silence, even where the number is the one that the config has. An engineer would guess that it changes the number of the
# drafter's own layers (a draft of two layers may well read five of the target), and that ids given by hand stay.
# Offline features of five layers then do not fit two (a matrix error at the first step, which is how it was met); as many
# features of other layers do, and nothing is raised. For us: a comparison with its trainer names ids that it would choose.
#
# Seen (specforge 0.2.0, torch 2.13.0 on a CPU, transformers 5.8.1, Python 3.11); the config's ids 2 9 15 21 26:
#   draft_num_hidden_layers not set  [2, 9, 15, 21, 26]
#   draft_num_hidden_layers 5        [1, 8, 14, 20, 27]
#   draft_num_hidden_layers 2        [1, 27]
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq \
  torch==2.13.0 transformers==5.8.1 numpy==2.4.6 accelerate==1.15.0 datasets==5.0.0 pydantic==2.13.4 pyyaml \
  safetensors==0.8.0 tqdm psutil==7.2.2 requests
"$folder/venv/bin/python" -m pip install -qq --no-deps specforge==0.2.0
cat >"$folder/probe.py" <<'PROBE'
import json
import sys
from pathlib import Path

from specforge.application import resolve_run
from specforge.config import Config
from specforge.training.model_loading import resolve_draft_config

folder = Path(sys.argv[1])
GIVEN = [2, 9, 15, 21, 26]
draft = {
    "architectures": ["DFlashDraftModel"], "model_type": "qwen3", "vocab_size": 256, "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "layer_types": ["full_attention"] * 5, "block_size": 16, "num_target_layers": 30,
    "dflash_config": {"target_layer_ids": GIVEN, "mask_token_id": 255},
}
(folder / "draft.json").write_text(json.dumps(draft))
found = {}
for layers in (None, 5, 2):
    config = Config.model_validate(
        {
            "model": {
                "target_model_path": str(folder), "draft_model_config": str(folder / "draft.json"),
                "draft_num_hidden_layers": layers,
            },
            "data": {"hidden_states_path": str(folder)},
            "training": {"strategy": "dflash", "num_epochs": 1, "max_steps": 1},
        }
    )
    provider = resolve_run(config).algorithm.providers.model.draft_config
    resolved = resolve_draft_config(config, provider=provider)
    found[layers] = list(resolved.dflash_config["target_layer_ids"])
    print("draft_num_hidden_layers", layers or "not set", found[layers])
sys.exit(found != {None: GIVEN, 5: [1, 8, 14, 20, 27], 2: [1, 27]})
PROBE
"$folder/venv/bin/python" "$folder/probe.py" "$folder"
