#!/usr/bin/env bash
# llguidance 1.9.1's matcher is broken by a token that it refuses: consume_token returns False, and from then on it
# takes no right token and no rollback, and allows the end alone, though the text is not complete. xgrammar stays where
# it stood. An engineer who verifies a draft by consuming it until False, then goes back, loses the grammar for the rest
# of the answer. try_consume_tokens and validate_tokens stop before the wrong token and break nothing; their names say
# little of that. For us: drafts go through try_consume_tokens, as in flashdraft's LarkMatcher.
#
# Seen (llguidance 1.9.1, Python 3.11); after "ab and a token that does not fit:
#   consume_token       error: True   takes c: False  rollback(1): False  the end allowed: True
#   try_consume_tokens  error: False  takes c: True   rollback(1): True   the end allowed: False
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq llguidance==1.9.1
cat >"$folder/probe.py" <<'PROBE'
import llguidance
from llguidance._tokenizer import TokenizerWrapper


class Bytes:
    """One token a byte, and the end."""

    tokens = [bytes([i]) for i in range(256)] + [b"\xff[end]"]
    eos_token_id, bos_token_id = 256, None

    def __call__(self, text):
        return list(text.encode() if isinstance(text, str) else text)


tokenizer = llguidance.LLTokenizer(TokenizerWrapper(Bytes()))
grammar = llguidance.LLMatcher.grammar_from_json_schema({"enum": ["abc", "abd"]})


def state(refuse):
    """(error, whether a right token is taken, whether one is taken back, whether the end is allowed)."""
    matcher = llguidance.LLMatcher(tokenizer, grammar)
    assert matcher.consume_tokens(list(b'"ab'))
    refuse(matcher)
    bits = matcher.compute_bitmask()
    end = bool(bits[256 // 8] >> 256 % 8 & 1)
    return matcher.is_error(), matcher.consume_token(ord("c")), matcher.rollback(1), end


found = {
    "consume_token": state(lambda matcher: matcher.consume_token(ord("x"))),
    "try_consume_tokens": state(lambda matcher: matcher.try_consume_tokens([ord("x")])),
}
for name, (error, taken, back, end) in found.items():
    print(f"{name:19} error: {error!s:5}  takes c: {taken!s:5}  rollback(1): {back!s:5}  the end allowed: {end}")
assert found["consume_token"] == (True, False, False, True), "consume_token behaves otherwise now"
assert found["try_consume_tokens"] == (False, True, True, False), "try_consume_tokens behaves otherwise now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py"
