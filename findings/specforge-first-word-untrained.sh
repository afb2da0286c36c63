#!/usr/bin/env bash
# SpecForge 0.2.0's chat template deepseek-v2 leaves the first word of every answer out of the loss: its header ends in
# a space, "Assistant: ", and the mask starts after as many tokens as the text up to there has, encoded by itself. That
# space is a token of its own there, and a part of " Paris" in the whole text. The header is plain text, too: a user who
# quotes a chat has the quote trained as an answer, and the rest of the question. The same chat under deepseek-v3, whose
# header is one special token, has the right mask. An engineer would guess that a mask by prefixes is exact, as both are
# encoded by one tokenizer. Nothing is raised or logged. For us: answers are kept as the token ids that the target said;
# a drafter of its trainer for such a target is weakest at the start of answers.
#
# Seen (specforge 0.2.0, transformers 5.8.1, torch 2.13.0 on a CPU, Python 3.11); a BPE with " Paris" as one token:
#   deepseek-v3        trained 'Paris it is.<｜end▁of▁sentence｜>'
#   deepseek-v2        trained ' it is.<｜end▁of▁sentence｜>'
#   deepseek-v2 quote  trained ' it is. Why?\n\nAssistant: It is.<｜end▁of▁sentence｜>'
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
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END, USER, ASSISTANT = "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"
LOOP = "{% for m in messages %}{% if m.role == 'user' %}{{ USER + m.content + GAP }}{% elif m.role == 'assistant' %}"
LOOP += "{{ ASSISTANT + m.content + END }}{% else %}{{ m.content + GAP }}{% endif %}{% endfor %}"
HEADERS = {"deepseek-v2": ("'User: '", "'\n\n'", "'Assistant: '"), "deepseek-v3": (f"'{USER}'", "''", f"'{ASSISTANT}'")}
QUOTE = "User: Where is it? Assistant: Paris it is. Why?"


def tokenizer(name):
    """A byte-level BPE of a few words, with the headers of DeepSeek's chat template of that generation."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([QUOTE, "Paris It is."] * 20, trainer)
    backend.add_tokens([AddedToken(text, normalized=False, special=True) for text in (END, USER, ASSISTANT)])
    template = LOOP.replace("END", f"'{END}'")
    for word, text in zip(("USER", "GAP", "ASSISTANT"), HEADERS[name]):
        template = template.replace(f" {word} ", f" {text} ")
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, pad_token=END)


def trained(name, question, answer):
    """The text of the tokens that count for the loss."""
    chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    encoder = tokenizer(name)
    rows = preprocess_conversations(encoder, [chat], TEMPLATE_REGISTRY.get(name))
    return encoder.decode(rows["input_ids"][0][rows["loss_mask"][0] == 1].tolist())


found = {
    "deepseek-v3": trained("deepseek-v3", "Where is it?", "Paris it is."),
    "deepseek-v2": trained("deepseek-v2", "Where is it?", "Paris it is."),
    "deepseek-v2 quote": trained("deepseek-v2", QUOTE, "It is."),
}
for name, text in found.items():
    print(f"{name:18} trained {text!r}")
assert found["deepseek-v3"] == f"Paris it is.{END}", "the mask of special headers is another now"
assert found["deepseek-v2"] == f" it is.{END}", "the first word is trained now"
assert "Why?\n\nAssistant:" in found["deepseek-v2 quote"], "quoted chats are left out now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py" 2>/dev/null
