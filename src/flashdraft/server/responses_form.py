"""How one answer of ``/v1/responses`` is written down: items of thoughts, words and function calls."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from time import time
from typing import Any

from flashdraft.server.accounts import ThoughtCounts, usage
from flashdraft.server.answer_parts import Thinking
from flashdraft.server.answer_segments import Segment, SegmentNews, SegmentReader, read_segments
from flashdraft.server.api_errors import Json
from flashdraft.server.call_styles import Tools
from flashdraft.server.http_io import event
from flashdraft.server.service import Submission

_PREFIXES = {"thoughts": "rs", "words": "msg", "call": "fc"}


class ResponseForm:
    """Whole, or as OpenAI's named events.

    ``asked``: fields of the request that are told again. ``namespaces``: of functions, whose calls name them apart.
    """

    def __init__(
        self,
        model: str,
        thinking: Thinking,
        tools: Tools | None,
        asked: Json,
        namespaces: Sequence[str] = (),
    ) -> None:
        self.model, self.thinking, self.tools, self.asked = model, thinking, tools, asked
        self.namespaces = namespaces
        self.created_at = int(time())

    def whole(self, submission: Submission) -> Json:
        """The response object, finished or not."""
        answer = submission.answers[0]
        status = {None: "in_progress", "length": "incomplete"}.get(answer.finish_reason, "completed")
        items: list[Json] = []
        if answer.finish_reason:
            segments = read_segments(answer, self.thinking, self.tools).segments
            items = [self.item(submission, one, _status(one)) for one in segments]
        return {
            "id": f"resp_{submission.id}",
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "model": self.model,
            "output": items,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "temperature": answer.wish.params.temperature,
            "top_p": answer.wish.params.top_p,
            "usage": _usage(submission, self.thinking, self.tools) if answer.finish_reason else None,
            **self.asked,
        }

    async def events(self, submission: Submission) -> AsyncGenerator[str, None]:
        """Each item begins, grows and ends in its turn."""
        tell = _Teller()
        yield tell("response.created", response=self.whole(submission))
        yield tell("response.in_progress", response=self.whole(submission))
        reader = SegmentReader(self.thinking, self.tools)
        for news in reader.begin():
            for one in self._told(tell, submission, news):
                yield one
        async with aclosing(submission.deltas()) as deltas:
            async for delta in deltas:
                told = [news for piece in delta.pieces for news in reader.push(piece.text)]
                told += reader.flush(delta.finish_reason == "length") if delta.finish_reason else []
                for news in told:
                    for one in self._told(tell, submission, news):
                        yield one
        response = self.whole(submission)
        yield tell(f"response.{response['status']}", response=response)

    def item(self, submission: Submission, one: Segment, status: str) -> Json:
        """A segment as an item."""
        named = {"id": f"{_PREFIXES[one.kind]}_{submission.id}_{one.index}", "status": status}
        if one.kind == "thoughts":
            content = [_part(one)] if one.text else []
            return named | {"type": "reasoning", "summary": [], "content": content}
        if one.kind == "words":
            return named | {"type": "message", "role": "assistant", "content": [_part(one)]}
        call = {"call_id": f"call_{submission.id}_{one.index}", "arguments": one.text}
        return named | {"type": "function_call"} | call | self._names(one.name)

    def _names(self, name: str) -> Json:
        """A function's name, and its namespace where it is in one."""
        for space in self.namespaces:
            if name.startswith(f"{space}."):
                return {"name": name.removeprefix(f"{space}."), "namespace": space}
        return {"name": name}

    def _told(self, tell: "_Teller", submission: Submission, news: SegmentNews) -> Iterator[str]:
        one = news.segment
        item = self.item(submission, one, "in_progress")
        at: Json = {"item_id": item["id"], "output_index": one.index}
        within = at | ({} if one.kind == "call" else {"content_index": 0})
        kind = {"thoughts": "reasoning_text", "words": "output_text", "call": "function_call_arguments"}[
            one.kind
        ]
        extra: Json = {"logprobs": []} if one.kind == "words" else {}
        if news.step == "begin":
            item |= {} if one.kind == "call" else {"content": []}
            yield tell("response.output_item.added", output_index=one.index, item=item)
            if one.kind != "call":
                yield tell("response.content_part.added", **within, part=_part(one))
        elif news.step == "add":
            yield tell(f"response.{kind}.delta", **within, delta=news.text, **extra)
        else:
            if one.kind == "call":
                yield tell(f"response.{kind}.done", **within, name=item["name"], arguments=one.text)
            else:
                yield tell(f"response.{kind}.done", **within, text=one.text, **extra)
                yield tell("response.content_part.done", **within, part=_part(one))
            done = self.item(submission, one, _status(one))
            yield tell("response.output_item.done", output_index=one.index, item=done)


class _Teller:
    """Numbers the events."""

    def __init__(self) -> None:
        self.number = -1

    def __call__(self, kind: str, **data: Any) -> str:
        self.number += 1
        return event({"type": kind, "sequence_number": self.number} | data, kind)


def _status(one: Segment) -> str:
    """Of an item that is over."""
    return "incomplete" if one.is_cut else "completed"


def _part(one: Segment) -> Json:
    if one.kind == "thoughts":
        return {"type": "reasoning_text", "text": one.text}
    return {"type": "output_text", "text": one.text, "annotations": []}


def _usage(submission: Submission, thinking: Thinking, tools: Tools | None) -> Json:
    counts = usage(submission, ThoughtCounts(thinking, tools))
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": counts["prompt_tokens_details"],
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": {
            "reasoning_tokens": counts["completion_tokens_details"]["reasoning_tokens"]
        },
        "total_tokens": counts["total_tokens"],
    }
