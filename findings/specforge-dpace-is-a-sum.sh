#!/usr/bin/env bash
# SpecForge 0.2.0's D-PACE losses (loss_type dpace and its two kin) are sums over all blocks of a row, where its loss
# dflash, and the D-PACE of speculators, are means over labels. With the default of 512 anchors loss and gradient are
# hundreds of times a slot's or more, and max_grad_norm, 0.5 by default, cuts the gradient of every step: what is left
# is its direction, and a row with few answers weighs next to nothing beside one with many. An engineer would guess that
# loss_type changes the weights of slots alone, and that num_anchors changes noise, not size, so that a learning rate, a
# limit of gradients and a curve of the loss hold for both. Nothing is logged. For us: its runs are compared by served
# acceptance, with max_grad_norm set for its loss; flashdraft's own D-PACE is a mean.
#
# Seen (specforge 0.2.0, torch 2.13.0 on a CPU, transformers 5.8.1, Python 3.11); one row, the same untrained drafter:
#   dflash  anchors   8  loss    4.20  gradient's norm    0.1
#   dflash  anchors 128  loss    4.28  gradient's norm    0.1
#   dpace   anchors   8  loss   68.47  gradient's norm    1.7
#   dpace   anchors 128  loss 1135.73  gradient's norm   21.5
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
import torch
from specforge.algorithms.common.dflash_family_model import OnlineDFlashModel
from specforge.modeling.draft.dflash import DFlashDraftModel
from torch import nn
from transformers import Qwen3Config

BLOCK, MASK, VOCABULARY, HIDDEN, ROW = 16, 63, 64, 32, 512
config = Qwen3Config(
    vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8,
)
config._attn_implementation = "sdpa"
config.num_target_layers, config.block_size = 6, BLOCK
config.dflash_config = {"mask_token_id": MASK, "target_layer_ids": [1, 3]}
torch.manual_seed(0)
drafter = DFlashDraftModel(config)
head, embedding = nn.Linear(HIDDEN, VOCABULARY, bias=False), nn.Embedding(VOCABULARY, HIDDEN)
ids, features = torch.randint(0, 60, (1, ROW)), torch.randn(1, ROW, 2 * HIDDEN)
found = {}
for loss_type in ("dflash", "dpace"):
    for anchors in (8, 128):
        torch.manual_seed(1)
        trained = OnlineDFlashModel(
            drafter, head, embedding, MASK, block_size=BLOCK, attention_backend="sdpa", num_anchors=anchors,
            loss_type=loss_type,
        )
        drafter.zero_grad()
        loss, *_ = trained(ids, features, torch.ones(1, ROW))
        loss.backward()
        norm = nn.utils.get_total_norm([w.grad for w in drafter.parameters() if w.grad is not None]).item()
        found[loss_type, anchors] = loss.item(), norm
        print(f"{loss_type:6}  anchors {anchors:3}  loss {loss.item():7.2f}  gradient's norm {norm:6.1f}")
for loss_type, grows in (("dflash", 1), ("dpace", 16)):
    few, many = found[loss_type, 8], found[loss_type, 128]
    assert 0.8 * grows < many[0] / few[0] < 1.25 * grows, f"the loss {loss_type} is reduced otherwise now"
assert found["dpace", 128][1] > 10 * found["dflash", 128][1], "gradients of both losses are alike now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py" 2>/dev/null
