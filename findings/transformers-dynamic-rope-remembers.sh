#!/usr/bin/env bash
# transformers 5.23.0 answers a prompt by the prompts before it where a model has dynamic NTK RoPE (rope_type dynamic):
# its frequencies grow with the longest text that the model object has seen, and go back only when a text shorter than
# the original context comes. A prompt that is longer than that context gets other logits after a still longer one than
# in a fresh process. An engineer would guess that logits are a function of the weights and the tokens. Nothing is raised
# or logged. For us: no reference of such a target comes from a model object that has answered before; flashdraft
# refuses rope_type dynamic, and says that "default" is the same within the original context.
#
# Seen (transformers 5.23.0, torch 2.13.0 on a CPU, Python 3.11); largest difference from a fresh model's logits:
#   dynamic, 20 tokens after 12  0.00
#   dynamic, 20 tokens after 40  2.50
#   dynamic, 12 tokens after 40  0.00
#   linear, 20 tokens after 40  0.00
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cat >"$folder/probe.py" <<'PROBE'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT = 16  # the original one, in tokens
ids = torch.randint(0, 64, (1, 40), generator=torch.Generator().manual_seed(3))


def model(rope):
    """A tiny Llama of random weights, the same each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        max_position_embeddings=CONTEXT, rope_parameters=rope, initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


@torch.inference_mode()
def difference(rope, length, before):
    """How far the logits of `length` tokens are from a fresh model's when `before` tokens were answered first."""
    used = model(rope)
    used(ids[:, :before])
    return (used(ids[:, :length]).logits - model(rope)(ids[:, :length]).logits).abs().max().item()


dynamic = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
linear = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
found = {
    "dynamic, 20 tokens after 12": difference(dynamic, 20, 12),
    "dynamic, 20 tokens after 40": difference(dynamic, 20, 40),
    "dynamic, 12 tokens after 40": difference(dynamic, 12, 40),
    "linear, 20 tokens after 40": difference(linear, 20, 40),
}
for name, far in found.items():
    print(f"{name}  {far:.2f}")
remembered = found.pop("dynamic, 20 tokens after 40")
assert remembered > 0.01, "dynamic RoPE forgets longer texts now"
assert all(far == 0 for far in found.values()), "another case remembers what came before"
PROBE
TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" "$folder/probe.py" 2>/dev/null
