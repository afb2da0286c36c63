"""Logged requests: what a server answered, one JSON line each; written on request only, read to tune a drafter.

The reader also takes other people's logs: OpenAI's messages with or without the answer, prompts alone.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from errno import ENOSPC
from pathlib import Path
from typing import Any

from flashdraft.data.conversations import BadRowError
from flashdraft.data.on_policy import Document
from flashdraft.data.prompt_files import read_lines
from flashdraft.data.prompts import Prompt, encode_prompts, parse_prompt
from flashdraft.errors import DataError, UsageError

SOURCE = "requests"  # of what came from a log


class RequestLog:
    """Appends answered requests to a file that only its owner may read: it holds what people wrote.

    Raises UsageError for a file that cannot be written.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            os.close(self._open())
            if file.is_file():
                _end_last_line(file)
        except OSError as error:
            raise UsageError(f"the request log {file} cannot be written: {error.strerror}") from None

    def write(
        self,
        messages: Sequence[dict[str, Any]],
        prompt_token_ids: Sequence[int],
        answer_token_ids: Sequence[int],
        finish_reason: str,
        temperature: float,
    ) -> None:
        """Append one request; ``messages`` is empty where it was no chat. Raises OSError."""
        line = {
            "messages": list(messages),
            "prompt_token_ids": list(prompt_token_ids),
            "answer_token_ids": list(answer_token_ids),
            "finish_reason": finish_reason,
            "temperature": temperature,
        }
        # Half a surrogate pair, which is no UTF-8, becomes JSON's own \\ud800.
        self._append((json.dumps(line, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))

    def _append(self, line: bytes) -> None:
        descriptor = self._open()  # for every line: the file may be moved away meanwhile
        try:
            size = os.fstat(descriptor).st_size
            try:
                written = os.write(descriptor, line)
                if written < len(line):
                    raise OSError(ENOSPC, os.strerror(ENOSPC))
            except OSError:  # a full disk takes a part of a line: the file stays readable without it
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        return os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def _end_last_line(file: Path) -> None:
    """Make ``file`` one of whole lines: end a last line that is whole, take away one that was cut off."""
    with file.open("r+b") as log:
        size = log.seek(0, os.SEEK_END)
        start, tail = size, b""
        while start and b"\n" not in tail:
            step = min(start, 1 << 16)
            start -= step
            log.seek(start)
            tail = log.read(step) + tail
        last = tail.rpartition(b"\n")[2]
        if not last:
            return
        try:
            json.loads(last)
        except ValueError:
            log.truncate(size - len(last))
        else:
            log.seek(0, os.SEEK_END)
            log.write(b"\n")


@dataclass(frozen=True)
class Requests:
    """What a log holds, equal prompts once: requests with their answers, and prompts still to be answered."""

    answered: list[Document]
    unanswered: list[Prompt]
    num_repeated: int  # lines left out because their prompt stood before


def read_requests(file: Path, tokenizer: Any, eos_token_ids: Sequence[int]) -> Requests:
    """The requests of a JSON lines file (plain or gzipped), in its order.

    A line holds ``prompt_token_ids`` and ``answer_token_ids`` as :class:`RequestLog` writes them, or ``messages`` or
    ``prompt``. Their answer is the last message where the assistant said it, ``choices`` as OpenAI answers (on top or
    under ``response``), or a text under ``answer``; texts are tokenized anew. Raises DataError for a line that is
    none of these and for a file without requests.
    """
    answered: dict[tuple[int, ...], Document] = {}
    unanswered: dict[tuple[int, ...], Prompt] = {}
    num_lines = 0
    for place, number, row in read_lines(file):
        num_lines += 1
        name = str(number if row.get("id") is None else row["id"])
        temperature = float(_setting(row, "temperature", (int, float), place) or 0)
        finish_reason = _setting(row, "finish_reason", (str,), place) or "stop"
        if row.get("prompt_token_ids") and row.get("answer_token_ids"):
            prompt, answer = (
                _token_ids(row, "prompt_token_ids", place),
                _token_ids(row, "answer_token_ids", place),
            )
        else:
            asked, said = _split(row, place)
            try:
                parsed = parse_prompt(asked, place, SOURCE, number)
            except BadRowError as error:
                raise DataError(f"{place}: {error}") from None
            one = replace(parsed, source=SOURCE)
            [prompt] = encode_prompts(tokenizer, [one], {})
            if said is None:
                unanswered.setdefault(tuple(prompt), one)
                continue
            answer = tokenizer(said, add_special_tokens=False)["input_ids"]
            if finish_reason == "stop":
                answer = [*answer, eos_token_ids[0]] if eos_token_ids else answer
        document = Document(name, SOURCE, temperature, prompt, answer, finish_reason)
        answered.setdefault(tuple(prompt), document)
    if not num_lines:
        raise DataError(f"{file}: no requests found; expected a JSON object a line")
    left = [one for ids, one in unanswered.items() if ids not in answered]
    return Requests(list(answered.values()), left, num_lines - len(answered) - len(left))


def _token_ids(row: dict[str, Any], name: str, place: str) -> list[int]:
    ids = row[name]
    if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
        raise DataError(f"{place}: {name} is no list of token ids")
    return list(ids)


def _setting(row: dict[str, Any], name: str, kinds: tuple[type, ...], place: str) -> Any:
    """A line's value of one of ``kinds``, None where it has none. Raises DataError."""
    value = row.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
        expected = "a text" if str in kinds else "a number"
        raise DataError(f"{place}: {name} is {value!r}; expected {expected}, or leave it out")
    return value


def _split(row: dict[str, Any], place: str) -> tuple[dict[str, Any], str | None]:
    """What was asked, and the answer's text where the line tells one."""
    told = row.get("response", row)
    choices = told.get("choices") if isinstance(told, dict) else None
    messages: Any = row.get("messages")
    if choices:
        try:
            name, said = "choices[0].message.content", choices[0]["message"]["content"]
            return row, _setting({name: said}, name, (str,), place)
        except (KeyError, TypeError, IndexError):
            raise DataError(
                f"{place}: choices are not as OpenAI has them: choices[0].message.content"
            ) from None
    last = messages[-1] if isinstance(messages, list) and messages else None
    if isinstance(last, dict) and last.get("role") == "assistant" and isinstance(last.get("content"), str):
        return row | {"messages": messages[:-1]}, last["content"]
    return row, _setting(row, "answer", (str,), place)
