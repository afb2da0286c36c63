"""Training prompts: conversations that the target answers, read from chat data and told through its template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from flashdraft.data.conversations import BadRowError, Message, Regenerate, parse_conversation
from flashdraft.data.prompt_files import Row, read_rows
from flashdraft.errors import DataError

_TURN = "+"  # at the end of an id: a later turn of the same conversation


@dataclass(frozen=True)
class Prompt:
    """One conversation to be answered by the target; ``next_turns``: what the user says after its answers."""

    id: str
    source: str
    messages: tuple[Message, ...]
    next_turns: tuple[str, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    place: str = field(default="", compare=False)  # file and row, for messages
    num_left_out: int = field(default=0, compare=False)  # the row's own answers that the target makes anew
    num_kept: int = field(default=0, compare=False)  # those that stay before the answer, as they are

    def after(self, answer: str) -> "Prompt":
        """The conversation at its next turn."""
        said = ({"role": "assistant", "content": answer}, {"role": "user", "content": self.next_turns[0]})
        messages = (*self.messages, *said)
        return Prompt(self.id + _TURN, self.source, messages, self.next_turns[1:], self.tools, self.place)


@dataclass(frozen=True)
class PromptSet:
    """What chat data held. ``bad``: a line for each row that cannot be asked, with its place."""

    prompts: list[Prompt]
    bad: list[str]

    @property
    def num_rows(self) -> int:
        """Rows read, bad ones too."""
        return len(self.prompts) + len(self.bad)


def conversation_of(prompt_id: str) -> str:
    """The id of a turn's conversation."""
    return prompt_id.rstrip(_TURN)


def collect_prompts(path: str | Path, regenerate: Regenerate = "last", split: str | None = None) -> PromptSet:
    """All prompts of a file or folder (:func:`flashdraft.data.prompt_files.read_rows`), and which rows are none.

    A row holds ``messages`` (role and content), ``conversations`` (ShareGPT), ``prompt`` (a text), ``turns`` (what the
    user says, turn by turn) or ``instruction``; optional ``tools``, ``id`` and ``source`` (else the file's name).
    ``regenerate``: which of the row's own answers the target makes anew. "last": the turn that ends the row, and what
    stands before it is context; "all": every turn, each behind the target's own answers (where tools are called, the
    last); "none": all are context, the target goes on behind them. Raises DataError for files that cannot be read.
    """
    prompts, bad, places = [], [], dict[str, str]()
    for row in read_rows(path, split):
        try:
            prompt = _prompt(row, regenerate)
            if (first := places.setdefault(prompt.id, row.place)) != row.place:
                raise BadRowError(f"the id {prompt.id!r} stands twice, first at {first}; expected each once")
        except BadRowError as error:
            bad.append(f"{row.place}: {error}")
            continue
        prompts.append(prompt)
    return PromptSet(prompts, bad)


def read_prompts(path: str | Path) -> list[Prompt]:
    """The prompts of :func:`collect_prompts`. Raises DataError where a row is none."""
    found = collect_prompts(path)
    if found.bad:
        more = f" (and {len(found.bad) - 1} more such rows)" if len(found.bad) > 1 else ""
        raise DataError(found.bad[0] + more)
    return found.prompts


def group_of(source: str) -> str:
    """``math`` of ``math-gsm8k-train``: the part before the first dash names the kind of text."""
    return source.split("-", 1)[0]


def _prompt(row: Row, regenerate: Regenerate) -> Prompt:
    if isinstance(row.values, str):
        raise BadRowError(row.values)
    return parse_prompt(row.values, row.place, row.stem, row.number, regenerate)


def parse_prompt(
    row: Mapping[str, Any], place: str, stem: str, number: int, regenerate: Regenerate = "last"
) -> Prompt:
    """The prompt of one row; ``stem``: of the row's file. Raises BadRowError."""
    conversation = parse_conversation(row, regenerate)
    source = row.get("source") or stem
    if not isinstance(source, str):
        raise BadRowError(f"source is {source!r}; expected a text")
    if "/" in source:  # a project's name, owner/name: the file says what kind of text it is
        source = f"{group_of(stem)}-{source}"
    name = row.get("id")
    name = str(number if name is None else name).rstrip(_TURN)
    asked = conversation.messages, conversation.next_turns, conversation.tools
    counts = conversation.num_left_out, conversation.num_kept
    return Prompt(f"{stem}/{name}", source, *asked, place, *counts)


def encode_prompts(
    tokenizer: Any, prompts: Sequence[Prompt], template_kwargs: Mapping[str, Any]
) -> list[list[int]]:
    """Token ids of each prompt through the chat template, ready for the answer.

    A model that was not taught to chat goes on with the text. Raises DataError for a conversation that the template
    refuses.
    """
    texts = [prompt_text(tokenizer, prompt, template_kwargs) for prompt in prompts]
    token_ids: list[list[int]] = tokenizer(texts, add_special_tokens=not tokenizer.chat_template)["input_ids"]
    return token_ids


def prompt_text(tokenizer: Any, prompt: Prompt, template_kwargs: Mapping[str, Any]) -> str:
    """What the target sees before its answer. Raises DataError, see :func:`encode_prompts`."""
    if not tokenizer.chat_template:
        return "\n\n".join(message["content"] for message in prompt.messages)
    told: dict[str, Any] = {"tools": list(prompt.tools)} if prompt.tools else {}
    for name, is_there in (
        ("tools", bool(prompt.tools)),
        ("tool_calls", any("tool_calls" in message for message in prompt.messages)),
    ):
        if is_there and name not in str(tokenizer.chat_template):
            place = prompt.place or prompt.id
            raise DataError(f"{place}: the row has {name}, but the target's chat template shows none")
    try:
        text: str = tokenizer.apply_chat_template(
            list(prompt.messages), add_generation_prompt=True, tokenize=False, **told, **template_kwargs
        )
    except (TemplateError, TypeError, ValueError) as error:
        message = " ".join(str(error).split())
        raise DataError(
            f"{prompt.place or prompt.id}: the target's chat template refuses it: {message}"
        ) from None
    return text
