#!/usr/bin/env bash
# mlx-lm 0.32.2's speculative decoding (a draft model given to stream_generate, `mlx_lm.server --draft-model`) changes
# greedy answers of targets with sliding windows (Gemma 3, gpt-oss) once the text is as long as the window. It asks
# whether the cache can be trimmed before the prompt, when every cache can, and not again: a full window cannot, and
# trim_prompt_cache, asked to take rejected drafts back, takes none, of no layer. They stay in the text that the target
# sees. Within the window, without windows, and where all drafts are accepted, answers are the plain ones; recurrent
# targets are refused by name. An engineer would guess that windows are refused likewise, or that drafts cost time, not
# words. Nothing is raised or logged. For us: answers of MLX with a drafter are compared within the window alone.
#
# Seen (mlx-lm 0.32.2, mlx 0.32.4 on a CPU, Python 3.11); leading greedy tokens that are as without a drafter:
#   Llama                  60 of 60
#   Gemma 3, window 1024   60 of 60
#   Gemma 3, window 16     5 of 60
#   gpt-oss, window 1024   60 of 60
#   gpt-oss, window 16     4 of 60
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq \
  mlx==0.32.4 mlx-cpu==0.32.4 mlx-lm==0.32.2 transformers==5.23.0 numpy==2.4.6 protobuf==7.36.2 sentencepiece==0.2.3
cat >"$folder/probe.py" <<'PROBE'
import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.generate import generate_step, speculative_generate_step
from mlx_lm.models import gemma3_text, gpt_oss, llama

PROMPT, TOKENS = 10, 60
sizes = dict(
    hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, vocab_size=64, intermediate_size=64
)


def model(kind, window, seed):
    """A tiny model of random weights."""
    if kind == "Llama":
        made = llama.Model(llama.ModelArgs(model_type="llama", num_hidden_layers=2, rms_norm_eps=1e-6, **sizes))
    elif kind == "Gemma 3":
        arguments = dict(num_hidden_layers=4, sliding_window=window, sliding_window_pattern=2)
        made = gemma3_text.Model(gemma3_text.ModelArgs(model_type="gemma3_text", **arguments, **sizes))
    else:
        layers = dict(num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"], sliding_window=window)
        experts = dict(num_local_experts=4, num_experts_per_tok=2)
        made = gpt_oss.Model(gpt_oss.ModelArgs(model_type="gpt_oss", **layers, **experts, **sizes))
    mx.random.seed(seed)
    made.update(tree_map(lambda weight: weight + 0.3 * mx.random.normal(weight.shape), made.parameters()))
    mx.eval(made.parameters())
    return made


mx.random.seed(7)
prompt = mx.random.randint(0, 64, (PROMPT,))
for kind, window in (("Llama", None), ("Gemma 3", 1024), ("Gemma 3", 16), ("gpt-oss", 1024), ("gpt-oss", 16)):
    target, drafter = model(kind, window, seed=1), model(kind, window, seed=2)
    plain = [int(token) for token, _ in generate_step(prompt, target, max_tokens=TOKENS)]
    rounds = speculative_generate_step(prompt, target, drafter, max_tokens=TOKENS, num_draft_tokens=3)
    drafted = [int(token) for token, _, _ in rounds]
    same = next((i for i, (a, b) in enumerate(zip(plain, drafted)) if a != b), TOKENS)
    print(f"{kind + (f', window {window}' if window else ''):22} {same} of {TOKENS}")
    if window == 16:
        assert same < TOKENS, "drafts are taken back from a full window now"
    else:
        assert same == TOKENS, "it differs within the window too"
PROBE
"$folder/venv/bin/python" "$folder/probe.py"
