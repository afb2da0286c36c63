"""An answer's text taken apart as it comes: what was thought, what is said, which tools are called."""

from dataclasses import dataclass
from typing import Any, Literal

from flashdraft.server.bare_calls import BareCallReader
from flashdraft.server.call_styles import CHANNEL, CallStyle, Tools
from flashdraft.server.harmony import START, HarmonyReader
from flashdraft.server.tool_calls import CallNews, CallReader, Parts, start_len

THINK, END_THINK = "<think>", "</think>"
Thinking = Literal["open", "possible", "none", "harmony"]


def thinking_of(chat_template: str | None, prompt_end: str) -> Thinking:
    """Whether an answer begins with thoughts, by the template and the end of the prompt that it made.

    "open": the prompt ends within ``<think>``; "possible": the answer may open it itself; "harmony": its messages say
    themselves what they are.
    """
    if chat_template and CHANNEL in chat_template and prompt_end.endswith(START):
        return "harmony"
    if not chat_template or END_THINK not in chat_template or prompt_end.rstrip().endswith(END_THINK):
        return "none"
    return "open" if prompt_end.rstrip().endswith(THINK) else "possible"


@dataclass
class Call:
    """A whole tool call; ``arguments`` is JSON."""

    name: str
    arguments: str = ""


class PartsReader:
    """Reads one answer. The sum of its news does not depend on where the text was cut into pieces.

    White space at the borders belongs to nobody: around thoughts, before calls and between them. A call in thoughts
    that were not closed is a call. ``tools``: None: the text is not searched for calls.
    """

    def __init__(self, thinking: Thinking, tools: Tools | None = None) -> None:
        self._state = {"open": "think", "possible": "start"}.get(thinking, "content")
        self._tools = tools
        self._held = ""
        self._gap = ""  # white space before the call that is read now
        self._trims = thinking == "open"  # white space in front is not wanted
        self._num_calls = 0
        self.num_whole_calls = 0
        self._call: CallReader | None = None
        self._around = ""  # the state that the call stands in

    @property
    def is_thinking(self) -> bool:
        """Whether the text that comes next belongs to thoughts."""
        return self._state == "think" or (self._state == "call" and self._around == "think")

    @property
    def has_begun(self) -> bool:
        """Whether it is known if there are thoughts."""
        return self._state != "start"

    def push(self, text: str) -> Parts:
        """Take more text."""
        parts = Parts()
        self._held += text
        while self._step(parts):
            pass
        return parts

    def flush(self, is_cut: bool = False) -> Parts:
        """The answer is over; ``is_cut``: by its length. What was held back."""
        parts = Parts()
        while self._call:
            self._leave(*self._call.flush(is_cut), parts)
            while self._step(parts):
                pass
        if self._state == "think":
            parts.add("thoughts", self._held.rstrip())
        else:
            parts.add("words", "" if self._trims and not self._held.strip() else self._held)
        self._held = ""
        return parts

    def _step(self, parts: Parts) -> bool:
        """Read as far as one state goes; whether another may read on."""
        if self._state == "call":
            return self._read_call(parts)
        if self._state == "start":
            return self._read_start()
        if self._trims:
            self._held = self._held.lstrip()
            if not self._held:
                return False
            self._trims = False
        if self._state == "think":
            return self._read_thoughts(parts)
        return self._read_content(parts)

    def _read_start(self) -> bool:
        begun = self._held.lstrip()
        if begun.startswith(THINK):
            self._held, self._state, self._trims = begun[len(THINK) :], "think", True
        elif THINK.startswith(begun):
            return False
        else:
            self._state = "content"
        return True

    def _read_thoughts(self, parts: Parts) -> bool:
        if self._read_until_call(parts, END_THINK):
            return True
        thought, end, rest = self._held.partition(END_THINK)
        if end:
            parts.add("thoughts", thought.rstrip())
            self._held, self._state, self._trims = rest, "content", True
            return True
        parts.add("thoughts", self._release(END_THINK, *self._openers))
        return False

    def _read_content(self, parts: Parts) -> bool:
        if self._tools is None:
            parts.add("words", self._held)
            self._held = ""
            return False
        if self._read_until_call(parts):
            return True
        parts.add("words", self._release(*self._openers))
        return False

    @property
    def _openers(self) -> tuple[str, ...]:
        return () if self._tools is None else self._tools.openers

    def _read_until_call(self, parts: Parts, end: str = "") -> bool:
        """Begin a call, if one stands before ``end``."""
        found = [(at, one) for one in self._openers if (at := self._held.find(one)) >= 0]
        at, opener = min(found, default=(len(self._held), ""))
        if not opener or (end and end in self._held[:at]):
            return False
        assert self._tools is not None
        said, self._held = self._held[:at], self._held[at + len(opener) :]
        self._say(said.rstrip(), parts)
        self._gap = said[len(said.rstrip()) :]
        kind = CallReader if self._tools.style in ("xml", "json") else BareCallReader
        self._call = kind(self._num_calls, self._tools, opener)
        self._around, self._state = self._state, "call"
        return True

    def _say(self, text: str, parts: Parts) -> None:
        state = self._around if self._state == "call" else self._state
        parts.add("thoughts" if state == "think" else "words", text)

    def _read_call(self, parts: Parts) -> bool:
        assert self._call is not None
        self._leave(*self._call.push(self._held), parts)
        return self._call is None

    def _leave(self, news: list[CallNews], rest: str, parts: Parts) -> None:
        """Note what the reader of calls said; when it is done, go on with ``rest``."""
        assert self._call is not None
        self._held = rest
        parts.news += news
        opener = self._call.opener
        for one in news:
            self._num_calls += one.kind == "name"
            self.num_whole_calls += one.kind == "end"
            self._gap = "" if one.kind == "end" else self._gap
        if self._call.is_done:
            is_broken = bool(news) and news[-1].kind == "broken"
            if is_broken:
                self._say(self._gap + opener, parts)
            self._call, self._state, self._trims = None, self._around, not is_broken

    def _release(self, *markers: str) -> str:
        """What can neither be the start of a marker nor white space before it."""
        keep = max(start_len(self._held, marker) for marker in markers)
        ready = self._held[: len(self._held) - keep].rstrip()
        self._held = self._held[len(ready) :]
        return ready


Reader = PartsReader | HarmonyReader


def reader_of(thinking: Thinking, tools: Tools | None) -> Reader:
    """What reads an answer."""
    return HarmonyReader(tools) if thinking == "harmony" else PartsReader(thinking, tools)


def read_whole(
    text: str, thinking: Thinking, tools: Tools | None, is_cut: bool = False
) -> tuple[Parts, list[Call], int]:
    """A finished answer: its parts, its calls, and how many of these are whole (all but one cut by the length)."""
    reader = reader_of(thinking, tools)
    whole = Parts(reader.push(text).news + reader.flush(is_cut).news)
    calls: dict[int, Call] = {}
    for one in whole.calls:
        if one.kind == "name":
            calls[one.index] = Call(one.text)
        elif one.kind == "arguments":
            calls[one.index].arguments += one.text
        elif one.kind == "broken":
            calls.pop(one.index, None)
    return whole, list(calls.values()), reader.num_whole_calls


def tools_of(asked: list[dict[str, Any]], style: CallStyle) -> Tools:
    """OpenAI's ``tools``."""
    return Tools({one["function"]["name"]: one["function"].get("parameters") or {} for one in asked}, style)
