"""How answers are written down in OpenAI's two forms, whole and as chunks."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from time import time
from typing import Any
from uuid import uuid4

from flashdraft.detokenizer import Detokenizer
from flashdraft.sampler import TokenLogprobs
from flashdraft.server.accounts import ThoughtCounts, meta_info, sglang_speculation, speculation, usage
from flashdraft.server.answer_parts import Reader, Thinking, read_whole, reader_of
from flashdraft.server.answer_text import TokenPiece
from flashdraft.server.api_errors import Json
from flashdraft.server.call_styles import Tools
from flashdraft.server.http_io import DONE, event
from flashdraft.server.logprobs import chat_logprobs, completion_logprobs
from flashdraft.server.protocol import OpenAIRequest, StreamOptions
from flashdraft.server.service import Answer, Delta, Service, Submission
from flashdraft.server.tool_calls import CallNews

Entries = list[tuple[TokenLogprobs | int, str]]  # tokens with their pieces of the text


class Form:
    """What both have in common; they differ in what stands in a choice."""

    prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, service: Service, asked: OpenAIRequest) -> None:
        self.asked, self.tokenizer = asked, service.tokenizer
        self.model = asked.model or service.config.model_names[0]
        self.created = int(time())
        self.as_ids = bool(asked.return_tokens_as_token_ids)

    def whole_choice(self, submission: Submission, index: int) -> Json:
        """A finished answer in a choice."""
        raise NotImplementedError

    def chunk_choice(self, submission: Submission, delta: Delta, is_first: bool) -> Json | None:
        """News in a chunk's choice; None: there are none to tell."""
        raise NotImplementedError

    def whole(self, submission: Submission) -> Json:
        """The finished answers."""
        choices = []
        for index, answer in enumerate(submission.answers):
            choice: Json = {"index": index, "finish_reason": answer.finish_reason, "logprobs": None}
            choice |= self.whole_choice(submission, index)
            if self.asked.return_meta_info:
                choice["meta_info"] = meta_info(submission, index)
            if self.asked.token_origins:
                choice |= _origins(answer.pieces)
            if self.asked.return_token_ids:
                choice["token_ids"] = answer.token_ids
            choices.append(choice)
        told = self._envelope(submission, self.whole_object, choices) | self.account(submission)
        # Of the first answer also where z-lab's benchmark looks for it.
        return told | ({"meta_info": meta_info(submission, 0)} if self.asked.return_meta_info else {})

    def usage(self, submission: Submission) -> Json:
        """The tokens so far."""
        return usage(submission)

    def account(self, submission: Submission) -> Json:
        """What stands at the end, beside the choices."""
        told = {"usage": self.usage(submission), "metrics": speculation(submission.answers)}
        if self.asked.return_spec_tokens_details:
            details = [sglang_speculation(answer) for answer in submission.answers]
            told["sglext"] = {"spec_tokens_details": details if len(details) > 1 else details[0]}
        return told

    async def events(self, submission: Submission) -> AsyncGenerator[str, None]:
        """The answers as they come: chunks, the usage where wanted, and the end."""
        begun: set[int] = set()
        options = self.asked.stream_options or StreamOptions()
        async with aclosing(submission.deltas()) as deltas:
            async for delta in deltas:
                if choice := self._chunk(submission, delta, delta.index not in begun):
                    begun.add(delta.index)
                    chunk = self._envelope(submission, self.chunk_object, [choice])
                    if options.continuous_usage_stats:
                        chunk["usage"] = self.usage(submission)
                    yield event(chunk)
        if options.include_usage or self.asked.return_spec_tokens_details:
            yield event(self._envelope(submission, self.chunk_object, []) | self.account(submission))
        yield DONE

    def _chunk(self, submission: Submission, delta: Delta, is_first: bool) -> Json | None:
        asked = self.asked
        said = self.chunk_choice(submission, delta, is_first)
        if said is None and not asked.token_origins:
            return None
        choice: Json = {"index": delta.index, "finish_reason": delta.finish_reason, "logprobs": None} | (
            said or {}
        )
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


class ChatForm(Form):
    """Messages: thoughts, words and tool calls apart. ``tools``: None: calls are not looked for."""

    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(
        self, service: Service, asked: OpenAIRequest, thinking: Thinking, tools: Tools | None, logprobs: bool
    ) -> None:
        super().__init__(service, asked)
        self.thinking, self.tools, self.logprobs = thinking, tools, logprobs
        self._readers: dict[int, Reader] = {}
        self._thoughts = ThoughtCounts(thinking, tools)

    def usage(self, submission: Submission) -> Json:
        """See :class:`Form`."""
        return usage(submission, self._thoughts)

    def whole_choice(self, submission: Submission, index: int) -> Json:
        """See :class:`Form`."""
        answer = submission.answers[index]
        is_cut = answer.finish_reason == "length"
        parts, calls, num_whole = read_whole(answer.text, self.thinking, self.tools, is_cut)
        message: Json = {"role": "assistant", "content": parts.content, "refusal": None}
        if self.thinking != "none":
            message["reasoning_content"] = parts.reasoning or None
        choice: Json = {"message": message}
        if calls:
            message["content"] = parts.content or None
            message["tool_calls"] = [
                {
                    "id": _call_id(),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in calls
            ]
            if answer.finish_reason == "stop" and num_whole:
                choice["finish_reason"] = "tool_calls"
        if self.logprobs:
            choice["logprobs"] = chat_logprobs(self.tokenizer, answer.pieces, self.as_ids)
        return choice

    def chunk_choice(self, submission: Submission, delta: Delta, is_first: bool) -> Json | None:  # noqa: ARG002
        """See :class:`Form`."""
        if (reader := self._readers.get(delta.index)) is None:
            reader = self._readers[delta.index] = reader_of(self.thinking, self.tools)
        parts = reader.push(delta.text)
        if delta.finish_reason:
            parts.news += reader.flush(delta.finish_reason == "length").news
        said: Json = {"role": "assistant"} if is_first else {}
        content = parts.content
        if reasoning := parts.reasoning:
            said["reasoning_content"] = reasoning
        if calls := _call_deltas(parts.calls):
            said["tool_calls"] = calls
        if content or not said or is_first:
            said["content"] = content
        choice: Json = {"delta": said}
        if delta.finish_reason == "stop" and reader.num_whole_calls:
            choice["finish_reason"] = "tool_calls"
        if self.logprobs and delta.pieces:
            choice["logprobs"] = chat_logprobs(self.tokenizer, delta.pieces, self.as_ids)
        has_news = is_first or content or reasoning or calls or delta.finish_reason
        return choice if has_news or (self.logprobs and delta.pieces) else None


def _call_deltas(news: Sequence[CallNews]) -> list[Json]:
    """OpenAI's deltas: a call's id and name first, then pieces of its arguments."""
    deltas: dict[int, Json] = {}
    for one in news:
        if one.kind == "name":
            function = {"name": one.text, "arguments": ""}
            deltas[one.index] = {
                "index": one.index,
                "id": _call_id(),
                "type": "function",
                "function": function,
            }
        elif one.kind == "arguments":
            empty: Json = {"index": one.index, "function": {"arguments": ""}}
            deltas.setdefault(one.index, empty)["function"]["arguments"] += one.text
    return list(deltas.values())


def _call_id() -> str:
    return f"call_{uuid4().hex[:24]}"


@dataclass(frozen=True)
class Echo:
    """A prompt that is told again before its answer."""

    text: str | None  # None: as its tokens say
    token_ids: list[int]


class TextForm(Form):
    """Plain texts. ``echoes``: of each prompt, in order; none: the prompts are not told again."""

    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def __init__(
        self, service: Service, asked: OpenAIRequest, echoes: Sequence[Echo], logprobs: bool
    ) -> None:
        super().__init__(service, asked)
        self.echoes, self.logprobs = echoes, logprobs
        self._text_lens: dict[int, int] = {}

    def whole_choice(self, submission: Submission, index: int) -> Json:
        """See :class:`Form`."""
        answer = submission.answers[index]
        pieces = answer.pieces if self.logprobs else []
        return self._choice(submission, index, answer.text, pieces, is_first=True)

    def chunk_choice(self, submission: Submission, delta: Delta, is_first: bool) -> Json | None:
        """See :class:`Form`."""
        if not (is_first or delta.text or delta.finish_reason or (self.logprobs and delta.pieces)):
            return None
        pieces = delta.pieces if self.logprobs else []
        return self._choice(submission, delta.index, delta.text, pieces, is_first)

    def _choice(
        self, submission: Submission, index: int, text: str, pieces: Sequence[TokenPiece], is_first: bool
    ) -> Json:
        answer = submission.answers[index]
        entries: Entries = [(one.logprob, one.text) for one in pieces if one.logprob is not None]
        if self.echoes and is_first:
            echo = self.echoes[index * len(self.echoes) // len(submission.answers)]
            before = self.tokenizer.decode(echo.token_ids) if echo.text is None else echo.text
            text = before + text
            entries = [*(self._scored(echo, answer) if self.logprobs else []), *entries]
        choice: Json = {"text": text}
        text_len = self._text_lens.get(index, 0)
        self._text_lens[index] = text_len + len(text)
        if self.logprobs:
            choice["logprobs"] = completion_logprobs(self.tokenizer, entries, text_len, self.as_ids)
        return choice

    def _scored(self, echo: Echo, answer: Answer) -> Entries:
        detokenizer = Detokenizer(self.tokenizer, skip_special_tokens=False)
        texts = [detokenizer.push(token) for token in echo.token_ids]
        if echo.text is not None:
            texts = _within(echo.text, texts)
        scores: list[TokenLogprobs | int] = [echo.token_ids[0], *answer.prompt_logprobs]
        return list(zip(scores, texts, strict=True))


def _within(text: str, pieces: Sequence[str]) -> list[str]:
    """What each token stands for in ``text``: those that the tokenizer put around it, and a space that it put in front
    of the first word, stand for nothing.
    """
    told, at = list[str](), 0
    for piece in pieces:
        inner = piece if text.startswith(piece, at) else piece.removeprefix(" ")
        told.append(inner if text.startswith(inner, at) else "")
        at += len(told[-1])
    return told


def _origins(pieces: Sequence[TokenPiece]) -> dict[str, Any]:
    return {"token_origins": [one.origin for one in pieces], "token_texts": [one.text for one in pieces]}
