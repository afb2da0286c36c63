#!/usr/bin/env bash
# transformers 5.23.0's assisted generation is not lossless with guidance_scale (classifier-free guidance): greedy
# answers of generate(..., guidance_scale=1.5) change when assistant_model or prompt_lookup_num_tokens is given. The
# processor reads the last token alone into a cache of its own at each call, and assisted generation calls it for each
# drafted position, rejected ones too, which it never takes back. Other processors (penalties, bad words, n-grams)
# agree. No error, no warning. For us: no reference of assisted generation for guided answers; flashdraft has no
# guidance.
#
# Seen (transformers 5.23.0, torch 2.13.0 on a CPU, Python 3.11); tokens that are as without assistance:
#   guidance_scale=1.5       assistant 4 of 40  prompt lookup 0 of 40
#   repetition_penalty=1.3   assistant 40 of 40  prompt lookup 40 of 40
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cat >"$folder/probe.py" <<'PROBE'
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM


def model(layers, seed):
    """A tiny Qwen3 of random weights."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, eos_token_id=None, pad_token_id=62, initializer_range=0.3,
    )
    return Qwen3ForCausalLM(config).eval()


target, assistant = model(2, seed=0), model(1, seed=1)
prompt = torch.randint(0, 60, (1, 12), generator=torch.Generator().manual_seed(3))
prompt = torch.cat([prompt, prompt], dim=1)  # so that prompt lookup finds something
shared = {}
for option, value in (("guidance_scale", 1.5), ("repetition_penalty", 1.3)):
    said = f"{option}={value}"
    options = {"max_new_tokens": 40, "do_sample": False, option: value}
    plain = target.generate(prompt, **options)
    for name, how in (("assistant", {"assistant_model": assistant}), ("lookup", {"prompt_lookup_num_tokens": 4})):
        found = target.generate(prompt, **options, **how)
        same = (plain == found)[0, prompt.shape[1] :].int().cumprod(0).sum().item()
        shared[option, name] = same
    by_model, by_lookup = shared[option, "assistant"], shared[option, "lookup"]
    print(f"{said:24} assistant {by_model} of 40  prompt lookup {by_lookup} of 40")
assert all(same == 40 for (option, _), same in shared.items() if option == "repetition_penalty"), "penalties changed"
assert all(same < 40 for (option, _), same in shared.items() if option == "guidance_scale"), "guidance agrees now"
PROBE
TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" "$folder/probe.py" 2>/dev/null
