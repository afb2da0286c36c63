"""``/v1/chat/completions`` and ``/v1/completions``: OpenAI's two ways of asking, whole and streamed."""

from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from flashdraft.sampling_params import SamplingParams
from flashdraft.server.answer_parts import Thinking, thinking_of
from flashdraft.server.api_errors import ApiError
from flashdraft.server.handlers import answer_len, check_model, respond, service_of
from flashdraft.server.http_io import read_json
from flashdraft.server.openai_form import ChatForm, Echo, Form, TextForm
from flashdraft.server.prompts import encode_chat, encode_text, prompt_end, with_effort
from flashdraft.server.protocol import ChatRequest, CompletionRequest, OpenAIRequest
from flashdraft.server.service import Service, Wish
from flashdraft.server.structured import behind_thoughts
from flashdraft.server.tool_choice import ToolChoice, tool_choice_of
from flashdraft.server.unsupported import refuse_unsupported

_DEFAULT_COMPLETION_LEN = 16  # OpenAI's


async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    body = await read_json(request)
    refuse_unsupported(body, ChatRequest)
    asked = ChatRequest.model_validate(body)
    service = service_of(request)
    check_model(service, asked.model)
    tokenizer = service.tokenizer
    choice = tool_choice_of(asked, tokenizer)
    service.admit(asked.n or 1)
    prompt = await encode_chat(
        service,
        asked.messages,
        with_effort(tokenizer, asked.chat_template_kwargs, asked.reasoning_effort),
        choice.shown,
        add_special_tokens=bool(asked.add_special_tokens),
    )
    prompt = _last(prompt, asked)
    thinking = thinking_of(tokenizer.chat_template, prompt_end(tokenizer, prompt))
    params = _params(service, asked, prompt, asked.max_completion_tokens or asked.max_tokens)
    said = tuple(message.model_dump(exclude_none=True) for message in asked.messages)
    wishes = [
        Wish(prompt, _chat_params(one, asked, choice, thinking), asked.block_size, messages=said)
        for one in params
    ]
    form = ChatForm(service, asked, thinking, choice.callable, asked.num_logprobs is not None)
    return await _run(service, asked, wishes, form)


async def completions(request: Request) -> Response:
    """Continue one text or several."""
    body = await read_json(request)
    refuse_unsupported(body, CompletionRequest)
    asked = CompletionRequest.model_validate(body)
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
        kept = _last(prompt, asked)
        if len(kept) < len(prompt):
            said, prompt = kept, kept
        length = _DEFAULT_COMPLETION_LEN if asked.max_tokens is None else asked.max_tokens
        for one in _params(service, asked, prompt, length or 1):
            params = replace(one, logprobs=asked.num_logprobs, prompt_logprobs=scored)
            wishes.append(Wish(prompt, params, asked.block_size, scores_only=length == 0))
        if asked.echo:
            echoes.append(Echo(said if isinstance(said, str) else None, prompt))
    form = TextForm(service, asked, echoes, asked.num_logprobs is not None)
    return await _run(service, asked, wishes, form)


def _chat_params(
    params: SamplingParams, asked: ChatRequest, choice: ToolChoice, thinking: Thinking
) -> SamplingParams:
    """With what only a chat can ask for. A grammar begins behind the thoughts."""
    if params.grammar and choice.grammar and not asked.wants_json:
        raise ApiError(400, "a grammar and tool_choice both say what the answer is", "tool_choice")
    grammar = choice.grammar or params.grammar
    return behind_thoughts(replace(params, grammar=grammar, logprobs=asked.num_logprobs), thinking)


def _last(prompt: list[int], asked: OpenAIRequest) -> list[int]:
    return prompt[-asked.truncate_prompt_tokens :] if asked.truncate_prompt_tokens else prompt


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
