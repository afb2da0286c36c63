"""From what a client sent to token ids. What a text model cannot take is refused, never dropped."""

import inspect
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from transformers import PreTrainedTokenizerBase

from flashdraft.server.answer_parts import END_THINK
from flashdraft.server.api_errors import ApiError
from flashdraft.server.call_styles import CallStyle, call_style, template_of
from flashdraft.server.protocol import Message, Tool, ToolCall
from flashdraft.server.service import Service
from flashdraft.server.tool_calls import read_arguments

# What a request may not set: how to tokenize, and what the template is given otherwise.
_RESERVED = {
    *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters,
    *("messages", "raise_exception", "strftime_now"),
}
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")


async def encode_text(service: Service, text: str, add_special_tokens: bool = True) -> list[int]:
    """Token ids of a plain text, off the event loop. Raises ApiError 400 for more than a context can hold."""
    _check_unicode(text, "prompt")
    _check_len(service, len(text), "prompt")

    def encode() -> list[int]:
        ids: list[int] = service.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return ids

    return await service.text_work.run(encode, len(text))


async def encode_chat(
    service: Service,
    messages: Sequence[Message],
    template_kwargs: dict[str, Any] | None = None,
    tools: Sequence[Tool] = (),
    add_generation_prompt: bool = True,
    add_special_tokens: bool = False,
) -> list[int]:
    """Token ids of a conversation through the chat template, ready for the answer.

    The text is rendered first and encoded apart, so that nothing of a request reaches the tokenizer's own settings,
    which all requests share.
    """
    tokenizer = service.tokenizer
    template = template_of(tokenizer, bool(tools))
    if not template:
        raise ApiError(
            400, "the model has no chat template; use /v1/completions with a plain prompt", "messages"
        )
    if len(messages) > service.context_len:
        text = (
            f"there are {len(messages)} messages; expected at most {service.context_len}, the model's context"
        )
        raise ApiError(400, text, "messages", "context_length_exceeded")
    num_chars = sum(map(_num_chars, messages))
    _check_len(service, num_chars, "messages")
    kwargs = _template_kwargs(tokenizer, template_kwargs or {}, template)
    if tools:
        kwargs["tools"] = [tool.model_dump(exclude_none=True) for tool in tools]
        num_chars += len(str(kwargs["tools"]))
        _check_len(service, num_chars, "tools")
    style = call_style(template)
    turns = [_turn(message, message.place(i), style) for i, message in enumerate(messages)]
    if style is None and any(turn["role"] == "tool" or "tool_calls" in turn for turn in turns):
        raise ApiError(400, "the model's chat template knows no tool calls: leave them out", "messages")

    def encode() -> list[int]:
        text = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt, **kwargs
        )
        _check_unicode(text, "messages")
        _check_len(service, len(text), "messages")
        ids: list[int] = tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return ids

    try:
        return await service.text_work.run(encode, num_chars)
    except (TemplateError, TypeError, ValueError) as error:  # it may stumble over what it did not expect
        raise ApiError(400, f"the chat template refuses the conversation: {error}", "messages") from None


def with_effort(template: str, kwargs: dict[str, Any] | None, effort: str | None) -> dict[str, Any]:
    """``kwargs`` of the template, and ``reasoning_effort`` in the template's own words.

    Raises ApiError 400 where these have none for it.
    """
    told = dict(kwargs or {})
    if effort is None:
        return told
    taken = _variables(template)
    if "reasoning_effort" in taken:
        told.setdefault("reasoning_effort", effort)
    elif switch := next((name for name in ("enable_thinking", "thinking") if name in taken), None):
        told.setdefault(switch, effort != "none")
    elif (effort == "none") == (END_THINK in template):
        has = "thinks always" if effort == "none" else "knows no thoughts"
        raise ApiError(
            400, f"reasoning_effort is {effort!r}, but the model {has}: leave it out", "reasoning_effort"
        )
    return told


def _num_chars(message: Message) -> int:
    """At least as many characters as ``message`` brings into the prompt, but for the template's own."""
    parts = [message.content] if isinstance(message.content, str) else message.content or []
    texts = [part if isinstance(part, str) else str(part.get("text", "")) for part in parts]
    texts += [message.reasoning_content or "", message.reasoning or "", message.refusal or ""]
    texts += [call.function.name + str(call.function.arguments or "") for call in message.tool_calls or ()]
    return sum(map(len, texts)) + 1


def _check_len(service: Service, num_chars: int, param: str) -> None:
    """Refuse a text that cannot fit, before anybody takes the time to tokenize it."""
    if num_chars > service.max_chars:
        raise ApiError(
            400,
            f"{param} has {num_chars} characters; expected at most {service.max_chars}, more than the model's context"
            f" of {service.context_len} tokens can hold: shorten it",
            param,
            "context_length_exceeded",
        )


def _template_kwargs(tokenizer: Any, said: Mapping[str, Any], template: str) -> dict[str, Any]:
    """``said``, of which the template must use every name; false asks for nothing where it does not."""
    taken = _variables(template) - _RESERVED - set(tokenizer.special_tokens_map)
    for name, value in said.items():
        if name not in taken and not (value is False and name not in _RESERVED):
            where = f"chat_template_kwargs.{name}"
            expected = ", ".join(sorted(taken)) or "none"
            raise ApiError(400, f"{where} is no variable of the chat template; it takes {expected}", where)
    return {name: value for name, value in said.items() if name in taken}


class _Generation(Extension):
    """Reads transformers' ``{% generation %}`` as if it were not there."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=8)
def _variables(template: str) -> frozenset[str]:
    """The names that ``template`` takes from outside."""
    environment = Environment(extensions=[_Generation, loopcontrols])
    return frozenset(find_undeclared_variables(environment.parse(template)))


def prompt_end(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """The text at the end of a prompt, where the template may have begun the answer."""
    text: str = tokenizer.decode(list(token_ids[-32:]), skip_special_tokens=False)
    return text


def _turn(message: Message, where: str, style: CallStyle | None) -> dict[str, Any]:
    """A message as templates expect it: the arguments of calls as mappings, and their ids as Mistral's want them."""
    call_id = _short_id if style in ("mistral", "mistral-args") else str
    turn: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    turn["content"] = _content(message, where)
    name = "reasoning_content" if message.reasoning_content is not None else "reasoning"
    if (thoughts := getattr(message, name)) is not None:
        _check_unicode(thoughts, f"{where}.{name}")
        turn["reasoning_content"] = thoughts
    for field in ("name", "tool_call_id"):
        if (said := getattr(message, field)) is not None:
            _check_unicode(said, f"{where}.{field}")
            turn[field] = said if field == "name" else call_id(said)
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call_id(call.id or f"call{i:05}"),
                "type": "function",
                "function": _function(call, f"{where}.tool_calls[{i}]"),
            }
            for i, call in enumerate(message.tool_calls)
        ]
    return _in_harmony(turn, where) if style == "harmony" else turn


def _in_harmony(turn: dict[str, Any], where: str) -> dict[str, Any]:
    """As gpt-oss' template wants it: thoughts by another name, to which words before a call belong, and one call."""
    thoughts = turn.pop("reasoning_content", "")
    if turn.get("tool_calls"):
        if len(turn["tool_calls"]) > 1:
            found = f"{where}.tool_calls has {len(turn['tool_calls'])} calls"
            mend = "the model's chat template takes one a message: part them, each before its answer"
            raise ApiError(400, f"{found}; {mend}", f"{where}.tool_calls")
        thoughts, turn["content"] = "\n\n".join(one for one in (thoughts, turn["content"]) if one), ""
    return turn | ({"thinking": thoughts} if thoughts else {})


def _short_id(text: str) -> str:
    """The end of a call's id, nine letters and digits: Mistral's templates refuse any other."""
    return "".join(char for char in text if char.isascii() and char.isalnum())[-9:].rjust(9, "0")


def _function(call: ToolCall, where: str) -> dict[str, Any]:
    arguments = _arguments(call)
    if arguments is None:
        name = f"{where}.function.arguments"
        raise ApiError(400, f"{name} is no JSON object, nor the beginning of one", name)
    return {"name": call.function.name, "arguments": arguments}


def _arguments(call: ToolCall) -> dict[str, Any] | None:
    said = call.function.arguments
    return said if isinstance(said, dict) else read_arguments(said or "")


def _content(message: Message, where: str) -> str:
    if message.content is None:
        _check_unicode(message.refusal or "", f"{where}.refusal")
        return message.refusal or ""
    if isinstance(message.content, str):
        _check_unicode(message.content, f"{where}.content")
        return message.content
    texts = []
    for i, part in enumerate(message.content):
        name = f"{where}.content[{i}]"
        kind = part.get("type")
        text = part.get("refusal" if kind == "refusal" else "text")
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
