#!/usr/bin/env bash
# llguidance 1.9.1: where a grammar says what a text may NOT hold, `~/(?s:.*)x(?s:.*)/`, the mask of next tokens has
# special tokens in it that the matcher then refuses, and has "x" too. `~` is the complement among all byte strings, of
# which those that are no UTF-8 never match `.`; a special token is known by a byte that no UTF-8 has. A server that
# samples by the mask so comes to a token that it cannot take. `/(?s:.*)/ & ~/.../` has neither.
#
# Seen (llguidance 1.9.1, Python 3.11):
#   ~/(?s:.*)x(?s:.*)/               in the mask: a True, x True, special True; special tokens taken: 0 of 1
#   /(?s:.*)/ & ~/(?s:.*)x(?s:.*)/   in the mask: a True, x False, special False; special tokens taken: 0 of 1
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq llguidance==1.9.1
cat >"$folder/probe.py" <<'PROBE'
import ctypes

import llguidance
from llguidance._tokenizer import TokenizerWrapper

END, SPECIAL = 256, 257


class Bytes:
    """One token a byte, the end, and one special token."""

    tokens = [bytes([i]) for i in range(256)] + [b"<end>", b"<mask>"]
    eos_token_id, bos_token_id = END, None
    special_token_ids = [END, SPECIAL]

    def __call__(self, text):
        return list(text.encode() if isinstance(text, str) else text)


tokenizer = llguidance.LLTokenizer(TokenizerWrapper(Bytes()), eos_token=[END])
without = "~/(?s:.*)x(?s:.*)/"
for rule, expected in ((without, (True, True, True)), (f"/(?s:.*)/ & {without}", (True, False, False))):
    matcher = llguidance.LLMatcher(tokenizer, f"start: TEXT\nTEXT: {rule}")
    mask = (ctypes.c_uint32 * 9)()
    matcher.unsafe_compute_mask_ptr(ctypes.addressof(mask), ctypes.sizeof(mask))
    assert not matcher.is_error()
    allowed = tuple(bool(mask[token // 32] >> token % 32 & 1) for token in (ord("a"), ord("x"), SPECIAL))
    taken = matcher.try_consume_tokens([SPECIAL])
    told = "in the mask: a {}, x {}, special {}".format(*allowed)
    print(f"{rule:<32} {told}; special tokens taken: {taken} of 1")
    assert (allowed, taken) == (expected, 0), "it behaves otherwise now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py"
