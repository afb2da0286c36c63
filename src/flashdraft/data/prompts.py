"""Training prompts: JSON lines, plain or gzipped, one file or a folder of them."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashdraft.errors import DataError


@dataclass(frozen=True)
class Prompt:
    """One conversation to be answered by the target."""

    id: str
    source: str
    messages: tuple[dict[str, str], ...]


def read_prompts(path: str | Path) -> list[Prompt]:
    """All prompts of a ``.jsonl`` / ``.jsonl.gz`` file or of every such file in a folder, in name order.

    A line holds ``prompt`` (a text), ``turns`` (the first is used) or ``messages`` (role and content), and optional
    ``id`` and ``source``. Raises DataError for a path without such files, a line that is none of these, or an id
    that stands twice.
    """
    path = Path(path)
    files = sorted(f for f in path.iterdir() if _is_prompts(f)) if path.is_dir() else [path]
    if not files or not all(f.is_file() for f in files):
        raise DataError(f"{path}: no prompts found; expected a .jsonl or .jsonl.gz file, or a folder of them")
    prompts = [prompt for file in files for prompt in _read_file(file)]
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise DataError(f"{path}: the prompt id {prompt.id!r} stands twice; expected each id once")
        seen.add(prompt.id)
    return prompts


def group_of(source_file_stem: str) -> str:
    """``math`` of ``math-gsm8k-train``: the part before the first dash names the kind of text."""
    return source_file_stem.split("-", 1)[0]


def _is_prompts(file: Path) -> bool:
    return file.name.endswith((".jsonl", ".jsonl.gz"))


def _read_file(file: Path) -> Iterator[Prompt]:
    stem = file.name.removesuffix(".gz").removesuffix(".jsonl")
    opener: Any = gzip.open if file.name.endswith(".gz") else open
    try:
        with opener(file, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _parse(line, f"{file}:{number}", stem, number)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as JSON lines ({error})") from error


def _parse(line: str, place: str, stem: str, number: int) -> Prompt:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not a JSON object ({error})") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: found a JSON {type(row).__name__}; expected an object")
    if isinstance(row.get("messages"), list):
        messages = tuple(row["messages"])
    else:
        turns = row.get("turns")
        text = row.get("prompt") if turns is None else (turns[0] if turns else None)
        if not isinstance(text, str) or not text:
            raise DataError(
                f"{place}: found keys {sorted(row)}; expected a text under prompt, turns or messages"
            )
        messages = ({"role": "user", "content": text},)
    return Prompt(f"{stem}/{row.get('id', number)}", stem, messages)
