"""``/v1/chat/completions`` and ``/v1/completions``: OpenAI's two ways of asking, whole and streamed."""

from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from flashdraft.sampling_params import SamplingParams
from flashdraft.server.chat import last_tokens, prepare_chat
from flashdraft.server.handlers import answer_len, check_model, read_request, respond, service_of
from flashdraft.server.openai_form import ChatForm, Echo, Form, TextForm
from flashdraft.server.prompts import encode_text
from flashdraft.server.protocol import ChatRequest, CompletionRequest, OpenAIRequest
from flashdraft.server.service import Service, Wish

_DEFAULT_COMPLETION_LEN = 16  # OpenAI's


async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    asked = await read_request(request, ChatRequest)
    service = service_of(request)
    check_model(service, asked.model)
    prepared = await prepare_chat(service, asked, asked.max_completion_tokens or asked.max_tokens)
    form = ChatForm(
        service, asked, prepared.thinking, prepared.choice.callable, asked.num_logprobs is not None
    )
    return await _run(service, asked, prepared.wishes, form)


async def completions(request: Request) -> Response:
    """Continue one text or several."""
    asked = await read_request(request, CompletionRequest)
    service = service_of(request)
    check_model(service, asked.model)
    wishes: list[Wish] = []
    echoes: list[Echo] = []
    scored = asked.num_logprobs if asked.echo else None
    prompts = _each_prompt(asked.prompt)
    service.admit(len(prompts) * (asked.n or 1))
    for said in prompts:
        with_special = asked.add_special_tokens is not False
        prompt = await encode_text(service, said, with_special) if isinstance(said, str) else said
        kept = last_tokens(prompt, asked)
        if len(kept) < len(prompt):
            said, prompt = kept, kept
        length = _DEFAULT_COMPLETION_LEN if asked.max_tokens is None else asked.max_tokens
        for one in _params(service, asked, prompt, length or 1):
            params = replace(one, logprobs=asked.num_logprobs, prompt_logprobs=scored)
            in_pieces = asked.logprobs is not None or bool(asked.token_origins)
            wishes.append(
                Wish(prompt, params, asked.block_size, scores_only=length == 0, in_pieces=in_pieces)
            )
        if asked.echo:
            echoes.append(Echo(said if isinstance(said, str) else None, prompt))
    form = TextForm(service, asked, echoes, asked.num_logprobs is not None)
    return await _run(service, asked, wishes, form)


def _each_prompt(prompt: Any) -> list[Any]:
    is_one = isinstance(prompt, str) or (prompt and isinstance(prompt[0], int))
    return [prompt] if is_one or not prompt else prompt


def _params(
    service: Service, asked: OpenAIRequest, prompt: list[int], max_tokens: int | None
) -> list[SamplingParams]:
    return asked.params(service.defaults, answer_len(service, len(prompt), max_tokens))


async def _run(service: Service, asked: OpenAIRequest, wishes: list[Wish], form: Form) -> Response:
    submission = await service.submit(wishes)
    return await respond(submission, bool(asked.stream), form.whole, form.events)
