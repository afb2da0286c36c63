"""``/v1/responses`` in its basic form: text in, one text out, whole or as OpenAI's named events."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from time import time
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from flashdraft.server.api_errors import ApiError, Json
from flashdraft.server.fields import BlockSizeField, Count, Fields
from flashdraft.server.handlers import answer_len, check_model, respond, service_of, usage
from flashdraft.server.http_io import event, read_json
from flashdraft.server.prompts import encode_chat
from flashdraft.server.protocol import Message, SamplingFields
from flashdraft.server.service import Submission, Wish
from flashdraft.server.structured import JsonSchema, ResponseFormat
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
    prompt = await encode_chat(service.tokenizer, _messages(asked))
    length = answer_len(service, len(prompt), asked.max_output_tokens, "max_output_tokens")
    params = asked.params(service.defaults, length)[0]
    submission = await service.submit([Wish(prompt, params, asked.stop_texts, asked.block_size)])
    writer = _Form(asked, asked.model or service.config.model_names[0])
    return await respond(request, submission, asked.stream, writer.whole, writer.events)


def _messages(asked: ResponsesRequest) -> list[Message]:
    said = asked.input
    turns = [Message(role="user", content=said)] if isinstance(said, str) else said
    return [Message(role="system", content=asked.instructions), *turns] if asked.instructions else turns


class _Form:
    """How one answer is written down."""

    def __init__(self, asked: ResponsesRequest, model: str) -> None:
        self.asked, self.model, self.created_at = asked, model, int(time())

    def whole(self, submission: Submission) -> Json:
        """The response object, finished or not."""
        answer = submission.answers[0]
        status = {None: "in_progress", "length": "incomplete"}.get(answer.finish_reason, "completed")
        response: Json = {
            "id": f"resp_{submission.id}",
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "model": self.model,
            "output": [_item(submission, status)] if answer.finish_reason else [],
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": self.asked.instructions,
            "max_output_tokens": self.asked.max_output_tokens,
            "temperature": answer.wish.params.temperature,
            "top_p": answer.wish.params.top_p,
            "tools": [],
            "tool_choice": "none",
            "parallel_tool_calls": False,
            "metadata": {},
        }
        return response | {"usage": _usage(submission) if answer.finish_reason else None}

    async def events(self, submission: Submission) -> AsyncGenerator[str, None]:
        """OpenAI's events for one message of one text part."""
        number = -1

        def tell(kind: str, **data: Any) -> str:
            nonlocal number
            number += 1
            return event({"type": kind, "sequence_number": number} | data, kind)

        answer = submission.answers[0]
        item_at = {"output_index": 0}
        part_at = {"item_id": f"msg_{submission.id}", "output_index": 0, "content_index": 0}
        yield tell("response.created", response=self.whole(submission))
        yield tell("response.in_progress", response=self.whole(submission))
        yield tell(
            "response.output_item.added", **item_at, item=_item(submission, "in_progress") | {"content": []}
        )
        yield tell("response.content_part.added", **part_at, part=_part(""))
        async with aclosing(submission.deltas()) as deltas:
            async for delta in deltas:
                if delta.text:
                    yield tell("response.output_text.delta", **part_at, delta=delta.text, logprobs=[])
        response = self.whole(submission)
        yield tell("response.output_text.done", **part_at, text=answer.text, logprobs=[])
        yield tell("response.content_part.done", **part_at, part=_part(answer.text))
        yield tell("response.output_item.done", **item_at, item=response["output"][0])
        yield tell(f"response.{response['status']}", response=response)


def _part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": []}


def _item(submission: Submission, status: str) -> Json:
    return {
        "type": "message",
        "id": f"msg_{submission.id}",
        "status": status,
        "role": "assistant",
        "content": [_part(submission.answers[0].text)],
    }


def _usage(submission: Submission) -> Json:
    counts = usage(submission)
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": submission.answers[0].num_cached_tokens},
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counts["total_tokens"],
    }
