"""From what a client sent to token ids. What a text model cannot take is refused, never dropped."""

import asyncio
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from flashdraft.server.api_errors import ApiError
from flashdraft.server.protocol import Message

_RESERVED = {"tokenize", "add_generation_prompt", "return_dict", "conversation", "chat_template", "messages"}
_TEXT_PARTS = ("text", "input_text", "output_text")


async def encode_text(tokenizer: Any, text: str, add_special_tokens: bool = True) -> list[int]:
    """Token ids of a plain text, off the event loop."""
    _check_unicode(text, "prompt")
    ids: list[int] = await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=add_special_tokens)
    return ids


async def encode_chat(
    tokenizer: Any, messages: Sequence[Message], template_kwargs: dict[str, Any] | None = None
) -> list[int]:
    """Token ids of a conversation through the chat template, ready for the answer."""
    kwargs = template_kwargs or {}
    if not tokenizer.chat_template:
        raise ApiError(
            400, "the model has no chat template; use /v1/completions with a plain prompt", "messages"
        )
    if reserved := _RESERVED & set(kwargs):
        name = f"chat_template_kwargs.{min(reserved)}"
        raise ApiError(400, f"{name} is not for a request to set; leave it out", name)
    turns = [
        {"role": _role(message), "content": _content(message, f"messages[{i}]")}
        for i, message in enumerate(messages)
    ]
    try:
        ids: list[int] = await asyncio.to_thread(
            tokenizer.apply_chat_template, turns, add_generation_prompt=True, return_dict=False, **kwargs
        )
    except TemplateError as error:
        raise ApiError(400, f"the chat template refuses the conversation: {error}", "messages") from None
    return ids


def _role(message: Message) -> str:
    return "system" if message.role == "developer" else message.role


def _content(message: Message, where: str) -> str:
    if isinstance(message.content, str):
        _check_unicode(message.content, f"{where}.content")
        return message.content
    texts = []
    for i, part in enumerate(message.content):
        name = f"{where}.content[{i}]"
        kind, text = part.get("type"), part.get("text")
        if kind not in _TEXT_PARTS:
            raise ApiError(400, f"{name} is {kind!r}; this model takes text only", name)
        if not isinstance(text, str):
            raise ApiError(400, f"{name}.text is missing; expected a text", name)
        _check_unicode(text, name)
        texts.append(text)
    return "\n".join(texts)


def _check_unicode(text: str, param: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ApiError(400, f"{param} is not valid Unicode: {error.reason}", param) from None
