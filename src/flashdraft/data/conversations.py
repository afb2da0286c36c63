"""One row of chat data as a conversation that the target can be asked: the forms in use, and what is wrong with a row.

Roles and contents as OpenAI has them (``messages``) or ShareGPT (``conversations`` of ``from`` and ``value``), in the
form that chat templates read. Knows no files and no tokenizer.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Message = dict[str, Any]
Regenerate = Literal["last", "all", "none"]

_ROLES = ("system", "user", "assistant", "tool")
_SAME_ROLE = {
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_CHATS = ("messages", "conversations", "conversation")
_TEXT_PARTS = ("text", "input_text", "output_text")


class BadRowError(ValueError):
    """What is wrong with a row, without its place."""


@dataclass(frozen=True)
class Conversation:
    """What stands before the answer asked for; ``next_turns``: what the user says after the target's answers."""

    messages: tuple[Message, ...]
    next_turns: tuple[str, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    num_left_out: int = 0  # the row's own answers that the target makes anew
    num_kept: int = 0  # those that stand before it as they are


def parse_conversation(row: Mapping[str, Any], regenerate: Regenerate = "last") -> Conversation:
    """The conversation of a row, see :func:`flashdraft.data.prompts.read_prompts`. Raises BadRowError."""
    name = next((one for one in _CHATS if row.get(one) is not None), None)
    if name is None and isinstance(row.get("prompt"), list):
        name = "prompt"  # as TRL has conversational prompts
    if name is None:
        return _of_texts(row)
    messages = [_message(one, f"{name}[{i}]") for i, one in enumerate(_list(row[name], name))]
    if (
        isinstance(row.get("system"), str)
        and row["system"]
        and messages[:1] != []
        and messages[0]["role"] != "system"
    ):
        messages.insert(0, {"role": "system", "content": _text(row["system"], "system")})
    return _asked(messages, _tools(row.get("tools")), name, regenerate)


def _of_texts(row: Mapping[str, Any]) -> Conversation:
    if isinstance(row.get("instruction"), str):  # Alpaca's: the input stands behind the instruction
        row = {"prompt": "\n\n".join(part for part in (row["instruction"], row.get("input")) if part)}
    turns = row.get("turns") or [
        row.get("prompt")
    ]  # a table has a null in the column that a row does not use
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn for turn in turns):
        raise BadRowError(
            f"found keys {sorted(row)}; expected a text under prompt, turns, messages, conversations or instruction"
        )
    first, *later = [_text(turn, "prompt") for turn in turns]
    return Conversation(({"role": "user", "content": first},), tuple(later))


def _asked(
    messages: list[Message], tools: tuple[dict[str, Any], ...], name: str, regenerate: Regenerate
) -> Conversation:
    roles = [message["role"] for message in messages]
    if "user" not in roles:
        raise BadRowError(f"{name} has no message of the user; expected at least one")
    if regenerate == "none":
        return Conversation(tuple(messages), tools=tools, num_kept=roles.count("assistant"))
    asked = len(messages)
    while messages[asked - 1]["role"] == "assistant":  # the answer may be several messages
        asked -= 1
    first = roles.index("user") + 1
    if messages[asked - 1]["role"] == "system":
        raise BadRowError(
            f"{name}[{asked - 1}] is the last to be answered and of role system; expected the user's"
        )
    later = messages[first:asked]
    if regenerate == "all" and [m["role"] for m in later] == ["assistant", "user"] * (len(later) // 2):
        return Conversation(
            tuple(messages[:first]),
            tuple(message["content"] for message in later[1::2]),
            tools,
            num_left_out=roles[first:].count("assistant"),
            num_kept=roles[:first].count("assistant"),
        )
    kept = roles[:asked].count("assistant")
    return Conversation(tuple(messages[:asked]), (), tools, roles.count("assistant") - kept, kept)


def _list(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, list) or not value:
        raise BadRowError(f"{name} is {_kind(value)}; expected a list of messages")
    return value


def _kind(value: Any) -> str:
    if value is None or value in ("", [], {}):
        return {"NoneType": "null", "str": "an empty text", "list": "an empty list"}.get(
            type(value).__name__, "an empty object"
        )
    names = {"str": "a text", "list": "a list", "dict": "an object", "bool": "true or false"}
    return names.get(type(value).__name__, "a number")


def _message(value: Any, name: str) -> Message:
    if not isinstance(value, dict):
        raise BadRowError(f"{name} is {_kind(value)}; expected an object with role and content")
    key, said = ("role", "content") if "role" in value or "from" not in value else ("from", "value")
    told = value.get(key)
    role = _SAME_ROLE.get(told, told) if isinstance(told, str) else told
    if role not in _ROLES:
        found = "has no role" if told is None else f"has the role {told!r}"
        raise BadRowError(f"{name} {found}; expected one of {', '.join(_ROLES)}")
    message = {k: v for k, v in value.items() if v is not None and k not in (key, said)}
    message = {"role": role, "content": None} | message
    if told == "function_call":
        message["tool_calls"] = [_called(value.get(said), f"{name}.{said}")]
    elif "tool_calls" in message:
        calls = message["tool_calls"]
        if not isinstance(calls, list) or role != "assistant":
            raise BadRowError(f"{name}.tool_calls is {_kind(calls)} of {role}; expected the assistant's list")
        message["tool_calls"] = [_call(call, f"{name}.tool_calls[{i}]") for i, call in enumerate(calls)]
    if message.get("tool_calls") and (value.get(said) in (None, "") or told == "function_call"):
        return message | {"content": ""}
    message["content"] = _content(value.get(said), f"{name}.{said}")
    if role == "user" and not message["content"].strip():
        raise BadRowError(f"{name}.{said} is empty; expected what the user says")
    return message


def _content(value: Any, name: str) -> str:
    if isinstance(value, str):
        return _text(value, name)
    if not isinstance(value, list) or not value:
        raise BadRowError(f"{name} is {_kind(value)}; expected a text")
    texts = []
    for i, part in enumerate(value):
        if (
            not isinstance(part, dict)
            or part.get("type") not in _TEXT_PARTS
            or not isinstance(part.get("text"), str)
        ):
            found = repr(part.get("type")) if isinstance(part, dict) else _kind(part)
            raise BadRowError(f"{name}[{i}] is {found}; expected parts of type text")
        texts.append(_text(part["text"], f"{name}[{i}]"))
    return "\n".join(texts)


def _text(value: str, name: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRowError(f"{name} is not valid Unicode ({error.reason})") from None
    return value


def _call(value: Any, name: str) -> dict[str, Any]:
    function = value.get("function", value) if isinstance(value, dict) else None
    return (
        {"type": "function"}
        | (value if isinstance(value, dict) else {})
        | {"function": _function(function, name)}
    )


def _called(value: Any, name: str) -> dict[str, Any]:
    """A call as LLaMA-Factory's ShareGPT rows have it: JSON of name and arguments."""
    return {"type": "function", "function": _function(_json(value, name), name)}


def _function(value: Any, name: str) -> dict[str, Any]:
    """Arguments as a mapping: what templates go through."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise BadRowError(f"{name} is {_kind(value)}; expected a function's name and arguments")
    arguments = _json(value.get("arguments") or {}, f"{name}.arguments")
    if not isinstance(arguments, dict):
        raise BadRowError(f"{name}.arguments is {_kind(arguments)}; expected an object")
    return {"name": value["name"], "arguments": arguments}


def _json(value: Any, name: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise BadRowError(f"{name} is a text that is no JSON; expected an object") from None


def _tools(value: Any) -> tuple[dict[str, Any], ...]:
    """Tools as OpenAI describes them; Parquet often has them as one JSON text."""
    tools = _json(value, "tools") if value else []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRowError(f"tools is {_kind(tools)}; expected a list of tools, or its JSON")
    return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in tools)
