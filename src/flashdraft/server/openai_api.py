"""``/v1/chat/completions`` and ``/v1/completions``: OpenAI's two ways of asking, whole and streamed."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from time import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from flashdraft.server.answer_text import TokenPiece
from flashdraft.server.api_errors import Json
from flashdraft.server.handlers import answer_len, check_model, meta_info, respond, service_of, usage
from flashdraft.server.http_io import DONE, event, read_json
from flashdraft.server.prompts import encode_chat, encode_text
from flashdraft.server.protocol import ChatRequest, CompletionRequest, OpenAIRequest
from flashdraft.server.service import Delta, Service, Submission, Wish
from flashdraft.server.unsupported import refuse_unsupported

_DEFAULT_COMPLETION_LEN = 16  # OpenAI's


async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    body = await read_json(request)
    refuse_unsupported(body)
    asked = ChatRequest.model_validate(body)
    service = service_of(request)
    check_model(service, asked.model)
    prompt = await encode_chat(service.tokenizer, asked.messages, asked.chat_template_kwargs)
    max_tokens = asked.max_completion_tokens or asked.max_tokens
    return await _run(
        request, asked, _wishes(service, asked, [prompt], max_tokens), _ChatForm(service, asked)
    )


async def completions(request: Request) -> Response:
    """Continue one text or several."""
    body = await read_json(request)
    refuse_unsupported(body)
    asked = CompletionRequest.model_validate(body)
    service = service_of(request)
    check_model(service, asked.model)
    prompts = [
        await encode_text(service.tokenizer, one) if isinstance(one, str) else one
        for one in _each_prompt(asked.prompt)
    ]
    max_tokens = asked.max_tokens or _DEFAULT_COMPLETION_LEN
    return await _run(request, asked, _wishes(service, asked, prompts, max_tokens), _TextForm(service, asked))


def _each_prompt(prompt: Any) -> list[Any]:
    is_one = isinstance(prompt, str) or (prompt and isinstance(prompt[0], int))
    return [prompt] if is_one or not prompt else prompt


def _wishes(
    service: Service, asked: OpenAIRequest, prompts: list[list[int]], max_tokens: int | None
) -> list[Wish]:
    wishes = []
    for prompt in prompts:
        length = answer_len(service, len(prompt), max_tokens)
        for params in asked.params(service.defaults, length):
            wishes.append(Wish(prompt, params, asked.stop_texts, asked.block_size))
    return wishes


async def _run(request: Request, asked: OpenAIRequest, wishes: list[Wish], form: "_Form") -> Response:
    submission = service_of(request).submit(wishes)
    return await respond(request, submission, asked.stream, form.whole, form.events)


class _Form:
    """How answers are written down; the two ways differ in a few names."""

    prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, service: Service, asked: OpenAIRequest) -> None:
        self.asked = asked
        self.model = asked.model or service.config.model_names[0]
        self.created = int(time())

    def content(self, text: str) -> Json:
        """A whole answer's text in a choice."""
        raise NotImplementedError

    def delta(self, text: str, is_first: bool) -> Json:
        """New text in a chunk's choice."""
        raise NotImplementedError

    def whole(self, submission: Submission) -> Json:
        """The finished answers."""
        choices = []
        for index, answer in enumerate(submission.answers):
            choice = {"index": index, **self.content(answer.text), "finish_reason": answer.finish_reason}
            if self.asked.return_meta_info:
                choice["meta_info"] = meta_info(submission, index)
            if self.asked.token_origins:
                choice |= _origins(answer.pieces)
            choices.append(choice | {"logprobs": None})
        return self._envelope(submission, self.whole_object, choices) | {"usage": usage(submission)}

    async def events(self, submission: Submission) -> AsyncGenerator[str, None]:
        """The answers as they come: chunks, the usage where wanted, and the end."""
        begun: set[int] = set()
        async with aclosing(submission.deltas()) as deltas:
            async for delta in deltas:
                if choice := self._choice(submission, delta, delta.index not in begun):
                    begun.add(delta.index)
                    yield event(self._envelope(submission, self.chunk_object, [choice]))
        if self.asked.stream_options and self.asked.stream_options.include_usage:
            yield event(self._envelope(submission, self.chunk_object, []) | {"usage": usage(submission)})
        yield DONE

    def _choice(self, submission: Submission, delta: Delta, is_first: bool) -> Json | None:
        asked = self.asked
        if not (is_first or delta.text or delta.finish_reason or asked.token_origins):
            return None
        said = self.delta(delta.text, is_first)
        choice = {"index": delta.index, **said, "finish_reason": delta.finish_reason, "logprobs": None}
        if asked.token_origins:
            choice |= _origins(delta.pieces)
            choice |= {"num_drafted": delta.num_drafted, "num_accepted": delta.num_accepted}
        if asked.return_meta_info and delta.finish_reason:
            choice["meta_info"] = meta_info(submission, delta.index)
        return choice

    def _envelope(self, submission: Submission, kind: str, choices: list[Json]) -> Json:
        return {
            "id": f"{self.prefix}-{submission.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


class _ChatForm(_Form):
    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def content(self, text: str) -> Json:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def delta(self, text: str, is_first: bool) -> Json:
        return {"delta": ({"role": "assistant"} if is_first else {}) | {"content": text}}


class _TextForm(_Form):
    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def content(self, text: str) -> Json:
        return {"text": text}

    def delta(self, text: str, is_first: bool) -> Json:  # noqa: ARG002 - the form's signature
        return {"text": text}


def _origins(pieces: list[TokenPiece]) -> Json:
    return {"token_origins": [one.origin for one in pieces], "token_texts": [one.text for one in pieces]}
