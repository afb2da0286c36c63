#!/usr/bin/env bash
# tokenizers 0.23.3 decodes a run of byte tokens as one: where the run is not UTF-8 as a whole, each byte of it becomes
# a replacement character, the good ones too. Llama 2's and Gemma's newline is such a byte token, so an answer cut
# within a character after a newline loses the newline. bytes.decode(errors="replace") would keep it. DecodeStream, made
# for streaming, has sent the newline by then: a further token raises "Invalid prefix encountered", a plain Exception,
# in the middle of a valid answer. For us: streamed text keeps the newline, and is not what decoding all tokens at once
# gives.
#
# Seen (tokenizers 0.23.3, Python 3.11):
#   ['▁Yes', '.', '<0x0A>']                     decode 'Yes.\n'   stream 'Yes.\n'
#   ['▁Yes', '.', '<0x0A>', '<0xE2>', '<0x82>'] decode 'Yes.���'  stream 'Yes.\n'
#   ['▁Yes', '.', '<0x0A>', '<0xE2>', '▁Yes']   decode 'Yes.�� Yes' stream 'Yes.\n' then Exception: Invalid
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq tokenizers==0.23.3
cat >"$folder/probe.py" <<'PROBE'
from tokenizers import Tokenizer, decoders, models
from tokenizers.decoders import DecodeStream

tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁Yes", "."]
vocabulary = {token: i for i, token in enumerate(tokens)}
tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
tokenizer.decoder = decoders.Sequence(  # Llama 2's, as transformers converts it
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)


def streamed(ids):
    """The text that comes token by token, and the error that ends it."""
    stream, text = DecodeStream(skip_special_tokens=True), ""
    for token_id in ids:
        try:
            text += stream.step(tokenizer, token_id) or ""
        except Exception as error:
            return text, str(error)
    return text, ""


start = ["▁Yes", ".", "<0x0A>"]
cases = [
    (start, "Yes.\n", ""),
    ([*start, "<0xE2>", "<0x82>"], "Yes.\ufffd\ufffd\ufffd", ""),
    ([*start, "<0xE2>", "▁Yes"], "Yes.\ufffd\ufffd Yes", "Invalid prefix encountered"),
]
for names, expected, error in cases:
    ids = [vocabulary[name] for name in names]
    text, raised = streamed(ids)
    ending = f" then Exception: {raised[:7]}" if raised else ""
    print(f"{names!s:43} decode {tokenizer.decode(ids)!r:9} stream {text!r}{ending}")
    assert tokenizer.decode(ids) == expected and text == "Yes.\n", "it behaves otherwise now"
    assert raised.startswith(error) and bool(raised) == bool(error), "it behaves otherwise now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py"
