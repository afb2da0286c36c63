"""What ``tools`` and ``tool_choice`` of a chat come to: what the model is shown, and what its answer must look like."""

from dataclasses import dataclass, field
from typing import Any

from flashdraft.errors import UsageError
from flashdraft.grammar import Grammar
from flashdraft.server.answer_parts import tools_of
from flashdraft.server.api_errors import ApiError
from flashdraft.server.prompts import knows_tools
from flashdraft.server.protocol import ChatRequest, NamedTool, Tool
from flashdraft.server.tool_calls import Tools
from flashdraft.server.tool_grammar import CallRules, calls_lark


@dataclass(frozen=True)
class ToolChoice:
    """What a chat may call. ``grammar``: what the answer must look like, for calls that must be, or must be right."""

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
    if not knows_tools(tokenizer):
        raise ApiError(400, "the model's chat template has no tools; leave them out", "tools")
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise ApiError(400, "two tools have one name; expected each once", "tools")
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        name = choice.function.name
        raise ApiError(400, f"tool_choice names {name!r}; expected one of {', '.join(names)}", "tool_choice")
    is_free = (
        choice == "auto"
        and not any(t.function.strict for t in tools)
        and asked.parallel_tool_calls is not False
    )
    grammar = None if is_free else _grammar(asked, tools, choice, tokenizer)
    return ToolChoice(tools, tools_of([tool.model_dump() for tool in tools]), grammar)


def _grammar(asked: ChatRequest, tools: list[Tool], choice: Any, tokenizer: Any) -> Grammar:
    schemas = tools_of([tool.model_dump() for tool in tools])
    if isinstance(choice, NamedTool):
        schemas = {choice.function.name: schemas[choice.function.name]}
    rules = CallRules(
        schemas,
        "xml" if "<function=" in tokenizer.chat_template else "json",
        must_call=choice != "auto",
        is_single=isinstance(choice, NamedTool) or asked.parallel_tool_calls is False,
    )
    try:
        return Grammar("lark", calls_lark(rules))
    except UsageError as error:
        raise ApiError(400, f"the tools cannot be put into a grammar: {error}", "tools") from None
