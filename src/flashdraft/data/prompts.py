"""Training prompts: JSON lines, plain or gzipped, one file or a folder of them."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashdraft.errors import DataError

_TURN = "+"  # at the end of an id: a later turn of the same conversation


@dataclass(frozen=True)
class Prompt:
    """One conversation to be answered by the target; ``next_turns``: what the user says after its answers."""

    id: str
    source: str
    messages: tuple[dict[str, str], ...]
    next_turns: tuple[str, ...] = ()

    def after(self, answer: str) -> "Prompt":
        """The conversation at its next turn."""
        said = ({"role": "assistant", "content": answer}, {"role": "user", "content": self.next_turns[0]})
        return Prompt(self.id + _TURN, self.source, (*self.messages, *said), self.next_turns[1:])


def conversation_of(prompt_id: str) -> str:
    """The id of a turn's conversation."""
    return prompt_id.rstrip(_TURN)


def read_prompts(path: str | Path) -> list[Prompt]:
    """All prompts of a ``.jsonl`` / ``.jsonl.gz`` file or of every such file in a folder, in name order.

    A line holds ``prompt`` (a text), ``turns`` (what the user says, turn by turn) or ``messages`` (role and content),
    and optional ``id`` and ``source``. Raises DataError for a path without such files, a line that is none of these, or
    an id that stands twice.
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
    return (parse_prompt(row, place, stem, number) for place, number, row in read_lines(file))


def read_lines(file: Path) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """The objects of a JSON lines file, plain or gzipped, each with its place for messages and its line number.

    Raises DataError for a file that cannot be read and a line that is no object.
    """
    opener: Any = gzip.open if file.name.endswith(".gz") else open
    try:
        with opener(file, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{file}:{number}", number, _object(line, f"{file}:{number}")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as JSON lines ({error})") from error


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not a JSON object ({error})") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: found a JSON {type(row).__name__}; expected an object")
    return row


def parse_prompt(row: Mapping[str, Any], place: str, source: str, number: int) -> Prompt:
    """The prompt of one line, see :func:`read_prompts`."""
    turns = row.get("turns", [row.get("prompt")])
    messages = row.get("messages")
    if not isinstance(messages, list):
        if not isinstance(turns, list) or not turns or not all(isinstance(t, str) and t for t in turns):
            raise DataError(
                f"{place}: found keys {sorted(row)}; expected a text under prompt, turns or messages"
            )
        messages, turns = [{"role": "user", "content": turns[0]}], turns[1:]
    else:
        turns = []
    name = str(row.get("id", number)).rstrip(_TURN)
    return Prompt(f"{source}/{name}", source, tuple(messages), tuple(turns))


def encode_prompts(
    tokenizer: Any, prompts: Sequence[Prompt], template_kwargs: Mapping[str, Any]
) -> list[list[int]]:
    """Token ids of each prompt through the chat template, ready for the answer.

    A model that was not taught to chat goes on with the text.
    """
    if tokenizer.chat_template:
        texts = [
            tokenizer.apply_chat_template(
                list(p.messages), add_generation_prompt=True, tokenize=False, **template_kwargs
            )
            for p in prompts
        ]
    else:
        texts = ["\n\n".join(message["content"] for message in p.messages) for p in prompts]
    token_ids: list[list[int]] = tokenizer(texts, add_special_tokens=not tokenizer.chat_template)["input_ids"]
    return token_ids
