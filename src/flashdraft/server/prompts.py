"""From what a client sent to token ids. What a text model cannot take is refused, never dropped."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from flashdraft.server.api_errors import ApiError
from flashdraft.server.protocol import Message, Tool, ToolCall
from flashdraft.server.tool_calls import BEGIN

_RESERVED = {
    "tokenize",
    "add_generation_prompt",
    "return_dict",
    "conversation",
    "chat_template",
    "messages",
    "tools",
}
_TEXT_PARTS = ("text", "input_text", "output_text")


async def encode_text(tokenizer: Any, text: str, add_special_tokens: bool = True) -> list[int]:
    """Token ids of a plain text, off the event loop."""
    _check_unicode(text, "prompt")
    ids: list[int] = await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=add_special_tokens)
    return ids


async def encode_chat(
    tokenizer: Any,
    messages: Sequence[Message],
    template_kwargs: dict[str, Any] | None = None,
    tools: Sequence[Tool] = (),
) -> list[int]:
    """Token ids of a conversation through the chat template, ready for the answer."""
    kwargs = dict(template_kwargs or {})
    if not tokenizer.chat_template:
        raise ApiError(
            400, "the model has no chat template; use /v1/completions with a plain prompt", "messages"
        )
    if reserved := _RESERVED & set(kwargs):
        name = f"chat_template_kwargs.{min(reserved)}"
        raise ApiError(400, f"{name} is not for a request to set; leave it out", name)
    if tools:
        kwargs["tools"] = [tool.model_dump(exclude_none=True) for tool in tools]
    turns = [_turn(message, f"messages[{i}]") for i, message in enumerate(messages)]
    if not knows_tools(tokenizer) and any(t["role"] == "tool" or "tool_calls" in t for t in turns):
        raise ApiError(400, "the model's chat template knows no tool calls: leave them out", "messages")
    try:
        ids: list[int] = await asyncio.to_thread(
            tokenizer.apply_chat_template, turns, add_generation_prompt=True, return_dict=False, **kwargs
        )
    except (
        TemplateError,
        TypeError,
        ValueError,
    ) as error:  # a template may stumble over what it did not expect
        raise ApiError(400, f"the chat template refuses the conversation: {error}", "messages") from None
    return ids


def knows_tools(tokenizer: Any) -> bool:
    """Whether the chat template shows tools to the model, in a form that the parsers know."""
    template = tokenizer.chat_template or ""
    return "tools" in template and BEGIN in template


def prompt_end(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """The text at the end of a prompt, where the template may have begun the answer."""
    text: str = tokenizer.decode(list(token_ids[-32:]), skip_special_tokens=False)
    return text


def _turn(message: Message, where: str) -> dict[str, Any]:
    """A message as templates expect it: the arguments of calls as mappings."""
    turn: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    turn["content"] = _content(message, where)
    if message.reasoning_content is not None:
        _check_unicode(message.reasoning_content, f"{where}.reasoning_content")
        turn["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        turn["tool_calls"] = [
            {"id": call.id, "type": "function", "function": _function(call, f"{where}.tool_calls[{i}]")}
            for i, call in enumerate(message.tool_calls)
        ]
    return turn


def _function(call: ToolCall, where: str) -> dict[str, Any]:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        name = f"{where}.function.arguments"
        raise ApiError(400, f"{name} is no JSON object", name)
    return {"name": call.function.name, "arguments": arguments}


def _content(message: Message, where: str) -> str:
    if message.content is None:
        return ""
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
