"""How one answer of ``/v1/responses`` is written down: an item of thoughts, where the model has any, and a message."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from time import time
from typing import Any

from flashdraft.server.accounts import usage
from flashdraft.server.answer_parts import PartsReader, Thinking, read_whole
from flashdraft.server.api_errors import Json
from flashdraft.server.http_io import event
from flashdraft.server.service import Submission


class ResponseForm:
    """Whole, or as OpenAI's named events. ``asked``: fields of the request that are told again."""

    def __init__(self, model: str, thinking: Thinking, asked: Json) -> None:
        self.model, self.thinking, self.asked, self.created_at = model, thinking, asked, int(time())

    def whole(self, submission: Submission) -> Json:
        """The response object, finished or not."""
        answer = submission.answers[0]
        status = {None: "in_progress", "length": "incomplete"}.get(answer.finish_reason, "completed")
        parts, _, _ = read_whole(answer.text, self.thinking, None)
        items = [self._message(submission, status, parts.content)]
        if self.thinking != "none":
            items.insert(0, self._thoughts(submission, status, parts.reasoning))
        return self.asked | {
            "id": f"resp_{submission.id}",
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "model": self.model,
            "output": items if answer.finish_reason else [],
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "temperature": answer.wish.params.temperature,
            "top_p": answer.wish.params.top_p,
            "tools": [],
            "tool_choice": "none",
            "parallel_tool_calls": False,
            "metadata": {},
            "usage": _usage(submission, self.thinking) if answer.finish_reason else None,
        }

    async def events(self, submission: Submission) -> AsyncGenerator[str, None]:
        """The thoughts' item first, which ends when the first words come, then the message's."""
        tell = _Teller()
        yield tell("response.created", response=self.whole(submission))
        yield tell("response.in_progress", response=self.whole(submission))
        reader = PartsReader(self.thinking)
        open_item = _OpenItem(tell, self, submission)
        for one in open_item.begin():
            yield one
        async with aclosing(submission.deltas()) as deltas:
            async for delta in deltas:
                for parts in (reader.push(delta.text), *([reader.flush()] if delta.finish_reason else [])):
                    for one in open_item.add(parts.reasoning, parts.content):
                        yield one
        response = self.whole(submission)
        for one in open_item.end(response["output"]):
            yield one
        yield tell(f"response.{response['status']}", response=response)

    def _thoughts(self, submission: Submission, status: str, text: str) -> Json:
        content = [{"type": "reasoning_text", "text": text}] if text else []
        named = {"type": "reasoning", "id": f"rs_{submission.id}", "status": status}
        return named | {"summary": [], "content": content}

    def _message(self, submission: Submission, status: str, text: str) -> Json:
        named = {"type": "message", "id": f"msg_{submission.id}", "status": status, "role": "assistant"}
        return named | {"content": [_text_part(text)]}


class _Teller:
    """Numbers the events."""

    def __init__(self) -> None:
        self.number = -1

    def __call__(self, kind: str, **data: Any) -> str:
        self.number += 1
        return event({"type": kind, "sequence_number": self.number} | data, kind)


class _OpenItem:
    """The events of the item that is being written: thoughts, then the message."""

    def __init__(self, tell: _Teller, form: ResponseForm, submission: Submission) -> None:
        self._tell, self._id = tell, submission.id
        self._is_message = form.thinking == "none"
        self._message_at = int(not self._is_message)
        self._thoughts = self._words = ""

    @property
    def _at(self) -> Json:
        prefix, index = ("msg", self._message_at) if self._is_message else ("rs", 0)
        return {"item_id": f"{prefix}_{self._id}", "output_index": index, "content_index": 0}

    def begin(self) -> list[str]:
        """A new item."""
        at = self._at
        empty: Json = {"id": at["item_id"], "status": "in_progress", "content": []}
        kind = (
            {"type": "message", "role": "assistant"}
            if self._is_message
            else {"type": "reasoning", "summary": []}
        )
        part = _text_part("") if self._is_message else {"type": "reasoning_text", "text": ""}
        return [
            self._tell("response.output_item.added", output_index=at["output_index"], item=empty | kind),
            self._tell("response.content_part.added", **at, part=part),
        ]

    def add(self, thoughts: str, words: str) -> list[str]:
        """More of it; the first words end the thoughts."""
        told = []
        self._thoughts += thoughts
        self._words += words
        if thoughts:
            told.append(self._tell("response.reasoning_text.delta", **self._at, delta=thoughts))
        if words and not self._is_message:
            told += self._next_item()
        if words:
            told.append(self._tell("response.output_text.delta", **self._at, delta=words, logprobs=[]))
        return told

    def end(self, items: list[Json]) -> list[str]:
        """The answer is over; ``items`` as they stand in the response."""
        told = [] if self._is_message else self._next_item()
        at, item = self._at, items[-1]
        return [
            *told,
            self._tell("response.output_text.done", **at, text=self._words, logprobs=[]),
            self._tell("response.content_part.done", **at, part=_text_part(self._words)),
            self._tell("response.output_item.done", output_index=at["output_index"], item=item),
        ]

    def _next_item(self) -> list[str]:
        at, part = self._at, {"type": "reasoning_text", "text": self._thoughts}
        item = {
            "type": "reasoning",
            "id": at["item_id"],
            "status": "completed",
            "summary": [],
            "content": [part],
        }
        told = [
            self._tell("response.reasoning_text.done", **at, text=self._thoughts),
            self._tell("response.content_part.done", **at, part=part),
            self._tell("response.output_item.done", output_index=0, item=item),
        ]
        self._is_message = True
        return told + self.begin()


def _text_part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": []}


def _usage(submission: Submission, thinking: Thinking) -> Json:
    counts = usage(submission, thinking)
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": counts["prompt_tokens_details"],
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": {
            "reasoning_tokens": counts["completion_tokens_details"]["reasoning_tokens"]
        },
        "total_tokens": counts["total_tokens"],
    }
