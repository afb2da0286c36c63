"""More prompts out of those that there are: other numbers, other instructions, functions to be written.

A benchmark's instruction may stand behind a prompt here; its questions never do. Every variant's id is the first
prompt's with marks behind it, so it is held back from training where that one is.
"""

import ast
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from flashdraft.data.prompts import Prompt

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
INSTRUCTIONS = (
    BOXED, "Show your work.", "Explain your reasoning.", "Give the final answer on its own line.",
    "Solve this problem step by step.",
)  # fmt: skip
CHANGED = {"math-gsm8k-train": 4, "math-hendrycks-math": 1}  # how often a prompt comes with other numbers
FUNCTION = (
    "Write a solution to the following problem and make sure that it passes the tests:\n```python\n{}\n```"
)
HEADERS = ("", "", "", "from typing import List\n\n\n", "\n\n", "import math\n\n\n")
DEFINITION = re.compile(r"(?:^|\n)(def \w+\([^`]*?\)[^:\n]*:\n +r?\"\"\"[^`]*?\"\"\")")
NUMBER = re.compile(r"(?<![\w\\.])\d{1,6}(?![\w.]*\d)")


def variants(prompts: Sequence[Prompt], rng: random.Random) -> Iterator[Prompt]:
    """Mathematics with other numbers and the benchmarks' instruction, functions as HumanEval and MBPP ask for them."""
    for prompt in prompts:
        text = prompt.messages[0]["content"]
        if prompt.source in CHANGED:
            yield from _mathematics(prompt, text, rng)
        elif prompt.source == "code-python-functions":
            for found in DEFINITION.findall(text)[:1]:
                yield _with(prompt, 1, "functions", FUNCTION.format(rng.choice(HEADERS) + found + "\n"))
        elif prompt.source == "code-mbpp-train":
            yield from _described(prompt, text, rng)


def changed_numbers(text: str, rng: random.Random) -> str:
    """``text`` with each whole number above 1 replaced, the same one by the same, by one of half to double its size."""
    others: dict[str, str] = {}

    def other(match: re.Match[str]) -> str:
        digits = match.group()
        number = int(digits)
        if number < 2 or digits[0] == "0":
            return digits
        return others.setdefault(digits, str(rng.randint(max(2, number // 2), 2 * number + 1)))

    return NUMBER.sub(other, text)


def _mathematics(prompt: Prompt, text: str, rng: random.Random) -> Iterator[Prompt]:
    question = text
    for instruction in INSTRUCTIONS:
        question = question.removesuffix(instruction).strip()
    name = prompt.source.removeprefix("math-")
    if not text.endswith(BOXED):
        yield _with(prompt, 1, name, f"{question}\n{BOXED}")
    if "[asy]" in question or not NUMBER.search(question):
        return
    for number in range(CHANGED[prompt.source]):
        changed = changed_numbers(question, rng)
        if changed != question:
            yield _with(prompt, 2 + number, f"{name}-changed", f"{changed}\n{BOXED}")


def _described(prompt: Prompt, text: str, rng: random.Random) -> Iterator[Prompt]:
    """An MBPP task by its description alone, and as a function whose docstring has the tests."""
    task, _, code = text.partition("\nYour code should pass these tests:")
    yield _with(prompt, 1, "descriptions", task.strip())
    calls = [_call(line) for line in code.splitlines() if line.startswith("assert ")]
    if calls and all(calls):
        name, count, _, _ = calls[0]
        arguments = ", ".join(rng.sample("abcdefgnsxy", min(count, 9)))
        examples = "".join(f"    >>> {source}\n    {result}\n" for _, _, source, result in calls[:2])
        found = f'def {name}({arguments}):\n    """ {task.strip()}\n{examples}    """\n'
        yield _with(prompt, 2, "functions", FUNCTION.format(rng.choice(HEADERS) + found))


def _call(line: str) -> tuple[str, int, str, str] | None:
    """Of ``assert f(a, b) == c``: name, number of arguments, the call and what it returns; None of another shape."""
    try:
        statement = ast.parse(line).body[0]
    except SyntaxError:
        return None
    match statement:
        case ast.Assert(
            test=ast.Compare(left=ast.Call(func=ast.Name(id=name)) as call, comparators=[result])
        ):
            return name, len(call.args), ast.unparse(call), ast.unparse(result)
    return None


def _with(prompt: Prompt, marks: int, name: str, content: str) -> Prompt:
    kind = prompt.source.split("-", 1)[0]
    messages = ({"role": "user", "content": content},)
    return replace(prompt, id=prompt.id + "+" * marks, source=f"{kind}-{name}+", messages=messages)
