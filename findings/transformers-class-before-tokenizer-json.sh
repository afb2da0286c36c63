#!/usr/bin/env bash
# transformers 5.23.0's AutoTokenizer takes of tokenizer.json the vocabulary and the merges alone, where the class of
# tokenizer_config.json, or of config.json's model_type, is one of its own: Qwen2Tokenizer, GPT2Tokenizer and others
# build their own pattern, normalizer and decoder around them. So a tokenizer.json that cuts text otherwise gives other
# tokens than it says: numbers in threes become single digits; Qwen3.5's, whose config names Qwen2Tokenizer, cuts Hindi
# by Qwen2's pattern once it is copied without config.json; and PreTrainedTokenizerFast, named to prevent that, is passed
# over beside a config.json of qwen3_5. Nothing is raised or logged. Up to version 4, and still for LlamaTokenizer with
# bytes, tokenizer.json says all of it, and so tokenizers and llama.cpp read it; vLLM and SGLang ask AutoTokenizer. For
# us: flashdraft takes tokenizer.json as it stands; prompts are compared with those engines by token ids.
#
# Seen (transformers 5.23.0, tokenizers 0.23.3, Python 3.11); number of tokens by tokenizer.json, and by AutoTokenizer:
#   numbers in threes  Qwen2Tokenizer           qwen3    '2026' 2, 4
#   numbers in threes  PreTrainedTokenizerFast  qwen3    '2026' 2, 2
#   numbers in threes  PreTrainedTokenizerFast  qwen3_5  '2026' 2, 4
#   numbers in threes  LlamaTokenizer           llama    '2026' 2, 2
#   Qwen3.5's pattern  Qwen2Tokenizer           qwen3_5  'हिन्दी' 3, 3
#   Qwen3.5's pattern  Qwen2Tokenizer           none     'हिन्दी' 3, 10
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq transformers==5.23.0 tokenizers==0.23.3 numpy==2.4.6
cat >"$folder/probe.py" <<'PROBE'
import json
import tempfile
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {
    "numbers in threes": QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|", 1),
    "Qwen3.5's pattern": QWEN2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(
        r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"
    ),
}
END, HINDI = "<|endoftext|>", "हिन्दी"


def trained(pattern):
    """A byte-level tokenizer that cuts text by a pattern, as Qwen's do, with merges that it learned of such cuts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=[END], show_progress=False
    )
    tokenizer.train_from_iterator([f"2026 2026 2025 {HINDI} {HINDI} naïve fine naïve"] * 5, trainer)
    return tokenizer


threes, qwen35 = PATTERNS
for name, cls, model_type, text, expected in [
    (threes, "Qwen2Tokenizer", "qwen3", "2026", (2, 4)),
    (threes, "PreTrainedTokenizerFast", "qwen3", "2026", (2, 2)),
    (threes, "PreTrainedTokenizerFast", "qwen3_5", "2026", (2, 4)),
    (threes, "LlamaTokenizer", "llama", "2026", (2, 2)),
    (qwen35, "Qwen2Tokenizer", "qwen3_5", HINDI, (3, 3)),
    (qwen35, "Qwen2Tokenizer", None, HINDI, (3, 10)),
]:
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        trained(PATTERNS[name]).save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": cls, "eos_token": END}))
        if model_type:
            (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        stored, auto = Tokenizer.from_file(str(folder / "tokenizer.json")), AutoTokenizer.from_pretrained(folder)
        counts = len(stored.encode(text).ids), len(auto.encode(text, add_special_tokens=False))
    print(f"{name}  {cls:24} {str(model_type).lower():8} {text!r} {counts[0]}, {counts[1]}")
    assert counts == expected, "tokenizer.json is read otherwise now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py" 2>/dev/null
