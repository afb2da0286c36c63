#!/usr/bin/env bash
# transformers 5.23.0 takes a 4D attention_mask as the whole truth for all layers: given the plain causal one, Gemma 3 and
# gpt-oss attend to the whole text in their sliding layers too. 4D masks are how tree drafts and packed texts are
# verified. An engineer would guess that the window is put on top, as it is for a 2D mask, for it belongs to the layer
# and the mask to the text. A dict of one mask for each layer type gives the windows back. Nothing is raised or logged.
# For us: references of trees on sliding targets come from such dicts or from texts shorter than the window.
#
# Seen (transformers 5.23.0, torch 2.13.0 on a CPU, Python 3.11); largest difference of logits from no mask at all:
#   Gemma 3   4 tokens, window 4  2D 0.00  4D 0.00  4D by layer type 0.00
#   Gemma 3  16 tokens, window 4  2D 0.00  4D 2.64  4D by layer type 0.00
#   gpt-oss   4 tokens, window 4  2D 0.00  4D 0.00  4D by layer type 0.00
#   gpt-oss  16 tokens, window 4  2D 0.00  4D 7.55  4D by layer type 0.00
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cat >"$folder/probe.py" <<'PROBE'
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GptOssConfig, GptOssForCausalLM

WINDOW = 4
kinds = ["sliding_attention", "full_attention"]
shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3, "pad_token_id": None}
shape |= {"sliding_window": WINDOW, "layer_types": kinds, "eos_token_id": None, "bos_token_id": None}
experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "attn_implementation": "eager"}
models = {
    "Gemma 3": (Gemma3ForCausalLM, Gemma3TextConfig(**shape)),
    "gpt-oss": (GptOssForCausalLM, GptOssConfig(**shape, **experts)),
}


def masks(length):
    """The 2D mask, the causal 4D one, and the dict of causal ones by layer type."""
    query, key = torch.arange(length)[:, None], torch.arange(length)[None]
    causal = (key <= query)[None, None]
    window = causal & (query - key < WINDOW)
    return {
        "2D": torch.ones(1, length, dtype=torch.long),
        "4D": causal,
        "4D by layer type": {"full_attention": added(causal), "sliding_attention": added(window)},
    }


def added(allowed):
    """A mask of booleans as the numbers that are added to scores."""
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)


for name, (make, config) in models.items():
    torch.manual_seed(0)
    model = make(config).eval()
    for length in (WINDOW, 16):
        ids = torch.randint(0, 64, (1, length), generator=torch.Generator().manual_seed(3))
        with torch.inference_mode():
            plain = model(ids).logits
            given = masks(length)
            if model.config._attn_implementation == "eager":
                given["4D"] = added(given["4D"])
            far = {kind: (model(ids, attention_mask=mask).logits - plain).abs().max().item() for kind, mask in given.items()}
        print(f"{name}  {length:2} tokens, window {WINDOW}  " + "  ".join(f"{k} {v:.2f}" for k, v in far.items()))
        dropped = far.pop("4D")
        assert all(value < 1e-3 for value in far.values()), "other masks change the logits"
        assert (dropped > 0.1) == (length > WINDOW), "a 4D mask keeps the windows now"
PROBE
TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" "$folder/probe.py" 2>/dev/null
