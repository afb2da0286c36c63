"""What answers many prompts for the data: the engine here (engine_answers.py) or a server (server_answers.py)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class AnswerRequest:
    """A prompt to answer; ``key`` is handed back with the answer."""

    key: int
    token_ids: Sequence[int]
    temperature: float


@dataclass(frozen=True)
class PromptAnswer:
    """``finish_reason`` is "stop" when the last of ``token_ids`` is an end token, else "length"."""

    key: int
    token_ids: list[int]
    finish_reason: str


class Answerer(Protocol):
    """Whatever answers many prompts."""

    @property
    def facts(self) -> dict[str, Any]:
        """What the data's manifest shall tell of where its answers came from."""
        ...

    def run(self, requests: Iterable[AnswerRequest]) -> Iterator[list[PromptAnswer]]:
        """Answer every request, in any order; yields what has ended since the last time."""
        ...
