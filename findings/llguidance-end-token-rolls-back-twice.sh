#!/usr/bin/env bash
# llguidance 1.9.1's rollback does not count the end token that consume_token took: after "abc" and the end, rollback(1)
# takes back both the end and the last token before it, and rollback of all that was consumed fails and leaves the
# matcher in error. A draft that holds an end token is walked and taken back in each round of speculative decoding, and
# rollback(number of tokens) then leaves the grammar one token behind the answer. xgrammar 0.2.8 counts its stop token.
# Nothing is raised. For us: an end token is never handed to llguidance; flashdraft's LarkMatcher keeps count of it
# itself.
#
# Seen (llguidance 1.9.1, Python 3.11); what may come next after rollback:
#   5 tokens           rollback(1)  taken back: True   next ['"']
#   5 tokens, the end  rollback(1)  taken back: True   next ['"'], where the end was expected
#   5 tokens           rollback(5)  taken back: True   next ['"']
#   5 tokens, the end  rollback(6)  taken back: False  error: True
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


def after(num_ends, count):
    """Whether ``count`` tokens were taken back, what may come next, and whether the matcher has failed."""
    matcher = llguidance.LLMatcher(tokenizer, grammar)
    tokens = [*b'"abc"', *[256] * num_ends]
    assert all(matcher.consume_token(token) for token in tokens) and not matcher.is_error()
    done = matcher.rollback(count)
    following = [] if matcher.is_error() else [chr(byte) for byte in b'"abcd' if matcher.validate_tokens([byte])]
    return done, following, matcher.is_error()


one = (True, ['"'], False)
for num_ends, count, expected in [(0, 1, one), (1, 1, one), (0, 5, one), (1, 6, (False, [], True))]:
    found = after(num_ends, count)
    name = "5 tokens, the end" if num_ends else "5 tokens"
    where = ", where the end was expected" if (num_ends, count) == (1, 1) else ""
    ending = "error: True" if found[2] else f"next {found[1]}{where}"
    print(f"{name:18} rollback({count})  taken back: {found[0]!s:5}  {ending}")
    assert found == expected, "it behaves otherwise now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py"
