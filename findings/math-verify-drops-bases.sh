#!/usr/bin/env bash
# math-verify 0.9.0 leaves out the base of a number: $11_{2}$ and $11_{3}$, which are 3 and 4, are equal to it and to
# 11, while 3 is not equal to $11_{2}$. A thin space makes a mixed number: $12\,345$, as many models write 12345, is
# 12 + 345, and 357 is equal to it; the comma of $12{,}345$ is read. An engineer would guess that a number in another
# base is another number (MATH asks for such answers), and that LaTeX's own way to part thousands makes one number.
# Nothing is raised or logged. For us: bit-equal answers score equally; where scores of a target and of its quantised
# copy differ, the answers that were judged otherwise are read first.
#
# Seen (math-verify 0.9.0, latex2sympy2_extended 1.11.0, sympy 1.14.0, Python 3.11); verify(reference, answer):
#   $11_{2}$    $11_{3}$   True
#   $11_{2}$    $11$       True
#   $11_{2}$    $3$        False
#   $12345$     $12\,345$  False
#   $357$       $12\,345$  True
#   $12345$     $12{,}345$ True
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq \
  math-verify==0.9.0 latex2sympy2_extended==1.11.0 antlr4-python3-runtime==4.13.2 sympy==1.14.0
cat >"$folder/probe.py" <<'PROBE'
from math_verify import parse, verify

JUDGED = [
    ("$11_{2}$", "$11_{3}$", True),
    ("$11_{2}$", "$11$", True),
    ("$11_{2}$", "$3$", False),
    ("$12345$", r"$12\,345$", False),
    ("$357$", r"$12\,345$", True),
    ("$12345$", "$12{,}345$", True),
]
found = [verify(parse(reference), parse(answer)) for reference, answer, _ in JUDGED]
for (reference, answer, _), equal in zip(JUDGED, found):
    print(f"{reference:11} {answer:10} {equal}")
assert found == [expected for *_, expected in JUDGED], "it judges otherwise now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py"
