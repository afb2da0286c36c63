"""Typed requests: which fields there are, what they mean, and how they become sampling parameters."""

from dataclasses import fields
from typing import Annotated, Any, Literal, Self

from pydantic import Field, WithJsonSchema, model_validator

from flashdraft.errors import UsageError
from flashdraft.sampling_params import SamplingParams
from flashdraft.server.fields import (
    MAX_BIASES,
    MAX_INT,
    MAX_STOPS,
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    BlockSizeField,
    Count,
    Fields,
    ManyTokenIds,
    StopText,
    Texts,
    TokenIds,
    names_elsewhere,
)
from flashdraft.server.structured import GrammarFields


class SamplingFields(GrammarFields):
    """What every way of asking may say of how tokens are chosen; left out or null: the server's default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None  # -1: none
    ignore_eos: bool | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None
    n: Annotated[int, Field(ge=1, le=4096)] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Annotated[dict[int, float], Field(max_length=MAX_BIASES)] | None = None

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def params(self, defaults: dict[str, Any], max_tokens: int) -> list[SamplingParams]:
        """One set for each of ``n`` answers; a given seed counts up. Raises UsageError for a value out of range."""
        names = {one.name for one in fields(SamplingParams)} - {
            "stop",
            "n",
            "seed",
            "max_tokens",
            "logprobs",
            "grammar",
        }
        said = {name: getattr(self, name) for name in names & set(type(self).model_fields)}
        values = defaults | {name: value for name, value in said.items() if value is not None}
        values["stop_token_ids"] = tuple(values.get("stop_token_ids", ()))
        if values.get("min_tokens", 0) > max_tokens:
            raise UsageError(f"min_tokens is {values['min_tokens']}; the answer may have {max_tokens} tokens")
        values |= {"max_tokens": max_tokens, "grammar": self.asked_grammar(), "stop": self.stop_texts}
        seeds = [None if self.seed in (None, -1) else self.seed + i for i in range(self.n or 1)]
        return [SamplingParams(**(values | {"seed": seed})) for seed in seeds]


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class StreamOptions(Fields):
    """``include_usage``: one more chunk at the end, with the usage and the account of speculation."""

    tolerated = frozenset({"include_obfuscation"})

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # vLLM's: with every chunk


class OpenAIRequest(SamplingFields):
    """What chat and text completions share, flashdraft's own fields included."""

    model: str | None = None
    max_tokens: Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    block_size: BlockSizeField | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None  # vLLM's: the last of them
    return_tokens_as_token_ids: bool | None = None  # vLLM's, in logprobs
    return_spec_tokens_details: bool | None = None  # SGLang's
    return_meta_info: bool | None = None  # SGLang's meta_info beside each choice
    token_origins: bool | None = None  # each token's text and how it came
    return_token_ids: bool | None = None  # vLLM's: the answer's token ids beside each choice, not of a stream

    @model_validator(mode="after")
    def _token_ids_of_whole_answers(self) -> Self:
        if self.return_token_ids and self.stream:
            raise ValueError("return_token_ids is for whole answers; leave out stream")
        return self


class FunctionCall(Fields):
    """What an earlier answer called; ``arguments`` is JSON, as a text or as it is."""

    name: str
    arguments: str | dict[str, Any] | None = None


class ToolCall(Fields):
    """One call of an earlier answer."""

    tolerated = frozenset({"index"})  # of the stream that it came by

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


_PART_SCHEMA = {
    "type": "object",
    "properties": {"type": {"enum": ["text", "input_text", "output_text"]}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
ContentPart = Annotated[dict[str, Any], WithJsonSchema(_PART_SCHEMA)]  # others are refused by name


class Message(Fields):
    """One message of a conversation; ``content`` is a text or a list of text parts."""

    tolerated = frozenset({"annotations", "id", "phase", "status"})
    refused = frozenset({"audio", "function_call"})

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # the same, by its newer name
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None  # of who speaks, for templates that show it
    _place: str = ""  # in a request of another form than a chat's

    def placed(self, place: str) -> Self:
        """The same, which errors call by its ``place``."""
        self._place = place
        return self

    def place(self, index: int) -> str:
        """What errors call message number ``index``."""
        return self._place or f"messages[{index}]"

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and self.role != "assistant":
            raise ValueError("content is missing; expected a text or a list of text parts")
        return self


# Which of a provider's own programs may call a tool, and when it is shown to the model: here it always is.
_OF_TOOLS = frozenset({"allowed_callers", "async", "defer_loading", "output_schema"})


class Function(Fields):
    """A tool that the model may call; ``parameters`` is the JSON schema of its arguments."""

    tolerated = _OF_TOOLS
    name: Annotated[str, Field(pattern=r"^[\w.-]{1,128}$")]  # Anthropic's; OpenAI has 64
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Fields):
    """OpenAI's wrapping of a function."""

    type: Literal["function"]
    function: Function


class FunctionName(Fields):
    """Which function."""

    name: str


class NamedTool(Fields):
    """``tool_choice`` that names one tool."""

    type: Literal["function"] = "function"
    function: FunctionName


class AllowedToolNames(Fields):
    """Some of the tools, and whether one of them must be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1)]


class AllowedTools(Fields):
    """``tool_choice`` that leaves some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedToolNames


class ChatRequest(OpenAIRequest):
    """``POST /v1/chat/completions``."""

    renamed = names_elsewhere("max_tokens", "stop", system="messages[0]", instructions="messages[0]")

    messages: Annotated[list[Message], Field(min_length=1), Field(fail_fast=True)]
    max_completion_tokens: Count | None = None
    add_special_tokens: bool | None = None  # vLLM's; None: false, for the template has them
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Effort | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | AllowedTools | NamedTool | None = None
    parallel_tool_calls: bool | None = None

    @property
    def wants_json(self) -> bool:
        """Whether ``response_format`` asks for a schema or for any JSON."""
        return self.response_format is not None and self.response_format.type != "text"

    @property
    def num_logprobs(self) -> int | None:
        """As SamplingParams has it."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self


class CompletionRequest(OpenAIRequest):
    """``POST /v1/completions``."""

    renamed = names_elsewhere("max_tokens", "stop", messages="/v1/chat/completions")

    prompt: str | TokenIds | Texts | ManyTokenIds
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None  # 0: with echo, to score the prompt
    echo: bool | None = None
    add_special_tokens: bool | None = None  # vLLM's; None: true

    @model_validator(mode="after")
    def _no_tokens_with_echo(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0; expected 1 or more, or echo to score the prompt alone")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """As SamplingParams has it."""
        return self.logprobs


class TokenizeRequest(Fields):
    """``POST /tokenize``: a prompt, or a conversation through the chat template."""

    renamed = {"reasoning_effort": "chat_template_kwargs"}  # noqa: RUF012 - see Fields

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None  # None: of a prompt, and not of a conversation
    tools: list[Tool] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None  # None: true
    return_token_strs: bool | None = None


class DetokenizeRequest(Fields):
    """``POST /detokenize``."""

    model: str | None = None
    tokens: TokenIds
