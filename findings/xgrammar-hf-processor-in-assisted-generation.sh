#!/usr/bin/env bash
# xgrammar 0.2.8's logits processor for transformers (xgrammar.contrib.hf.LogitsProcessor) works in generate, and fails
# in the same call with prompt_lookup_num_tokens or assistant_model, with an AssertionError that has no text. It takes
# one call for one token; assisted generation calls processors for each drafted position of a round, then goes back. An
# engineer would guess that a LogitsProcessor works in all of generate's modes, as transformers' own do. For us: no
# reference for structured answers comes from assisted generation; flashdraft's grammars go back with each rejected
# draft.
#
# Seen (xgrammar 0.2.8, transformers 5.23.0, torch 2.13.0 on a CPU, Python 3.11):
#   generate       '{"a": 820, "b": "5x?]]]+:?V/{R/.]]]]]{*y'
#   prompt lookup  AssertionError ''
#   assistant      AssertionError ''
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq \
  apache-tvm-ffi==0.1.15.post2 pydantic==2.14.3 numpy==2.4.6 torch==2.13.0 transformers==5.23.0
"$folder/venv/bin/python" -m pip install -qq --no-deps xgrammar==0.2.8
cat >"$folder/probe.py" <<'PROBE'
import json

import torch
import xgrammar
from transformers import Qwen3Config, Qwen3ForCausalLM
from xgrammar.contrib.hf import LogitsProcessor

torch.manual_seed(0)
tokens = [chr(i) for i in range(32, 127)] + ["</s>"]
config = Qwen3Config(
    vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, eos_token_id=95, pad_token_id=94, initializer_range=0.3,
)
model = Qwen3ForCausalLM(config).eval()
schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "required": ["a", "b"]}
compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo(tokens, stop_token_ids=[95]))
compiled = compiler.compile_json_schema(json.dumps(schema), any_whitespace=False)
prompt = torch.randint(0, 60, (1, 12), generator=torch.Generator().manual_seed(3))


def answer(**how):
    """The answer's text, or what was raised."""
    processors = [LogitsProcessor(compiled)]
    try:
        ids = model.generate(prompt, max_new_tokens=40, do_sample=False, logits_processor=processors, **how)
    except AssertionError as error:
        return error
    return "".join(tokens[i] for i in ids[0, 12:])


plain, *assisted = answer(), answer(prompt_lookup_num_tokens=3), answer(assistant_model=model)
print("generate      ", repr(plain))
for name, found in zip(("prompt lookup", "assistant"), assisted):
    print(f"{name:14} {type(found).__name__} {str(found)!r}")
assert isinstance(plain, str) and plain.startswith('{"a": '), "generate behaves otherwise now"
assert all(isinstance(found, AssertionError) and not str(found) for found in assisted), "assisted generation works now"
PROBE
TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" "$folder/probe.py" 2>/dev/null
