"""Typed requests: which fields there are, what they mean, and how they become sampling parameters."""

from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, StrictInt

from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.controller import AUTO, BlockSize

MAX_STOPS, MAX_STOP_LEN = 16, 256
MAX_INT = 2**62

TokenIds = list[StrictInt]
StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LEN)]
Count = Annotated[int, Field(ge=1, le=MAX_INT)]


def _block_size(value: Any) -> Any:
    if value == AUTO or (type(value) is int and 1 <= value <= MAX_INT):
        return value
    raise ValueError(f"expected {AUTO} or a number of tokens, 1 or more")


BlockSizeField = Annotated[BlockSize, PlainValidator(_block_size)]


class _Fields(BaseModel):
    """Unknown fields are tolerated."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class SamplingFields(_Fields):
    """What every way of asking may say of how tokens are chosen; left out or null: the server's default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: Annotated[int, Field(ge=-MAX_INT, le=MAX_INT)] | None = None
    ignore_eos: bool | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: TokenIds | None = None
    n: Annotated[int, Field(ge=1, le=4096)] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def params(self, defaults: dict[str, Any], max_tokens: int) -> list[SamplingParams]:
        """One set for each of ``n`` answers; a given seed counts up. Raises UsageError for a value out of range."""
        names = {one.name for one in fields(SamplingParams)} - {"stop", "n", "seed", "max_tokens"}
        said = {name: getattr(self, name) for name in names & set(type(self).model_fields)}
        values = defaults | {name: value for name, value in said.items() if value is not None}
        values["stop_token_ids"] = tuple(values.get("stop_token_ids", ()))
        seeds = [None if self.seed is None else self.seed + i for i in range(self.n or 1)]
        return [SamplingParams(**(values | {"seed": seed, "max_tokens": max_tokens})) for seed in seeds]


class StreamOptions(_Fields):
    """``include_usage``: one more chunk at the end, with the usage."""

    include_usage: bool = False


class OpenAIRequest(SamplingFields):
    """What chat and text completions share, flashdraft's own fields included."""

    model: str | None = None
    max_tokens: Count | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    block_size: BlockSizeField | None = None
    return_meta_info: bool = False  # SGLang's meta_info beside each choice
    token_origins: bool = False  # each token's text and how it came


class Message(_Fields):
    """One message of a conversation; ``content`` is a text or a list of text parts."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]]


class ChatRequest(OpenAIRequest):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    chat_template_kwargs: dict[str, bool | int | float | str] = {}


class CompletionRequest(OpenAIRequest):
    """``POST /v1/completions``."""

    prompt: str | TokenIds | list[str] | list[TokenIds]


class TokenizeRequest(_Fields):
    """``POST /tokenize``: a prompt, or a conversation through the chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool = True


class DetokenizeRequest(_Fields):
    """``POST /detokenize``."""

    model: str | None = None
    tokens: TokenIds
