"""An answer as a row of segments, thoughts, words and calls in their order: items of Responses, blocks of Messages."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from flashdraft.server.answer_parts import Thinking, reader_of
from flashdraft.server.call_styles import Tools
from flashdraft.server.service import Answer
from flashdraft.server.tool_calls import Parts, TextNews


@dataclass
class Segment:
    """``text``: thoughts, words, or the JSON of a call's arguments, as far as it came. ``name``: of the called tool.

    ``is_cut``: the answer's length ended it, or it is a call without an end.
    """

    kind: Literal["thoughts", "words", "call"]
    index: int
    text: str = ""
    name: str = ""
    is_cut: bool = False


@dataclass(frozen=True)
class SegmentNews:
    """The ``segment`` begins, goes on by ``text``, or is over."""

    step: Literal["begin", "add", "end"]
    segment: Segment
    text: str = ""


class SegmentReader:
    """Reads one answer. What follows what does not depend on how it came.

    Where there are thoughts their segment comes first, and an answer without calls has words, both perhaps empty.
    """

    def __init__(self, thinking: Thinking, tools: Tools | None) -> None:
        self._reader = reader_of(thinking, tools)
        self._has_thoughts = thinking != "none"
        self.segments: list[Segment] = []
        self._open: Segment | None = None
        self._num_whole_calls = 0

    @property
    def has_calls(self) -> bool:
        """Whether there is a call that is whole."""
        return self._num_whole_calls > 0

    def begin(self) -> Iterator[SegmentNews]:
        """Before the first token."""
        if self._has_thoughts:
            yield from self._go_to("thoughts")

    def push(self, text: str) -> Iterator[SegmentNews]:
        """The text of one token."""
        yield from self._told(self._reader.push(text))

    def flush(self, is_cut: bool) -> Iterator[SegmentNews]:
        """The answer is over; ``is_cut``: by its length."""
        yield from self._told(self._reader.flush(is_cut))
        if not any(one.kind != "thoughts" for one in self.segments):
            yield from self._close(is_cut)
            yield from self._go_to("words")
        yield from self._close(is_cut)
        self._num_whole_calls = self._reader.num_whole_calls

    def _told(self, parts: Parts) -> Iterator[SegmentNews]:
        for one in parts.news:
            if one.kind == "name":
                yield from self._go_to("call", one.text)
            elif one.kind == "arguments":
                yield from self._add("call", one.text)
            elif isinstance(one, TextNews):
                yield from self._add(one.kind, one.text)
            elif one.kind != "broken":
                yield from self._close(is_cut=one.kind == "cut")

    def _add(self, kind: Literal["thoughts", "words", "call"], text: str) -> Iterator[SegmentNews]:
        if self._open is None or self._open.kind != kind:
            yield from self._go_to(kind)
        assert self._open is not None
        self._open.text += text
        yield SegmentNews("add", self._open, text)

    def _go_to(self, kind: Literal["thoughts", "words", "call"], name: str = "") -> Iterator[SegmentNews]:
        yield from self._close()
        self._open = Segment(kind, len(self.segments), name=name)
        self.segments.append(self._open)
        yield SegmentNews("begin", self._open)

    def _close(self, is_cut: bool = False) -> Iterator[SegmentNews]:
        if self._open is not None:
            self._open.is_cut = is_cut
            yield SegmentNews("end", self._open)
            self._open = None


def read_segments(answer: Answer, thinking: Thinking, tools: Tools | None) -> SegmentReader:
    """A finished answer, read."""
    reader = SegmentReader(thinking, tools)
    list(reader.begin())
    list(reader.push(answer.text))
    list(reader.flush(answer.finish_reason == "length"))
    return reader
