#!/usr/bin/env bash
# transformers 5.23.0 cuts a text in two where its position_ids make a step other than 1, if no attention_mask is given
# and use_cache is false: what comes after the step sees nothing before it. The same call with a cache, or with a mask of
# ones, attends to the whole text. A jump in positions is taken for the border of packed texts. Trainers of drafters run
# without a cache and set positions by hand: of a tree, whose branches repeat them, of a text that was cut in the middle
# (a kept system prompt), or of a block behind its anchor. An engineer would guess that use_cache changes what is kept,
# not what is attended to. Nothing is raised or logged. For us: references of such positions are run with a mask.
#
# Seen (transformers 5.23.0, torch 2.13.0 on a CPU, Python 3.11); largest difference of logits from use_cache=True:
#   0 to 15       use_cache=False 0.00  and a mask of ones 0.00
#   a gap         use_cache=False 7.23  and a mask of ones 0.00
#   two branches  use_cache=False 6.97  and a mask of ones 0.00
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cat >"$folder/probe.py" <<'PROBE'
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

config = Qwen3Config(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, eos_token_id=None, pad_token_id=None, initializer_range=0.3,
)
torch.manual_seed(0)
model = Qwen3ForCausalLM(config).eval()
ids = torch.randint(0, 64, (1, 16), generator=torch.Generator().manual_seed(3))
positions = {
    "0 to 15": [*range(16)],
    "a gap": [*range(12), 20, 21, 22, 23],
    "two branches": [*range(12), 12, 13, 12, 13],
}
ones = torch.ones_like(ids)
for name, places in positions.items():
    position_ids = torch.tensor([places])
    with torch.inference_mode():
        cached = model(ids, position_ids=position_ids, use_cache=True).logits
        bare = model(ids, position_ids=position_ids, use_cache=False).logits
        masked = model(ids, position_ids=position_ids, use_cache=False, attention_mask=ones).logits
        alone = model(ids[:, 12:], position_ids=position_ids[:, 12:], attention_mask=ones[:, 12:]).logits
    far, with_mask = (bare - cached).abs().max().item(), (masked - cached).abs().max().item()
    print(f"{name:12}  use_cache=False {far:.2f}  and a mask of ones {with_mask:.2f}")
    assert with_mask < 1e-3, "use_cache changes logits with a mask too"
    assert (far > 0.1) == (name != "0 to 15"), "positions part a text otherwise now"
    if name == "a gap":
        assert (bare[:, 12:] - alone).abs().max() < 1e-3, "what comes after a gap is not as if alone"
PROBE
TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" "$folder/probe.py" 2>/dev/null
