"""``/v1/responses`` in its basic form: text in, one text out, whole or as OpenAI's named events."""

from typing import Annotated, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from flashdraft.server.answer_parts import thinking_of
from flashdraft.server.api_errors import ApiError
from flashdraft.server.fields import BlockSizeField, Count, Fields
from flashdraft.server.handlers import answer_len, check_model, respond, service_of
from flashdraft.server.http_io import read_json
from flashdraft.server.prompts import encode_chat, prompt_end
from flashdraft.server.protocol import Message, SamplingFields
from flashdraft.server.responses_form import ResponseForm
from flashdraft.server.service import Wish
from flashdraft.server.structured import JsonSchema, ResponseFormat, behind_thoughts
from flashdraft.server.unsupported import refuse_unsupported


class TextFormat(JsonSchema):
    """``text.format``: the schema stands beside its type."""

    type: Literal["text", "json_object", "json_schema"] = "text"


class TextSettings(Fields):
    """``text``."""

    format: TextFormat | None = None


class ResponsesRequest(SamplingFields):
    """``POST /v1/responses``; nothing is stored, so each request carries its whole conversation."""

    model: str | None = None
    input: str | Annotated[list[Message], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    block_size: BlockSizeField | None = None
    stream: bool = False
    text: TextSettings | None = None


async def responses(request: Request) -> Response:
    """Answer a text or a conversation."""
    body = await read_json(request)
    refuse_unsupported(body, ResponsesRequest)
    asked = ResponsesRequest.model_validate(body)
    if asked.text and (form := asked.text.format):
        asked.response_format = ResponseFormat(type=form.type, json_schema=form)
    if (asked.n or 1) != 1:
        raise ApiError(400, f"n is {asked.n}; /v1/responses gives one answer", "n")
    service = service_of(request)
    check_model(service, asked.model)
    service.admit(1)
    prompt = await encode_chat(service, _messages(asked))
    length = answer_len(service, len(prompt), asked.max_output_tokens, "max_output_tokens")
    thinking = thinking_of(service.tokenizer.chat_template, prompt_end(service.tokenizer, prompt))
    params = behind_thoughts(asked.params(service.defaults, length)[0], thinking)
    submission = await service.submit([Wish(prompt, params, asked.block_size)])
    writer = ResponseForm(
        asked.model or service.config.model_names[0],
        thinking,
        {"instructions": asked.instructions, "max_output_tokens": asked.max_output_tokens},
    )
    return await respond(submission, asked.stream, writer.whole, writer.events)


def _messages(asked: ResponsesRequest) -> list[Message]:
    said = asked.input
    turns = [Message(role="user", content=said)] if isinstance(said, str) else said
    return [Message(role="system", content=asked.instructions), *turns] if asked.instructions else turns
