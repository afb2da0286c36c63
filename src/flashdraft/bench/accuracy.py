"""Is an answer right? GSM8K and MATH-500 by their final answer, HumanEval and MBPP by their tests.

Final answers are compared as strings in one spelling, then as numbers; it is the rule of the MATH benchmark
(hendrycks/math, arXiv 2103.03874), so an equal value in another form (2x+2 for 2(x+1)) counts as wrong. Where the
package math-verify is installed, its rule is asked too, and scores are comparable with those that are graded by it.
"""

import re
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from flashdraft.bench.sandbox import passes
from flashdraft.bench.tasks import BenchPrompt

_CODE_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_DROPPED = re.compile(r"\\(?:left|right|!|,|;|:| |quad|displaystyle)(?![a-z])|\\?\$|\\?%|\^\{?\\circ\}?|\s")
_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf)\{([^{}]*)\}")


def is_correct(prompt: BenchPrompt, text: str) -> bool | None:
    """Whether ``text`` answers the prompt; None for prompts without one right answer (MT-Bench)."""
    reference: dict[str, Any] = prompt.reference if isinstance(prompt.reference, dict) else {}
    if "entry_point" in reference:
        return passes(humaneval_program(reference, text))
    if "test_list" in reference:
        return passes("\n".join([*reference["test_imports"], code_of(text), *reference["test_list"]]))
    if "answer" in reference:
        given = final_answer(text)
        return given is not None and same_answer(given, str(reference["answer"]))
    return None


def humaneval_program(reference: dict[str, Any], text: str) -> str:
    """The answer's function and its tests; an answer that is only the body continues the prompt."""
    code, name = code_of(text), reference["entry_point"]
    defines = re.search(rf"^def {re.escape(name)}\b", code, re.MULTILINE)
    # The prompt's imports and helper functions are there in either case.
    head = reference["prompt"] + ("\n    pass\n" if defines else "")
    return f"{head}\n{code}\n{reference['test']}\ncheck({name})\n"


def code_of(text: str) -> str:
    """The Python of an answer: its fenced blocks, or all of it where there are none."""
    blocks: list[str] = _CODE_BLOCK.findall(text)
    return "\n".join(blocks) if blocks else text


def final_answer(text: str) -> str | None:
    r"""What the last \boxed{} holds, or else the last number; None where there is neither."""
    start = text.rfind("\\boxed{")
    if start >= 0:
        depth = 0
        for end in range(start + len("\\boxed"), len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[start + len("\\boxed{") : end]
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def same_answer(given: str, wanted: str) -> bool:
    """Whether two final answers are equal: in one spelling, or as numbers."""
    left, right = _spelled(given), _spelled(wanted)
    if left == right:
        return True
    values = _value(left), _value(right)
    return (values[0] is not None and values[0] == values[1]) or _equal_by_math_verify(given, wanted)


def math_grader() -> str:
    """What compares final answers on this machine, for the report."""
    try:
        return f"the MATH benchmark's rule and math-verify {version('math-verify')}"
    except PackageNotFoundError:
        return "the MATH benchmark's rule"


def _equal_by_math_verify(given: str, wanted: str) -> bool:
    try:
        from math_verify import parse, verify
    except ImportError:
        return False
    left, right = (parse(f"${answer}$") for answer in (wanted, given))
    return bool(verify(left, right))


def _spelled(answer: str) -> str:
    answer = _TEXT.sub(r"\1", answer.replace("dfrac", "frac").replace("tfrac", "frac"))
    answer = _DROPPED.sub("", answer).rstrip(".")
    answer = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", answer)
    answer = re.sub(r"\\sqrt(\d)", r"\\sqrt{\1}", answer)
    # x = 5 is 5, but an equation of two sides stays one.
    return re.sub(r"^[a-zA-Z]=", "", answer)


def _value(answer: str) -> Fraction | None:
    plain = re.sub(r"^(-?)\\frac\{(-?\d+)\}\{(\d+)\}$", r"\1\2/\3", answer)
    plain = re.sub(r"(?<=\d),(?=\d{3}(?:\D|$))", "", plain)
    try:
        return Fraction(plain)
    except (ValueError, ZeroDivisionError):
        return None
