"""``/v1/responses``: a conversation of items in, items out, whole or as OpenAI's named events. Nothing is stored."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from flashdraft.server.api_errors import ApiError, Json, told_as, validated
from flashdraft.server.chat import prepare_chat
from flashdraft.server.fields import BlockSizeField, Count, Fields, names_elsewhere
from flashdraft.server.handlers import check_model, read_request, respond, service_of
from flashdraft.server.logs import log_event
from flashdraft.server.protocol import ChatRequest, Effort, Function, Message, SamplingFields, Tool
from flashdraft.server.responses_form import ResponseForm
from flashdraft.server.structured import JsonSchema, ResponseFormat


class TextFormat(JsonSchema):
    """``text.format``: the schema stands beside its type."""

    type: Literal["text", "json_object", "json_schema"] = "text"


class TextSettings(Fields):
    """``text``."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Fields):
    """``reasoning``: how much; the thoughts themselves are told whole, whatever summary is asked for."""

    tolerated = frozenset({"context", "generate_summary", "mode"})

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed", "none"] | None = None


_ITEM = {"type": "object", "description": "a message, function_call, function_call_output or reasoning item"}


class ResponsesRequest(SamplingFields):
    """``POST /v1/responses``; nothing is stored, so each request carries its whole conversation."""

    renamed = names_elsewhere(
        "max_output_tokens",
        "stop",
        reasoning_effort="reasoning.effort",
        messages="input",
        system="instructions",
    )

    model: str | None = None
    input: str | Annotated[list[dict[str, Any]], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    block_size: BlockSizeField | None = None
    stream: bool | None = None
    text: TextSettings | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    include: list[Literal["reasoning.encrypted_content"]] | None = (
        None  # there is none: thoughts are told in clear
    )
    metadata: dict[str, str] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


async def responses(request: Request) -> Response:
    """Answer a text or a conversation."""
    asked = await read_request(request, ResponsesRequest)
    if (asked.n or 1) != 1:
        raise ApiError(400, f"n is {asked.n}; /v1/responses gives one answer", "n")
    service = service_of(request)
    check_model(service, asked.model)
    chat = _as_chat(asked)
    with told_as({"response_format": "text.format", "reasoning_effort": "reasoning.effort"}):
        prepared = await prepare_chat(service, chat, asked.max_output_tokens, "max_output_tokens")
    told = _told_again(asked)
    submission = await service.submit(prepared.wishes)
    model = asked.model or service.config.model_names[0]
    spaces = [tool.get("name") for tool in asked.tools or () if tool.get("type") == "namespace"]
    namespaces = [name for name in spaces if isinstance(name, str)]
    writer = ResponseForm(model, prepared.thinking, prepared.choice.callable, told, namespaces)
    return await respond(submission, bool(asked.stream), writer.whole, writer.events)


def _told_again(asked: ResponsesRequest) -> Json:
    """Fields of the request that its answer repeats.

    Raises ApiError 400 for what JSON is read with here and cannot be sent in: NaN, half a surrogate pair.
    """
    names = ("instructions", "max_output_tokens", "metadata", "tool_choice", "parallel_tool_calls", "tools")
    told: Json = {name: getattr(asked, name) for name in names}
    told |= {
        "tools": asked.tools or [],
        "tool_choice": asked.tool_choice or ("auto" if asked.tools else "none"),
    }
    told |= {"metadata": asked.metadata or {}, "parallel_tool_calls": asked.parallel_tool_calls is not False}
    told["reasoning"] = asked.reasoning.model_dump() if asked.reasoning else None
    for name, value in told.items():
        try:
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except ValueError as error:
            raise ApiError(400, f"{name} cannot be told again in JSON: {error}", name) from None
    return told


def _as_chat(asked: ResponsesRequest) -> ChatRequest:
    """The same wish as a chat. Raises ApiError 400 for an item or a tool that a text model cannot have."""
    values: Json = {name: getattr(asked, name) for name in SamplingFields.model_fields}
    values |= {"model": asked.model, "block_size": asked.block_size, "messages": _messages(asked)}
    values |= {
        "chat_template_kwargs": asked.chat_template_kwargs,
        "parallel_tool_calls": asked.parallel_tool_calls,
    }
    values["tools"] = _tools(asked.tools or []) or None
    values["tool_choice"] = _choice(asked.tool_choice)
    if asked.text and (form := asked.text.format):
        values["response_format"] = ResponseFormat(type=form.type, json_schema=form)
    values["reasoning_effort"] = asked.reasoning.effort if asked.reasoning else None
    return ChatRequest.model_validate({name: value for name, value in values.items() if value is not None})


def _tools(tools: list[Json]) -> list[Tool]:
    """Functions, those of a namespace under both names.

    What searches the web is an offer to the model that agents make beside their own tools; it is left out then.
    """
    told, left_out = list[Tool](), list[str]()
    for i, tool in enumerate(tools):
        kind, where = tool.get("type"), f"tools[{i}]"
        if kind == "namespace" and isinstance(tool.get("tools"), list):
            inner = [one if isinstance(one, dict) else {} for one in tool["tools"]]
            told += [_tool(one, f"{where}.tools[{j}]", tool.get("name")) for j, one in enumerate(inner)]
        elif isinstance(kind, str) and kind.startswith("web_search") and len(tools) > 1:
            left_out.append(kind)
        else:
            told.append(_tool(tool, where))
    if left_out:
        log_event("tools left out", types=",".join(left_out))
    return told


def _tool(tool: Json, where: str, namespace: Any = None) -> Tool:
    if tool.get("type") != "function":
        raise ApiError(
            400, f"{where} is of type {tool.get('type')!r}; this server knows functions only", where
        )
    named = tool | {"name": full_name(namespace, _text(tool, "name", where))}
    return Tool(type="function", function=validated(Function, named, where))


def full_name(namespace: Any, name: Any) -> Any:
    """How the model is told of a function: with the namespace that it is in."""
    return f"{namespace}.{name}" if isinstance(namespace, str) else name


def _choice(choice: str | Json | None) -> Any:
    if not isinstance(choice, dict):
        return choice
    kind = choice.get("type")
    if kind not in ("function", "allowed_tools"):
        raise ApiError(400, f"tool_choice is of type {kind!r}; expected a function", "tool_choice")
    where = "tool_choice" if kind == "function" else "tool_choice.tools"
    tools = _objects(choice, "tools", "tool_choice") if kind == "allowed_tools" else [choice]
    named = [{"type": "function", "function": {"name": _text(one, "name", where)}} for one in tools]
    if kind == "function":
        return named[0]
    return {"type": kind, "allowed_tools": {"mode": choice.get("mode"), "tools": named}}


def _messages(asked: ResponsesRequest) -> list[Message]:
    items = [{"role": "user", "content": asked.input}] if isinstance(asked.input, str) else asked.input
    turns: list[tuple[Json, str]] = []
    if asked.instructions:
        turns.append(({"role": "system", "content": asked.instructions}, "instructions"))
    for i, item in enumerate(items):
        where = f"input[{i}]"
        turn = _turn(item, where)
        if turn["role"] != "assistant" or not (turns and _join(turns[-1][0], turn)):
            turns.append((turn, where))
    return [validated(Message, turn, where).placed(where) for turn, where in turns]


def _turn(item: Json, where: str) -> Json:
    """One item as a turn of a chat. Raises ApiError 400 for what it lacks and for one that no text model can have."""
    kind = item.get("type") or "message"
    if kind == "message":
        return {"role": item.get("role"), "content": item.get("content")}
    if kind == "reasoning":
        parts = _objects(item, "content", where) or _objects(item, "summary", where)
        thoughts = "".join(_text(part, "text", where) for part in parts)
        return {"role": "assistant", "reasoning_content": thoughts}
    if kind == "function_call":
        name = full_name(item.get("namespace"), _text(item, "name", where))
        call = {"name": name, "arguments": item.get("arguments")}
        calls = [{"id": _text(item, "call_id", where), "type": "function", "function": call}]
        return {"role": "assistant", "tool_calls": calls}
    if kind == "function_call_output":
        call_id = _text(item, "call_id", where)
        if not isinstance(output := item.get("output"), str | list):
            expected = "a text or text parts"
            raise ApiError(400, f"{where}.output is {output!r:.40}; expected {expected}", f"{where}.output")
        return {"role": "tool", "tool_call_id": call_id, "content": output}
    expected = "message, function_call, function_call_output or reasoning"
    raise ApiError(400, f"{where} is of type {kind!r}; expected {expected}", where)


def _text(item: Json, name: str, where: str) -> str:
    said = item.get(name)
    if not isinstance(said, str):
        raise ApiError(400, f"{where}.{name} is {said!r:.40}; expected a text", f"{where}.{name}")
    return said


def _objects(item: Json, name: str, where: str) -> list[Json]:
    said = item.get(name) or []
    if not isinstance(said, list) or not all(isinstance(one, dict) for one in said):
        raise ApiError(400, f"{where}.{name} is {said!r:.40}; expected a list of objects", f"{where}.{name}")
    return said


def _join(last: Json, part: Json) -> bool:
    """Make thoughts, words and calls of one answer one assistant turn; False: ``part`` begins another."""
    new = set(part) - {"role"}
    is_next = last.get("role") == "assistant" and not (new & set(last) - {"tool_calls"})
    if not is_next or ("tool_calls" in last and "tool_calls" not in part):
        return False
    calls: Sequence[Json] = [*last.get("tool_calls", []), *part.get("tool_calls", [])]
    last |= part | ({"tool_calls": calls} if calls else {})
    return True
