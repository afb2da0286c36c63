"""``/v1/messages`` and its ``count_tokens``: Anthropic's way of asking, turned into a chat."""

from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from flashdraft.server.api_errors import ApiError, Json, told_as, validated
from flashdraft.server.call_styles import template_of
from flashdraft.server.chat import encode_prompt, prepare_chat
from flashdraft.server.fields import MAX_STOPS, BlockSizeField, Count, Fields, StopText, names_elsewhere
from flashdraft.server.handlers import check_model, read_request, respond, service_of
from flashdraft.server.messages_form import MessageForm
from flashdraft.server.protocol import ChatRequest, Function, Message, Tool
from flashdraft.server.tool_choice import tool_choice_of

Block = dict[str, Any]


class MessageTurn(Fields):
    """One turn: a text, or blocks of text, thinking, tool_use and tool_result."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class MessageTool(Fields):
    """A tool of the client's own."""

    tolerated = frozenset(
        {"allowed_callers", "cache_control", "defer_loading", "eager_input_streaming", "input_examples"}
    )

    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class MessageToolChoice(Fields):
    """Whether, and which, tool is to be used."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingSetting(Fields):
    """Whether to think; ``budget_tokens`` is a hint that no model here takes."""

    tolerated = frozenset({"display"})

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None


class OutputFormat(Fields):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Fields):
    """``format``: of the answer; ``effort``: of the thoughts."""

    format: OutputFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class CountTokensRequest(Fields):
    """``POST /v1/messages/count_tokens``."""

    model: str | None = None
    messages: Annotated[list[MessageTurn], Field(min_length=1)]
    system: str | list[Block] | None = None
    tools: list[MessageTool] | None = None
    tool_choice: MessageToolChoice | None = None
    thinking: ThinkingSetting | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountTokensRequest):
    """``POST /v1/messages``."""

    renamed = names_elsewhere(
        "max_tokens",
        "stop_sequences",
        response_format="output_config.format",
        reasoning_effort="output_config.effort",
        instructions="system",
    )

    max_tokens: Count
    stop_sequences: Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    block_size: BlockSizeField | None = None


async def messages(request: Request) -> Response:
    """Answer a conversation."""
    asked = await read_request(request, MessagesRequest)
    service = service_of(request)
    check_model(service, asked.model)
    chat = _as_chat(asked, service.tokenizer)
    with told_as({"response_format": "output_config.format", "reasoning_effort": "output_config.effort"}):
        prepared = await prepare_chat(service, chat, asked.max_tokens)
    submission = await service.submit(prepared.wishes)
    model = asked.model or service.config.model_names[0]
    form = MessageForm(model, prepared.thinking, prepared.choice.callable)
    return await respond(submission, bool(asked.stream), form.whole, form.events)


async def count_tokens(request: Request) -> Response:
    """How many tokens a conversation has."""
    asked = await read_request(request, CountTokensRequest)
    service = service_of(request)
    check_model(service, asked.model)
    chat = _as_chat(asked, service.tokenizer)
    prompt = await encode_prompt(service, chat, tool_choice_of(chat, service.tokenizer))
    return JSONResponse({"input_tokens": len(prompt)})


def _as_chat(asked: CountTokensRequest, tokenizer: Any) -> ChatRequest:
    """The same wish as a chat. Raises ApiError 400 for what a text model cannot have."""
    if isinstance(asked, MessagesRequest) and asked.messages[-1].role == "assistant":
        where = f"messages[{len(asked.messages) - 1}]"
        raise ApiError(
            400, f"{where} begins the answer, which is not supported: end with the user's turn", where
        )
    turns: list[Message] = []
    if asked.system:
        turns.append(Message(role="system", content=_text(asked.system, "system")))
    for i, turn in enumerate(asked.messages):
        where = f"messages[{i}]"
        turns += [validated(Message, one, where).placed(where) for one in _turns(turn, where)]
    values: Json = {"model": asked.model, "messages": turns, "tools": _tools(asked.tools)}
    values |= _choice(asked.tool_choice)
    if isinstance(asked, MessagesRequest):
        names = ("temperature", "top_p", "top_k", "block_size")
        values |= {name: getattr(asked, name) for name in names} | {"stop": asked.stop_sequences}
    config = asked.output_config or OutputConfig()
    if config.format:
        schema = {"name": "answer", "schema": config.format.schema_}
        values["response_format"] = {"type": "json_schema", "json_schema": schema}
    template = template_of(tokenizer, bool(asked.tools))
    if config.effort and "reasoning_effort" in template:
        values["reasoning_effort"] = config.effort
    if asked.thinking and "enable_thinking" in template:
        values["chat_template_kwargs"] = {"enable_thinking": asked.thinking.type != "disabled"}
    return ChatRequest.model_validate({name: value for name, value in values.items() if value is not None})


def _tools(tools: list[MessageTool] | None) -> list[Tool] | None:
    for i, tool in enumerate(tools or ()):
        if tool.type not in (None, "custom"):
            where = f"tools[{i}]"
            raise ApiError(
                400, f"{where} is {tool.type!r}, which runs at Anthropic's; expected your own", where
            )
    return [
        Tool(type="function", function=_function(tool, f"tools[{i}]")) for i, tool in enumerate(tools or ())
    ] or None


def _function(tool: MessageTool, where: str) -> Function:
    told: Json = {"name": tool.name, "description": tool.description, "strict": tool.strict}
    return validated(Function, told | {"parameters": tool.input_schema}, where)


def _choice(choice: MessageToolChoice | None) -> Json:
    if choice is None:
        return {}
    told: Json = {"parallel_tool_calls": False} if choice.disable_parallel_tool_use else {}
    if choice.type == "tool":
        return told | {"tool_choice": {"type": "function", "function": {"name": choice.name or ""}}}
    return told | {"tool_choice": "required" if choice.type == "any" else choice.type}


def _turns(turn: MessageTurn, where: str) -> list[Json]:
    """A turn as chats have it: results of tools are turns of their own, before what the user says."""
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content}]
    results: list[Json] = []
    told: Json = {"role": turn.role}
    for i, block in enumerate(turn.content):
        kind, at = block.get("type"), f"{where}.content[{i}]"
        if kind == "text":
            told["content"] = [*told.get("content", []), {"type": "text", "text": _said(block, "text", at)}]
        elif kind == "thinking" and turn.role == "assistant":
            told["reasoning_content"] = told.get("reasoning_content", "") + _said(block, "thinking", at)
        elif kind == "tool_use" and turn.role == "assistant":
            name, arguments = _said(block, "name", at), block.get("input") or {}
            if not isinstance(arguments, dict):
                raise ApiError(400, f"{at}.input is {arguments!r:.40}; expected an object", f"{at}.input")
            function = {"name": name, "arguments": arguments}
            call = {"id": _said(block, "id", at), "type": "function", "function": function}
            told["tool_calls"] = [*told.get("tool_calls", []), call]
        elif kind == "tool_result" and turn.role == "user":
            text = _text(block.get("content") or "", f"{at}.content")
            call_id = _said(block, "tool_use_id", at)
            results.append({"role": "tool", "tool_call_id": call_id, "content": text})
        else:
            raise ApiError(
                400, f"{at} is {kind!r} of {turn.role}; this model takes text and its tools' calls", at
            )
    return results + ([told] if len(told) > 1 or not results else [])


def _said(block: Block, name: str, where: str) -> str:
    text = block.get(name)
    if not isinstance(text, str):
        raise ApiError(400, f"{where}.{name} is {text!r:.40}; expected a text", f"{where}.{name}")
    return text


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(400, f"{where} is {content!r:.40}; expected a text or text blocks", where)
    for i, block in enumerate(content):
        if not isinstance(block, dict) or block.get("type") != "text":
            kind = block.get("type") if isinstance(block, dict) else type(block).__name__
            raise ApiError(400, f"{where}[{i}] is {kind!r}; this model takes text only", f"{where}[{i}]")
    return "\n".join(_said(block, "text", f"{where}[{i}]") for i, block in enumerate(content))
