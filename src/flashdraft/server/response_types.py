"""What the server answers, as types: the OpenAPI document says it to clients, and tests hold the server to it."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length", "tool_calls", "abort"]


class ResponseModel(BaseModel):
    """Every field of an answer is known by name."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ErrorDetail(ResponseModel):
    """What was found, what was expected and the mend; ``param`` names the field of the request."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(ResponseModel):
    """Everything but a success."""

    error: ErrorDetail


class MessageErrorDetail(ResponseModel):
    """Anthropic's words for it."""

    type: str
    message: str


class MessageError(ResponseModel):
    """Everything but a success, as Anthropic tells it."""

    type: Literal["error"]
    error: MessageErrorDetail


class CompletionDetails(ResponseModel):
    """What drafting was worth, and how many tokens were thoughts."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int
    reasoning_tokens: int


class PromptDetails(ResponseModel):
    """Tokens that were found in the prefix cache."""

    cached_tokens: int


class Speculation(ResponseModel):
    """vLLM's account of a request's speculative decoding."""

    mean_acceptance_length: float
    draft_acceptance_rate: float
    acceptance_histogram: list[int]
    num_spec_steps: int
    num_accepted_draft_tokens: int
    num_draft_tokens: int
    num_spec_tokens: int


class Metrics(ResponseModel):
    """vLLM's ``metrics``."""

    speculative_decoding: Speculation


class Usage(ResponseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class MetaInfo(ResponseModel):
    """SGLang's account of one answer."""

    id: str
    finish_reason: dict[str, str] | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    e2e_latency: float
    spec_accept_length: float
    spec_verify_ct: int


class Choice(ResponseModel):
    """What both forms of choice have in common."""

    index: int
    finish_reason: FinishReason | None
    meta_info: MetaInfo | None = None  # with return_meta_info
    token_origins: list[Literal["accepted", "bonus", "plain"]] | None = None  # with token_origins
    token_ids: list[int] | None = None  # with return_token_ids
    token_texts: list[str] | None = None


class TopLogprob(ResponseModel):
    """A token with its natural log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    """One token of the answer, and the most likely ones in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(ResponseModel):
    """All tokens of an answer."""

    content: list[ChatLogprob]
    refusal: None


class CalledFunction(ResponseModel):
    """``arguments`` is JSON."""

    name: str
    arguments: str


class Called(ResponseModel):
    """One tool call."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(ResponseModel):
    """The model's message."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None  # of models that think
    tool_calls: list[Called] | None = None


class ChatChoice(Choice):
    """One answer to a conversation."""

    message: AnswerMessage
    logprobs: ChatLogprobs | None


class ChatCompletion(ResponseModel):
    """The answer of ``/v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    metrics: Metrics
    sglext: dict[str, Any] | None = None  # with return_spec_tokens_details
    meta_info: MetaInfo | None = None  # of the first answer, with return_meta_info


class TextLogprobs(ResponseModel):
    """Parallel lists over the tokens."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(Choice):
    """One continuation of a text."""

    text: str
    logprobs: TextLogprobs | None


class TextCompletion(ResponseModel):
    """The answer of ``/v1/completions``."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    metrics: Metrics
    sglext: dict[str, Any] | None = None  # with return_spec_tokens_details
    meta_info: MetaInfo | None = None  # of the first answer, with return_meta_info


class Response(BaseModel):
    """The answer of ``/v1/responses``; OpenAI's object, of which the varying part is told here."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any]


class MessageAnswer(ResponseModel):
    """The answer of ``/v1/messages``."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: dict[str, int]


class TokenCount(ResponseModel):
    """The answer of ``/v1/messages/count_tokens``."""

    input_tokens: int


class GeneratedRow(ResponseModel):
    """One answer of ``/generate``."""

    text: str
    output_ids: list[int]
    meta_info: MetaInfo


class ModelCard(ResponseModel):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    block_size: int | str
    thinking: bool  # whether the chat template knows of thoughts


class ModelList(ResponseModel):
    """All models that are served."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(ResponseModel):
    """Whether the server can answer."""

    status: str


class Tokens(ResponseModel):
    """The answer of ``/tokenize``."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None  # with return_token_strs


class Text(ResponseModel):
    """The answer of ``/detokenize``."""

    prompt: str


class Flushed(ResponseModel):
    """The answer of ``/flush_cache``."""

    success: bool
    message: str
