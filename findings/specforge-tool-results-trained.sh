#!/usr/bin/env bash
# SpecForge 0.2.0's loss mask of gpt-oss (chat template gpt-oss, preformatted texts) runs from the first header of the
# assistant to the next message of a USER: what a tool gave back in between, <|start|>functions.weather to=assistant, is
# trained as if the model had said it, its header and text. The text has the form of OpenAI's harmony. Qwen's templates
# give results to the user, and they are left out. An engineer would guess that a mask of the assistant holds its tokens
# alone; in agents' logs results are much of the text, and no target says them. Nothing is raised or logged. For us: a
# drafter is trained on the token ids that the target said; SpecForge's trainer gets chats without calls for gpt-oss.
#
# Seen (specforge 0.2.0, transformers 5.8.1, torch 2.13.0 on a CPU, Python 3.11):
#   functions.weather said '18 degrees and sunny'
#   trained: call True, result True, answer True, question False
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
from specforge.data.preprocessing import preprocess_conversations
from specforge.data.template import TEMPLATE_REGISTRY
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

QUESTION, CALL, RESULT, ANSWER = "How is Rome?", '{"city": "Rome"}', "18 degrees and sunny", "It is sunny."
# The form of openai/harmony's docs/format.md: question, call, the tool's message, answer.
TEXT = (
    f"<|start|>user<|message|>{QUESTION}<|end|>"
    f"<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{CALL}<|call|>"
    f"<|start|>functions.weather to=assistant<|channel|>commentary<|message|>{RESULT}<|end|>"
    f"<|start|>assistant<|channel|>final<|message|>{ANSWER}<|return|>"
)
names = ("start", "channel", "message", "constrain", "end", "call", "return")
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
backend.add_tokens([AddedToken(f"<|{name}|>", normalized=False, special=True) for name in names])
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|return|>")
rows = preprocess_conversations(tokenizer, [TEXT], TEMPLATE_REGISTRY.get("gpt-oss"), is_preformatted=True)
assert tokenizer.decode(rows["input_ids"][0][0].tolist()) == TEXT, "the text is encoded otherwise"
trained = tokenizer.decode(rows["input_ids"][0][rows["loss_mask"][0] == 1].tolist())
found = {"call": CALL in trained, "result": RESULT in trained, "answer": ANSWER in trained, "question": QUESTION in trained}
print(f"functions.weather said {RESULT!r}")
print("trained:", ", ".join(f"{name} {told}" for name, told in found.items()))
assert found == {"call": True, "result": True, "answer": True, "question": False}, "results are left out now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py" 2>/dev/null
