"""Prompts of the user's own for a benchmark, a file as SPEED-Bench has them: JSON lines, by category."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flashdraft.bench.tasks import BenchPrompt
from flashdraft.errors import DataError, UsageError

_PLACEHOLDER = (
    "FULL BENCHMARK DATA SHOULD BE FETCHED"  # in place of texts that SPEED-Bench may not carry itself
)


def load_prompt_file(path: Path, categories: Sequence[str] = ()) -> dict[str, list[BenchPrompt]]:
    """The prompts of each category in the file's order; of ``categories`` alone where some are named.

    A line is ``{"question_id", "category", "turns": [text, ...]}``, or has ``messages`` of the user in place of turns;
    a line without a category is of "prompts". Raises DataError with file and line for any other, UsageError for a
    category that no line has.
    """
    try:
        text = path.read_text(
            encoding="utf-8-sig"
        )  # a byte order mark, as Windows' tools write it, is left out
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); expected a file of JSON lines") from None
    found: dict[str, list[BenchPrompt]] = {}
    for number, line in enumerate(text.split("\n"), 1):  # JSON's texts may hold the other ends of lines
        if line.strip():
            prompt = _prompt(line, f"{path}:{number}", str(number))
            found.setdefault(prompt.category or "prompts", []).append(prompt)
    if not found:
        raise DataError(f"{path} has no prompts; expected JSON lines with question_id, category and turns")
    for name in categories:
        if name not in found:
            raise UsageError(f"--tasks names {name!r}; {path} has the categories {', '.join(found)}")
    return {name: found[name] for name in categories or found}


def _prompt(line: str, where: str, number: str) -> BenchPrompt:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("category") or "", str):
        raise DataError(f"{where} is no object with a category; expected question_id, category and turns")
    turns = row.get("turns")
    if turns is None and isinstance(row.get("messages"), list):
        turns = [_user_text(message, where) for message in row["messages"]]
    if not (
        isinstance(turns, list) and turns and all(isinstance(text, str) and text.strip() for text in turns)
    ):
        raise DataError(f"{where} has no turns; expected a list of texts, what the user says turn by turn")
    if any(text.startswith(_PLACEHOLDER) for text in turns):
        raise DataError(f"{where} has a placeholder for its text; fetch the data as SPEED-Bench's page says")
    name = row.get("question_id")
    return BenchPrompt(str(number if name is None else name), tuple(turns), category=row.get("category"))


def _user_text(message: Any, where: str) -> Any:
    if not isinstance(message, dict) or message.get("role") != "user":
        role = message.get("role") if isinstance(message, dict) else message
        raise DataError(f"{where} has a message of {role!r}; expected the user's alone, turn by turn")
    return message.get("content")
