#!/usr/bin/env bash
# transformers 5.23.0's assisted generation goes on after a stop text. StopStringCriteria, and any criterion that looks at
# the last token, ends plain generate there; with an assistant the answer runs on when a round holds the stop and more
# behind it: criteria see the text once a round, and find no stop at its end. What comes is the rest of the round, then
# all up to the next stop or max_new_tokens. (stop_strings= itself raises a ValueError with an assistant, for the
# tokenizer is not handed on.) An engineer would guess that greedy assisted answers are the plain ones, as they
# are for eos_token_id and max_new_tokens, which rounds are cut at. Nothing is raised or logged. For us: answers with
# stop texts are compared with plain generate; flashdraft ends a round where the stop text ends.
#
# Seen (transformers 5.23.0, torch 2.13.0 on a CPU, Python 3.11); new tokens of 30 at most:
#   eos_token_id       generate  6  with an assistant  6
#   StopStringCriteria generate  6  with an assistant 30
#   LastTokenIs        generate  6  with an assistant 30
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cat >"$folder/probe.py" <<'PROBE'
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, StoppingCriteria, StopStringCriteria

PROMPT, TOKENS, STOP = 12, 30, 5  # the stop is the token that plain decoding gives sixth
backend = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
config = Qwen3Config(
    vocab_size=90, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, eos_token_id=None, pad_token_id=89, initializer_range=0.3,
)
torch.manual_seed(0)
model = Qwen3ForCausalLM(config).eval()
model.generation_config.num_assistant_tokens, model.generation_config.assistant_confidence_threshold = 8, 0.0
prompt = torch.randint(0, 80, (1, PROMPT))


def answer(**how):
    """The new tokens of a greedy answer."""
    return model.generate(prompt, max_new_tokens=TOKENS, do_sample=False, **how)[0, PROMPT:].tolist()


class LastTokenIs(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] == stop


plain = answer()
stop = plain[STOP]
first = plain.index(stop) + 1
stops = {
    "eos_token_id": {"eos_token_id": stop},
    "StopStringCriteria": {"stopping_criteria": [StopStringCriteria(tokenizer, [tokenizer.decode([stop])])]},
    "LastTokenIs": {"stopping_criteria": [LastTokenIs()]},
}
for name, options in stops.items():
    alone, assisted = answer(**options), answer(assistant_model=model, **options)
    print(f"{name:18} generate {len(alone):2}  with an assistant {len(assisted):2}")
    assert alone == plain[:first], "generate does not end at the stop"
    assert assisted == plain[: len(assisted)], "assisted generation gives other tokens"
    if name == "eos_token_id":
        assert assisted == alone, "an end token no longer ends a round"
    else:
        assert len(assisted) > len(alone), f"assisted generation ends at {name} now"
PROBE
TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" "$folder/probe.py" 2>/dev/null
