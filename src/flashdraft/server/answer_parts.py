"""An answer's text taken apart as it comes: what was thought, what is said, which tools are called."""

from dataclasses import dataclass, field
from typing import Any, Literal

from flashdraft.server.tool_calls import BEGIN, CallNews, CallReader, Tools, start_len

THINK, END_THINK = "<think>", "</think>"
Thinking = Literal["open", "possible", "none"]


def thinking_of(chat_template: str | None, prompt_end: str) -> Thinking:
    """Whether an answer begins with thoughts, by the template and the end of the prompt that it made.

    "open": the prompt ends within ``<think>``; "possible": the answer may open it itself.
    """
    if not chat_template or END_THINK not in chat_template or prompt_end.rstrip().endswith(END_THINK):
        return "none"
    return "open" if prompt_end.rstrip().endswith(THINK) else "possible"


@dataclass
class Parts:
    """New or whole: thoughts, words and calls."""

    reasoning: str = ""
    content: str = ""
    calls: list[CallNews] = field(default_factory=list)


@dataclass
class Call:
    """A whole tool call; ``arguments`` is JSON."""

    name: str
    arguments: str = ""


class PartsReader:
    """Reads one answer. The sum of its news does not depend on where the text was cut into pieces.

    White space at the borders belongs to nobody: around thoughts, before calls and between them.
    ``tools``: None: the text is not searched for calls.
    """

    def __init__(self, thinking: Thinking, tools: Tools | None = None) -> None:
        self._state = {"open": "think", "possible": "start", "none": "content"}[thinking]
        self._tools = tools
        self._held = ""
        self._gap = ""  # white space before the call that is read now
        self._trims = thinking == "open"  # white space in front is not wanted
        self._num_calls = 0
        self.num_whole_calls = 0
        self._call: CallReader | None = None

    def push(self, text: str) -> Parts:
        """Take more text."""
        parts = Parts()
        self._held += text
        while self._step(parts):
            pass
        return parts

    def flush(self) -> Parts:
        """The answer is over: what was held back."""
        parts = Parts()
        while self._call:
            self._leave(*self._call.give_up(), parts)
            while self._step(parts):
                pass
        if self._state == "think":
            parts.reasoning += self._held.rstrip()
        else:
            parts.content += "" if self._trims and not self._held.strip() else self._held
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
        thought, end, rest = self._held.partition(END_THINK)
        if end:
            parts.reasoning += thought.rstrip()
            self._held, self._state, self._trims = rest, "content", True
            return True
        parts.reasoning += self._release(END_THINK)
        return False

    def _read_content(self, parts: Parts) -> bool:
        if self._tools is None:
            parts.content, self._held = parts.content + self._held, ""
            return False
        said, begin, rest = self._held.partition(BEGIN)
        if begin:
            parts.content += said.rstrip()
            self._held, self._state = rest, "call"
            self._gap = said[len(said.rstrip()) :]
            self._call = CallReader(self._num_calls, self._tools)
            return True
        parts.content += self._release(BEGIN)
        return False

    def _read_call(self, parts: Parts) -> bool:
        assert self._call is not None
        self._leave(*self._call.push(self._held), parts)
        return self._call is None

    def _leave(self, news: list[CallNews], rest: str, parts: Parts) -> None:
        """Note what the call said; when it is over, go on with ``rest``."""
        self._held = rest
        parts.calls += news
        for one in news:
            self._num_calls += one.kind == "name"
            if one.kind == "broken":
                parts.content += self._gap + BEGIN
                self._call, self._state = None, "content"
            elif one.kind == "end":
                self.num_whole_calls += 1
                self._call, self._state, self._trims = None, "content", True

    def _release(self, marker: str) -> str:
        """What can neither be the start of ``marker`` nor white space before it."""
        keep = start_len(self._held, marker)
        ready = self._held[: len(self._held) - keep].rstrip()
        self._held = self._held[len(ready) :]
        return ready


def read_whole(text: str, thinking: Thinking, tools: Tools | None) -> tuple[Parts, list[Call]]:
    """A finished answer: its parts, and its calls that are whole."""
    reader = PartsReader(thinking, tools)
    parts, rest = reader.push(text), reader.flush()
    calls: dict[int, Call] = {}
    for one in [*parts.calls, *rest.calls]:
        if one.kind == "name":
            calls[one.index] = Call(one.text)
        elif one.kind == "arguments":
            calls[one.index].arguments += one.text
        elif one.kind == "broken":
            calls.pop(one.index, None)
    whole = Parts(parts.reasoning + rest.reasoning, parts.content + rest.content)
    return whole, list(calls.values())


def tools_of(asked: list[dict[str, Any]]) -> Tools:
    """Name -> schema of the arguments, of OpenAI's ``tools``."""
    return {one["function"]["name"]: one["function"].get("parameters") or {} for one in asked}
