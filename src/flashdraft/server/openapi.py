"""Every operation of the server, told once: its routes and ``/openapi.json``, OpenAPI 3.1, are made from this."""

from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from flashdraft import __version__
from flashdraft.server import response_types
from flashdraft.server.api_errors import MESSAGES_PATH, Json
from flashdraft.server.handlers import service_of
from flashdraft.server.http_io import Handler, ends_with_client
from flashdraft.server.messages_api import CountTokensRequest, MessagesRequest, count_tokens, messages
from flashdraft.server.openai_api import chat_completions, completions
from flashdraft.server.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from flashdraft.server.responses_api import ResponsesRequest, responses
from flashdraft.server.sglang_api import GenerateRequest, flush_cache, generate
from flashdraft.server.side_api import detokenize, health, metrics, models, playground, tokenize

JSON_TYPE = "application/json"
_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Operation:
    """One path and method: who answers, what goes in and what comes out."""

    path: str
    method: str
    endpoint: Handler
    summary: str
    answer: type[BaseModel] | str  # a type, or the media type of a text
    request: type[BaseModel] | None = None
    example: Json = field(default_factory=dict)  # of a request
    streams: bool = False  # events where the request says ``stream``
    is_list: bool = False  # may answer with a list of ``answer`` too
    statuses: tuple[int, ...] = ()  # beside 200, that have the same form


_MESSAGES = [{"role": "user", "content": "Hello"}]
_CHAT = {"messages": _MESSAGES, "max_tokens": 4, "temperature": 0.5, "logprobs": True, "top_logprobs": 2}
_TEXT = {"prompt": "Hello", "max_tokens": 4, "logprobs": 2, "echo": True, "return_meta_info": True}
_GENERATE = {"text": "Hello", "sampling_params": {"max_new_tokens": 4, "temperature": 0}}


def routes() -> list[Route]:
    """The operations as Starlette has them: a path once, with all of its methods."""
    methods: dict[str, list[str]] = {}
    for one in OPERATIONS:
        methods.setdefault(one.path, []).append(one.method.upper())
    endpoints = {one.path: one.endpoint for one in OPERATIONS}
    return [
        Route(path.replace("{name}", "{name:path}"), endpoint, methods=methods[path])
        for path, endpoint in endpoints.items()
    ]


async def openapi(request: Request) -> Response:
    """``GET /openapi.json``."""
    return JSONResponse(document(service_of(request).config.model_names))


def document(model_names: tuple[str, ...]) -> Json:
    """The whole document; ``model_names`` are those that a request may name."""
    types: dict[tuple[type[BaseModel], Any], None] = {}
    for one in OPERATIONS:
        types[error_of(one), "serialization"] = None
        if one.request:
            types[one.request, "validation"] = None
        if not isinstance(one.answer, str):
            types[one.answer, "serialization"] = None
    refs, schemas = models_json_schema(list(types), ref_template="#/components/schemas/{model}")
    for schema in schemas["$defs"].values():
        if "messages" in schema.get("properties", {}) or "model" in schema.get("properties", {}):
            _name_models(schema["properties"], model_names)
    paths: dict[str, Json] = {}
    for one in OPERATIONS:
        paths.setdefault(one.path, {})[one.method] = _operation(one, refs)
    return {
        "openapi": "3.1.0",
        "info": {"title": "flashdraft", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _name_models(properties: Json, model_names: tuple[str, ...]) -> None:
    model = properties.get("model", {})
    if "anyOf" in model:  # of a request, where it may be left out
        model["anyOf"] = [{"enum": list(model_names)}, {"type": "null"}]


def _operation(one: Operation, refs: Any) -> Json:
    answer = _answer(one, refs)
    error = {
        "description": "What is wrong",
        "content": _content(JSON_TYPE, refs[error_of(one), "serialization"]),
    }
    told: Json = {
        "summary": one.summary,
        "responses": {
            **{
                str(status): {"description": "The answer", "content": answer}
                for status in (200, *one.statuses)
            },
            "default": error,
        },
    }
    if one.request:
        content = _content(JSON_TYPE, refs[one.request, "validation"])
        content[JSON_TYPE]["example"] = one.example
        told["requestBody"] = {"required": True, "content": content}
    if "{name}" in one.path:
        schema = {"type": "string", "minLength": 1}
        told["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": schema}]
    return told


def error_of(one: Operation) -> type[BaseModel]:
    """What an operation answers that is no success."""
    return response_types.MessageError if one.path.startswith(MESSAGES_PATH) else response_types.Error


def _answer(one: Operation, refs: Any) -> Json:
    if isinstance(one.answer, str):
        return _content(one.answer, {} if one.answer == JSON_TYPE else {"type": "string"})
    schema = refs[one.answer, "serialization"]
    if one.is_list:
        schema = {"anyOf": [schema, {"type": "array", "items": schema}]}
    events = _content("text/event-stream", _EVENT) if one.streams else {}
    return _content(JSON_TYPE, schema) | events


def _content(media_type: str, schema: Json) -> Json:
    return {media_type: {"schema": schema}}


OPERATIONS = [
    Operation("/", "get", playground, "The playground", "text/html"),
    Operation(
        "/health", "get", health, "Whether the server can answer", response_types.Health, statuses=(503,)
    ),
    Operation(
        "/ready", "get", health, "Whether the server can answer", response_types.Health, statuses=(503,)
    ),
    Operation("/metrics", "get", metrics, "Metrics for Prometheus", "text/plain"),
    Operation("/openapi.json", "get", openapi, "This document", JSON_TYPE),
    Operation("/v1/models", "get", models, "The models", response_types.ModelList),
    Operation("/v1/models/{name}", "get", models, "One model", response_types.ModelCard),
    Operation(
        "/v1/chat/completions",
        "post",
        ends_with_client(chat_completions),
        "Answer a conversation",
        response_types.ChatCompletion,
        ChatRequest,
        _CHAT,
        streams=True,
    ),
    Operation(
        "/v1/completions",
        "post",
        ends_with_client(completions),
        "Continue texts",
        response_types.TextCompletion,
        CompletionRequest,
        _TEXT,
        streams=True,
    ),
    Operation(
        "/v1/responses",
        "post",
        ends_with_client(responses),
        "Answer once",
        response_types.Response,
        ResponsesRequest,
        {"input": "Hello", "max_output_tokens": 4},
        streams=True,
    ),
    Operation(
        "/v1/messages",
        "post",
        ends_with_client(messages),
        "Answer a conversation, as Anthropic's",
        response_types.MessageAnswer,
        MessagesRequest,
        {"messages": _MESSAGES, "max_tokens": 4},
        streams=True,
    ),
    Operation(
        "/v1/messages/count_tokens",
        "post",
        ends_with_client(count_tokens),
        "Count a conversation's tokens",
        response_types.TokenCount,
        CountTokensRequest,
        {"messages": _MESSAGES},
    ),
    Operation(
        "/generate",
        "post",
        ends_with_client(generate),
        "SGLang's way of asking",
        response_types.GeneratedRow,
        GenerateRequest,
        _GENERATE,
        streams=True,
        is_list=True,
    ),
    Operation("/flush_cache", "get", flush_cache, "Forget prefixes", response_types.Flushed, statuses=(409,)),
    Operation(
        "/flush_cache", "post", flush_cache, "Forget prefixes", response_types.Flushed, statuses=(409,)
    ),
    Operation(
        "/tokenize",
        "post",
        ends_with_client(tokenize),
        "Tokens",
        response_types.Tokens,
        TokenizeRequest,
        {"prompt": "Hello"},
    ),
    Operation(
        "/detokenize",
        "post",
        ends_with_client(detokenize),
        "Text of tokens",
        response_types.Text,
        DetokenizeRequest,
        {"tokens": [1, 2]},
    ),
]
