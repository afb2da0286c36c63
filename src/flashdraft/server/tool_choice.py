"""What ``tools`` and ``tool_choice`` of a chat come to: what the model is shown, and what its answer must look like."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flashdraft.errors import UsageError
from flashdraft.grammar import Grammar, json_rule
from flashdraft.server.answer_parts import tools_of
from flashdraft.server.api_errors import ApiError
from flashdraft.server.call_styles import CallStyle, Tools, call_style, template_of
from flashdraft.server.protocol import AllowedTools, ChatRequest, Tool
from flashdraft.server.tool_grammar import CallRules, calls_lark


@dataclass(frozen=True)
class ToolChoice:
    """What a chat may call.

    ``grammar``: what the answer must look like, for calls that must be or must be right; where there is a
    ``response_format`` it holds that too.
    """

    shown: list[Tool] = field(default_factory=list)  # to the model
    callable: Tools | None = None  # None: calls are not looked for
    grammar: Grammar | None = None


def tool_choice_of(asked: ChatRequest, tokenizer: Any) -> ToolChoice:
    """Raises ApiError 400 for tools that the chat template does not know and for a choice without its tool."""
    tools, choice = asked.tools or [], asked.tool_choice or "auto"
    if not tools:
        if choice not in ("none", "auto"):
            raise ApiError(400, "tool_choice asks for a call, but there are no tools", "tool_choice")
        return ToolChoice()
    if choice == "none":
        return ToolChoice()
    style = call_style(template_of(tokenizer, with_tools=True))
    if style is None:
        text = "the model's chat template has no tools, or calls in a form that is not known; leave them out"
        raise ApiError(400, text, "tools")
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise ApiError(400, "two tools have one name; expected each once", "tools")
    mode, allowed = _allowed(choice, names)
    callable_ = [tool for tool in tools if tool.function.name in allowed]
    is_free = (
        mode == "auto"
        and not any(tool.function.strict for tool in callable_)
        and asked.parallel_tool_calls is not False
        and not asked.wants_json
    )
    grammar = None if is_free else _grammar(asked, callable_, mode, style)
    return ToolChoice(tools, tools_of([tool.model_dump() for tool in callable_], style), grammar)


def _allowed(choice: Any, names: list[str]) -> tuple[str, list[str]]:
    """``auto``, ``required`` or ``named``, and the tools that may be called. Raises ApiError 400 for an unknown one."""
    if isinstance(choice, str):
        return choice, names
    named = choice.allowed_tools.tools if isinstance(choice, AllowedTools) else [choice]
    wanted = [one.function.name for one in named]
    for name in wanted:
        if name not in names:
            raise ApiError(
                400, f"tool_choice names {name!r}; expected one of {', '.join(names)}", "tool_choice"
            )
    return (choice.allowed_tools.mode if isinstance(choice, AllowedTools) else "named"), wanted


def _grammar(asked: ChatRequest, tools: list[Tool], mode: str, style: CallStyle) -> Grammar:
    answer = None
    if asked.wants_json and mode == "auto":
        wanted = asked.asked_grammar()
        answer = json_rule(json.loads(wanted.text)) if wanted else None
    try:
        schemas = {tool.function.name: _followed(tool, style, mode) for tool in tools}
        is_single = mode == "named" or asked.parallel_tool_calls is False
        return Grammar("lark", calls_lark(CallRules(schemas, style, mode != "auto", is_single, answer)))
    except UsageError as error:
        raise ApiError(400, f"the tools cannot be put into a grammar: {error}", "tools") from None


def _followed(tool: Tool, style: CallStyle, mode: str) -> Mapping[str, Any]:
    """The schema that calls of ``tool`` must fit. Where nobody demands that, one that cannot be followed is any."""
    schema = tool.function.parameters or {}
    if mode == "auto" and not tool.function.strict:
        try:
            calls_lark(CallRules({tool.function.name: schema}, style, True, True))
        except UsageError:
            return {"type": "object"}
    return schema
