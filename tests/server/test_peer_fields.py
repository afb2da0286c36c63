"""Every field of OpenAI's, vLLM's, SGLang's and Anthropic's published types is known: served, refused or tolerated."""

import json
import typing
from pathlib import Path
from typing import Any

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from flashdraft.server.fields import Fields
from flashdraft.server.messages_api import (
    CountTokensRequest,
    MessagesRequest,
    MessageTool,
    MessageToolChoice,
    MessageTurn,
    OutputConfig,
    ThinkingSetting,
)
from flashdraft.server.protocol import ChatRequest, CompletionRequest, TokenizeRequest
from flashdraft.server.responses_api import ResponsesRequest
from flashdraft.server.sglang_api import GenerateRequest, SGLangSampling
from flashdraft.server.unsupported import known_fields
from server_case import Running

PEERS = json.loads(Path(__file__).with_name("peer_fields.json").read_text())
MODELS: dict[str, type[Fields]] = {
    "chat": ChatRequest,
    "completion": CompletionRequest,
    "responses": ResponsesRequest,
    "tokenize": TokenizeRequest,
    "generate": GenerateRequest,
    "sampling_params": SGLangSampling,
    "messages": MessagesRequest,
    "count_tokens": CountTokensRequest,
    "message_tool": MessageTool,
    "message_turn": MessageTurn,
    "message_thinking": ThinkingSetting,
    "message_output": OutputConfig,
    "message_choice": MessageToolChoice,
}
OPENAI: dict[str, Any] = {
    "chat": chat_create_params.CompletionCreateParamsBase,
    "completion": completion_create_params.CompletionCreateParamsBase,
    "responses": response_create_params.ResponseCreateParamsBase,
}


def names(model: type[Fields]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


@pytest.mark.parametrize("kind", MODELS)
def test_no_field_of_the_peers_is_dropped(kind: str) -> None:
    model = MODELS[kind]
    is_part = kind.startswith("message_")  # of a request
    known = names(model) | model.tolerated | (frozenset() if is_part else known_fields())
    asked = {name for peer in PEERS.values() for name in peer.get(kind, [])}
    asked |= set(typing.get_type_hints(OPENAI[kind])) if kind in OPENAI else set()
    assert asked - known == set()


MINIMAL: dict[str, Any] = {
    "messages": [{"role": "user", "content": "a"}],
    "prompt": "a",
    "input": "a",
    "text": "a",
    "max_tokens": 1,
    "name": "f",
    "role": "user",
    "content": "a",
    "type": "auto",
    "sampling_params": {},
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_field_that_may_be_left_out_may_be_null(kind: str) -> None:
    model = MODELS[kind]
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    needed = {name: MINIMAL[name] for name, field in fields.items() if field.is_required()}
    needed |= {"type": "disabled"} if kind == "message_thinking" else {}
    for name, field in fields.items():
        if not field.is_required():
            model.model_validate(needed | {name: None})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"thinking_token_budget": 5}),
        ("/v1/chat/completions", {"documents": [{"text": "a"}]}),
        ("/v1/chat/completions", {"logits_processors": ["a"]}),
        ("/v1/chat/completions", {"cache_salt": "a"}),
        ("/v1/completions", {"length_penalty": 2}),
        ("/v1/completions", {"logprob_token_ids": [1]}),
        ("/v1/responses", {"truncation": "auto"}),
        ("/v1/responses", {"max_tool_calls": 1}),
        ("/generate", {"top_logprobs_num": 2}),
        ("/tokenize", {"chat_template": "x"}),
    ],
)
def test_a_known_field_that_is_not_served_is_refused_by_name(
    running: Running, path: str, body: dict[str, Any]
) -> None:
    base = {"messages": [{"role": "user", "content": "a"}], "prompt": "a", "input": "a", "text": "a"}
    wanted = {
        "/v1/responses": "input",
        "/generate": "text",
        "/v1/completions": "prompt",
        "/tokenize": "prompt",
    }
    name = wanted.get(path, "messages")
    response = running.post(path, **({name: base[name]} | body))
    assert (response.status_code, response.json()["error"]["param"]) == (400, next(iter(body)))
