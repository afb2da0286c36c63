"""How an answer of ``/v1/messages`` is written down: blocks of thinking, text and tool_use, whole or as events."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from flashdraft.server.answer_parts import Thinking
from flashdraft.server.answer_segments import Segment, SegmentNews, SegmentReader, read_segments
from flashdraft.server.api_errors import Json, as_api_error
from flashdraft.server.call_styles import Tools
from flashdraft.server.http_io import event
from flashdraft.server.service import Answer, Submission
from flashdraft.server.tool_calls import read_arguments


class MessageForm:
    """Whole, or as Anthropic's named events."""

    def __init__(self, model: str, thinking: Thinking, tools: Tools | None) -> None:
        self.model, self.thinking, self.tools = model, thinking, tools

    def whole(self, submission: Submission) -> Json:
        """The finished message."""
        answer = submission.answers[0]
        reader = read_segments(answer, self.thinking, self.tools)
        blocks = [_block(submission, one) for one in reader.segments if one.text or one.kind == "call"]
        return self._message(submission) | {"content": blocks} | _stop(answer, reader.has_calls)

    async def events(self, submission: Submission) -> AsyncGenerator[str, None]:
        """The message begins with the first token, when it is known how much of the prompt was found."""
        try:
            async for one in self._events(submission):
                yield one
        except Exception as error:
            yield event(as_api_error(error).messages_body(), "error")

    async def _events(self, submission: Submission) -> AsyncGenerator[str, None]:
        reader = SegmentReader(self.thinking, self.tools)
        blocks = _Blocks(submission)
        has_begun = False
        async with aclosing(submission.deltas()) as deltas:
            async for delta in deltas:
                news = [] if has_begun else list(reader.begin())
                if not has_begun:
                    has_begun = True
                    yield _told("message_start", message=self._message(submission))
                    yield _told("ping")
                for piece in delta.pieces:
                    news += reader.push(piece.text)
                if delta.finish_reason:
                    news += reader.flush(delta.finish_reason == "length")
                for one in news:
                    for event_ in blocks.told(one):
                        yield event_
        answer = submission.answers[0]
        yield _told("message_delta", delta=_stop(answer, reader.has_calls), usage=_usage(answer))
        yield _told("message_stop")

    def _message(self, submission: Submission) -> Json:
        told: Json = {
            "id": f"msg_{submission.id}",
            "type": "message",
            "role": "assistant",
            "model": self.model,
        }
        empty: Json = {"content": [], "stop_reason": None, "stop_sequence": None}
        return told | empty | {"usage": _usage(submission.answers[0])}


class _Blocks:
    """The events of blocks; one without text is not told of."""

    def __init__(self, submission: Submission) -> None:
        self._submission = submission
        self._index = -1
        self._open: Segment | None = None

    def told(self, news: SegmentNews) -> list[str]:
        """The events of one piece of news."""
        one, told = news.segment, []
        if self._open is not one and (news.step == "add" or one.kind == "call") and news.step != "end":
            self._index, self._open = self._index + 1, one
            empty = _block(self._submission, Segment(one.kind, one.index, name=one.name))
            told.append(_told("content_block_start", index=self._index, content_block=empty))
        if news.step == "add":
            told.append(_told("content_block_delta", index=self._index, delta=_delta(one, news.text)))
        if news.step == "end" and self._open is one:
            self._open = None
            if one.kind == "thoughts":
                signature = {"type": "signature_delta", "signature": ""}
                told.append(_told("content_block_delta", index=self._index, delta=signature))
            told.append(_told("content_block_stop", index=self._index))
        return told


def _told(kind: str, **data: Any) -> str:
    return event({"type": kind} | data, kind)


def _delta(one: Segment, text: str) -> Json:
    if one.kind == "thoughts":
        return {"type": "thinking_delta", "thinking": text}
    if one.kind == "words":
        return {"type": "text_delta", "text": text}
    return {"type": "input_json_delta", "partial_json": text}


def _block(submission: Submission, one: Segment) -> Json:
    if one.kind == "thoughts":
        return {"type": "thinking", "thinking": one.text, "signature": ""}
    if one.kind == "words":
        return {"type": "text", "text": one.text}
    return {
        "type": "tool_use",
        "id": f"toolu_{submission.id}_{one.index}",
        "name": one.name,
        "input": read_arguments(one.text) or {},  # the length may have cut it
    }


def _stop(answer: Answer, has_calls: bool) -> Json:
    reason, sequence = "end_turn", None
    if answer.finish_reason == "length":
        reason = "max_tokens"
    elif has_calls:
        reason = "tool_use"
    elif isinstance(answer.stop_reason, str):
        reason, sequence = "stop_sequence", answer.stop_reason
    return {"stop_reason": reason, "stop_sequence": sequence}


def _usage(answer: Answer) -> Json:
    return {
        "input_tokens": len(answer.wish.prompt_token_ids) - answer.num_cached_tokens,
        "cache_read_input_tokens": answer.num_cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": len(answer.token_ids),
    }
