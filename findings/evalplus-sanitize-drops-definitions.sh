#!/usr/bin/env bash
# evalplus 0.3.1 rewrites every answer of a model before its tests run (codegen calls sanitize): at the top level it
# keeps imports, classes, plain assignments and functions that hold a `return`, the first of each name. A decorated
# function, one that only appends to its argument, `A, B = 1, 2`, a loop that fills a table and a corrected second
# definition are dropped in silence, and a right answer fails. An engineer would guess that prose and prints are cut
# away, and that code which runs still runs. Answers with `@lru_cache` or a helper of backtracking are common, so pass@1
# of HumanEval+ and MBPP+ moves with a model's style. For us: bit-equal answers score equally, but scores of a target
# that answers otherwise (another prompt, thinking on) are no measure of what it can; look at the unsanitized file.
#
# Seen (evalplus 0.3.1, tree-sitter-python 0.25.0, Python 3.11); add(1, 2) should be 3:
#   as written             3  sanitized 3
#   decorated helper       3  sanitized NameError
#   helper without return  3  sanitized NameError
#   two names at once      3  sanitized NameError
#   table filled by a loop 3  sanitized KeyError
#   corrected definition   3  sanitized -1
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq \
  numpy==2.4.6 appdirs==1.4.4 tempdir==0.7.1 termcolor==3.3.0 wget==3.2 tqdm==4.70.1 tree-sitter==0.26.1 tree-sitter-python==0.25.0 \
  datasets==5.2.0 psutil==7.2.2
"$folder/venv/bin/python" -m pip install -qq --no-deps evalplus==0.3.1
cat >"$folder/probe.py" <<'PROBE'
from evalplus.sanitize import sanitize

ANSWERS = {
    "as written": "def add(a, b):\n    return a + b\n",
    "decorated helper": "from functools import cache\n\n@cache\ndef same(n):\n    return n\n\n"
    "def add(a, b):\n    return same(a) + same(b)\n",
    "helper without return": "def collect(n, found):\n    found.append(n)\n\n"
    "def add(a, b):\n    found = []\n    collect(a, found)\n    collect(b, found)\n    return sum(found)\n",
    "two names at once": "START, STEP = 0, 1\n\ndef add(a, b):\n    return START + a + b * STEP\n",
    "table filled by a loop": "TABLE = {}\nfor n in range(9):\n    TABLE[n] = n\n\n"
    "def add(a, b):\n    return TABLE[a] + TABLE[b]\n",
    "corrected definition": "def add(a, b):\n    return a - b\n\ndef add(a, b):\n    return a + b\n",
}


def result(code):
    """add(1, 2) by this code, or the name of the error."""
    names = {}
    try:
        exec(code, names)
        return names["add"](1, 2)
    except Exception as error:
        return type(error).__name__


found = {name: (result(code), result(sanitize(code, entrypoint="add"))) for name, code in ANSWERS.items()}
for name, (written, sanitized) in found.items():
    print(f"{name:22} {written}  sanitized {sanitized}")
assert all(written == 3 for written, _ in found.values()), "the answers are wrong"
expected = [3, "NameError", "NameError", "NameError", "KeyError", -1]
assert [sanitized for _, sanitized in found.values()] == expected, "it keeps other definitions now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py"
