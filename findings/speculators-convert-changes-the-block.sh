#!/usr/bin/env bash
# speculators 0.9.0 converts a z-lab drafter into another one, where its layers slide or its config says how a block
# looks: `speculators convert` copies the weights, and its config has no place for the rest. is_causal false becomes
# causal sliding layers, for sliding_window_non_causal stays at its default; input_embedding_scale and output_multiplier
# of dflash_config are left out; and a window is counted from the block's first slot, one token wider, where dflash
# 0.1.0 moves it with each slot, so any sliding drafter differs once the text is longer than the window. An engineer
# would guess that "weights are copied as-is" keeps drafts, or that what cannot be kept is refused. Nothing is raised,
# and the conversion's own validation succeeds. For us: `flashdraft convert --to speculators` writes
# sliding_window_non_causal, refuses scaled embeddings and logits, and says how the window is counted
# (window_from_anchor), which speculators does not read: train on a drafter with windows here.
#
# Seen (speculators 0.9.0, dflash 0.1.0, transformers 5.19.0, torch 2.13.0 on a CPU, Python 3.11); one sliding and one
# full layer, 20 tokens of context, drafts of a block of 4; the largest difference of a probability, converted and not:
#   window 32                             0.00  the same drafts
#   window 32, is_causal false            0.06  the same drafts
#   window 32, input_embedding_scale 8    0.37  others
#   window 32, output_multiplier 0.25     0.14  the same drafts
#   window 8                              0.31  others
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq \
  torch==2.13.0 transformers==5.19.0 numpy==2.4.6 accelerate==1.15.0 datasets==5.1.0 loguru==0.7.3 openai==3.57.0 \
  pydantic==2.14.4 pydantic-settings==2.16.3 aiohttp==3.14.5 httpx psutil==7.2.2 protobuf==7.36.2 rich==15.0.0 \
  typer==0.29.2 click==8.5.1
"$folder/venv/bin/python" -m pip install -qq --no-deps speculators==0.9.0 hs-connectors==0.9.0 dflash==0.1.0
cat >"$folder/probe.py" <<'PROBE'
import sys
from pathlib import Path

import torch
from dflash.model import DFlashDraftModel
from speculators import DFlashDraftModel as Converted
from speculators.convert.dflash import DFlashConverter
from transformers import Qwen3Config, Qwen3ForCausalLM

BLOCK, CONTEXT, MASK = 4, 20, 63
folder = Path(sys.argv[1])
shape = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "initializer_range": 0.3, "tie_word_embeddings": False,
}
torch.manual_seed(1)
target = Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=6, **shape)).eval()
target.save_pretrained(folder / "target")
ids = torch.randint(0, 60, (1, CONTEXT + 2 * BLOCK))
anchor = torch.zeros(1, ids.shape[1]).index_fill_(1, torch.tensor([CONTEXT]), 1)
with torch.no_grad():
    states = target(ids, output_hidden_states=True).hidden_states
features = torch.cat([states[2], states[4]], -1)


@torch.no_grad()
def difference(window, is_causal=None, **inner):
    """The largest difference of a probability, and whether all drafts are the same."""
    torch.manual_seed(0)
    config = Qwen3Config(
        num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"], use_sliding_window=True,
        sliding_window=window, **shape,
    )
    config.num_target_layers, config.is_causal = 6, is_causal
    config.dflash_config = {"block_size": BLOCK, "mask_token_id": MASK, "target_layer_ids": [1, 3], **inner}
    source = DFlashDraftModel(config).eval()
    source.save_pretrained(folder / "drafter")
    DFlashConverter().convert(folder / "drafter", folder / "converted", str(folder / "target"))
    block = torch.full((1, BLOCK), MASK)
    block[0, 0] = ids[0, CONTEXT]
    slots = target.get_input_embeddings()(block) * inner.get("input_embedding_scale", 1.0)
    places = torch.arange(CONTEXT + BLOCK)[None]
    hidden = source(target_hidden=features[:, :CONTEXT], noise_embedding=slots, position_ids=places)
    theirs = source.compute_logits(hidden, target.lm_head)[0, 1:].softmax(-1)
    converted = Converted.from_pretrained(str(folder / "converted")).float().eval()
    converted.load_verifier_weights()
    _, logits, *_ = converted._backbone_forward(
        hidden_states=features, input_ids=ids, loss_mask=anchor, verifier_last_hidden_states=states[-1],
        document_ids=torch.zeros_like(ids), max_anchors=1,
    )
    found = logits[0, 1:].softmax(-1)
    return (theirs - found).abs().max().item(), bool((theirs.argmax(-1) == found.argmax(-1)).all())


off = {}
for name, options in {
    "window 32": {"window": 32},
    "window 32, is_causal false": {"window": 32, "is_causal": False},
    "window 32, input_embedding_scale 8": {"window": 32, "input_embedding_scale": 8.0},
    "window 32, output_multiplier 0.25": {"window": 32, "output_multiplier": 0.25},
    "window 8": {"window": 8},
}.items():
    off[name], same = difference(**options)
    print(f"{name:36}  {off[name]:.2f}  {'the same drafts' if same else 'others'}")
assert off.pop("window 32") < 1e-5, "a plain drafter is converted otherwise, or compared wrongly"
assert min(off.values()) > 0.01, "what a drafter says of its block is kept now"
PROBE
TORCHDYNAMO_DISABLE=1 HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/probe.py" "$folder" 2>/dev/null
