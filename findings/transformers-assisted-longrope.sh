#!/usr/bin/env bash
# transformers 5.23.0's assisted generation is not lossless for LongRoPE models (Phi-3, Phi-4-mini) where an answer goes
# past the original context. Frequencies are those of the longest position of a call, drafted ones too: when a draft
# reaches over the border, the last tokens before it are verified with the long factors, which plain generate takes only
# once the text itself is over it. Greedy answers that end before the border agree. An engineer would guess that what generate does about the border holds
# in all of its modes. Nothing is raised or logged. For us: references of such targets come from plain generate; flashdraft refuses rope_type longrope.
#
# Seen (transformers 5.23.0, torch 2.13.0 on a CPU, Python 3.11); greedy tokens that are plain generate's:
#   border not reached  6 of 6
#   border passed       11 of 30
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cat >"$folder/probe.py" <<'PROBE'
import torch
from transformers import Phi3Config, Phi3ForCausalLM

CONTEXT, PROMPT = 24, 12  # tokens: the original context, the prompt
prompt = torch.randint(0, 60, (1, PROMPT), generator=torch.Generator().manual_seed(3))


def model(layers, seed):
    """A tiny Phi-3 of random weights."""
    torch.manual_seed(seed)
    config = Phi3Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, eos_token_id=None, bos_token_id=None, pad_token_id=62, initializer_range=0.3,
        max_position_embeddings=96, original_max_position_embeddings=CONTEXT,
        rope_parameters={
            "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 10000.0,
            "original_max_position_embeddings": CONTEXT,
        },
    )
    return Phi3ForCausalLM(config).eval()


target, assistant = model(2, seed=0), model(1, seed=1)
for border, tokens in (("not reached", CONTEXT - PROMPT - 6), ("passed", 30)):
    plain = target.generate(prompt, max_new_tokens=tokens, do_sample=False)
    found = target.generate(prompt, max_new_tokens=tokens, do_sample=False, assistant_model=assistant)
    same = (plain == found)[0, PROMPT:].int().cumprod(0).sum().item()
    print(f"border {border:11}  {same} of {tokens}")
    if border == "passed":
        assert same < tokens, "assisted generation agrees past the border now"
    else:
        assert same == tokens, "assisted generation differs before the border"
PROBE
TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" "$folder/probe.py" 2>/dev/null
