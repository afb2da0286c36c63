"""``/v1/responses``: a conversation of items in, items out, whole or as OpenAI's named events. Nothing is stored."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from flashdraft.server.api_errors import ApiError, Json
from flashdraft.server.chat import prepare_chat
from flashdraft.server.fields import BlockSizeField, Count, Fields
from flashdraft.server.handlers import check_model, read_request, respond, service_of
from flashdraft.server.logs import log_event
from flashdraft.server.protocol import ChatRequest, Effort, SamplingFields
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
    prepared = await prepare_chat(service, chat, asked.max_output_tokens, "max_output_tokens")
    submission = await service.submit(prepared.wishes)
    names = ("instructions", "max_output_tokens", "metadata", "tool_choice", "parallel_tool_calls", "tools")
    told: Json = {name: getattr(asked, name) for name in names}
    told |= {
        "tools": asked.tools or [],
        "tool_choice": asked.tool_choice or ("auto" if asked.tools else "none"),
    }
    told |= {"metadata": asked.metadata or {}, "parallel_tool_calls": asked.parallel_tool_calls is not False}
    told["reasoning"] = asked.reasoning.model_dump() if asked.reasoning else None
    model = asked.model or service.config.model_names[0]
    spaces = [tool.get("name") for tool in asked.tools or () if tool.get("type") == "namespace"]
    namespaces = [name for name in spaces if isinstance(name, str)]
    writer = ResponseForm(model, prepared.thinking, prepared.choice.callable, told, namespaces)
    return await respond(submission, bool(asked.stream), writer.whole, writer.events)


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


def _tools(tools: list[Json]) -> list[Json]:
    """Functions, those of a namespace under both names.

    What searches the web is an offer to the model that agents make beside their own tools; it is left out then.
    """
    told, left_out = list[Json](), list[str]()
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


def _tool(tool: Json, where: str, namespace: Any = None) -> Json:
    if tool.get("type") != "function":
        raise ApiError(
            400, f"{where} is of type {tool.get('type')!r}; this server knows functions only", where
        )
    function = {name: value for name, value in tool.items() if name != "type"}
    return {"type": "function", "function": function | {"name": full_name(namespace, tool.get("name"))}}


def full_name(namespace: Any, name: Any) -> Any:
    """How the model is told of a function: with the namespace that it is in."""
    return f"{namespace}.{name}" if isinstance(namespace, str) else name


def _choice(choice: str | Json | None) -> Any:
    if not isinstance(choice, dict):
        return choice
    named = [
        {"type": "function", "function": {"name": one.get("name")}} for one in choice.get("tools", [choice])
    ]
    if choice.get("type") == "allowed_tools":
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode"), "tools": named}}
    if choice.get("type") != "function":
        raise ApiError(
            400, f"tool_choice is of type {choice.get('type')!r}; expected a function", "tool_choice"
        )
    return named[0]


def _messages(asked: ResponsesRequest) -> list[Json]:
    items = [{"role": "user", "content": asked.input}] if isinstance(asked.input, str) else asked.input
    turns: list[Json] = []
    if asked.instructions:
        turns.append({"role": "system", "content": asked.instructions})
    for i, item in enumerate(items):
        _add_item(turns, item, f"input[{i}]")
    return turns


def _add_item(turns: list[Json], item: Json, where: str) -> None:
    """Add one item; thoughts, words and calls of one answer become one assistant turn."""
    kind = item.get("type", "message")
    if kind == "message":
        turn = {name: value for name, value in item.items() if name in ("role", "content")}
        _join(turns, turn) if turn.get("role") == "assistant" else turns.append(turn)
    elif kind == "reasoning":
        parts = item.get("content") or item.get("summary") or []
        _join(turns, {"reasoning_content": "".join(str(part.get("text", "")) for part in parts)})
    elif kind == "function_call":
        function = {
            "name": full_name(item.get("namespace"), item.get("name")),
            "arguments": item.get("arguments"),
        }
        _join(turns, {"tool_calls": [{"id": item.get("call_id"), "type": "function", "function": function}]})
    elif kind == "function_call_output":
        turns.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
    else:
        expected = "message, function_call, function_call_output or reasoning"
        raise ApiError(400, f"{where} is of type {kind!r}; expected {expected}", where)


def _join(turns: list[Json], part: Json) -> None:
    last = turns[-1] if turns else {}
    is_next = last.get("role") == "assistant" and not (set(part) & set(last) - {"role", "tool_calls"})
    if not is_next or ("tool_calls" in last and "tool_calls" not in part):
        turns.append({"role": "assistant"} | part)
        return
    calls: Sequence[Json] = [*last.get("tool_calls", []), *part.get("tool_calls", [])]
    last |= part | ({"tool_calls": calls} if calls else {})
