"""An answer in harmony, the form of gpt-oss: messages of channels, one behind the other.

<|channel|>analysis<|message|>thoughts<|end|>
<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Rome"}<|call|>
<|start|>assistant<|channel|>final<|message|>words<|return|>

(openai/harmony, docs/format.md.) Its own library is not used: it brings the vocabulary of gpt-oss over the network, and
reads that one alone.
"""

import re

from flashdraft.server.call_styles import CHANNEL, TO_FUNCTION, Tools
from flashdraft.server.loose_json import LooseJson
from flashdraft.server.tool_calls import CallNews, Parts, start_len

START, MESSAGE, FINAL = "<|start|>assistant", "<|message|>", f"{CHANNEL}final<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>", CHANNEL)
_HEADERS = ("to=", *_ENDS)  # what a header begins with
_CHANNEL = re.compile(re.escape(CHANNEL) + r"\s*(\w+)")
_RECIPIENT = re.compile(re.escape(TO_FUNCTION) + r"([^\s<]+)")
_MAX_HEADER = 1024  # characters, with <|message|>


class HarmonyReader:
    """Reads one answer, as :class:`~flashdraft.server.answer_parts.PartsReader` does.

    What is analysed is thought; what the other channels say to nobody is said. A call of a tool that is not among
    ``tools`` stays text, and so does what has no header. ``tools``: None: there are no calls.
    """

    def __init__(self, tools: Tools | None) -> None:
        self._tools = tools
        self._held = ""
        self._kind = "header"  # or "thoughts", "words", "call": what the text that comes next is
        self._has_thoughts = self._has_words = False
        self._arguments, self._num_calls = LooseJson(), 0
        self.num_whole_calls = 0
        self.has_begun = False

    @property
    def is_thinking(self) -> bool:
        """Whether the text that comes next belongs to thoughts, or stands between them and the next message."""
        return self._kind == "thoughts" or (self._kind == "header" and self._has_thoughts)

    def push(self, text: str) -> Parts:
        """Take more text."""
        parts = Parts()
        self._held += text
        while self._read_header(parts) if self._kind == "header" else self._read_body(parts):
            pass
        return parts

    def flush(self, is_cut: bool = False) -> Parts:  # noqa: ARG002 - as PartsReader has it
        """The answer is over, whether by its length or not. What was held back."""
        parts = Parts()
        told = self._held.lstrip()
        if self._kind == "header" and told and not told.startswith("<|"):
            self._begin("words", parts)
        if self._kind != "header":
            self._say(self._held, parts)
            self._end(parts)
        self._held = ""
        return parts

    def _read_header(self, parts: Parts) -> bool:
        told = self._held.lstrip()
        opener = next((one for one in _HEADERS if told.startswith(one)), None)
        if opener is None and any(one.startswith(told) for one in _HEADERS):
            return False
        end = told.find(MESSAGE, 0, _MAX_HEADER) if opener else -1
        if end < 0 and opener and len(told) < _MAX_HEADER:
            return False
        if end < 0:  # what looks like the beginning of a header is none by itself
            self._begin("words", parts)
            self._say(self._held[: len(self._held) - len(told)] + (opener or ""), parts)
            self._held = told.removeprefix(opener or "")
            return True
        header, self._held = told[:end], told[end + len(MESSAGE) :]
        channel, recipient = _CHANNEL.search(header), _RECIPIENT.search(header)
        if recipient and self._tools is not None and recipient[1] in self._tools.schemas:
            self._kind, self._arguments = "call", LooseJson()
            parts.news.append(CallNews(self._num_calls, "name", recipient[1]))
        elif channel and channel[1] == "analysis":
            self._begin("thoughts", parts)
        else:
            self._begin("words", parts)
            if recipient:
                self._say(header.removeprefix(START) + MESSAGE, parts)
        self.has_begun = True
        return True

    def _begin(self, kind: str, parts: Parts) -> None:
        """A message of ``kind``; an empty line parts it from one before it."""
        seen = self._has_thoughts if kind == "thoughts" else self._has_words
        self._kind, self.has_begun = kind, True
        if seen:
            self._say("\n\n", parts)
        self._has_thoughts |= kind == "thoughts"
        self._has_words |= kind == "words"

    def _read_body(self, parts: Parts) -> bool:
        found = [(at, one) for one in _ENDS if (at := self._held.find(one)) >= 0]
        if not found:
            keep = max(start_len(self._held, one) for one in _ENDS)
            ready, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
            self._say(ready, parts)
            return False
        at, mark = min(found)
        self._say(self._held[:at], parts)
        # What opens the next header is its own.
        self._held = self._held[at if mark in ("<|start|>", CHANNEL) else at + len(mark) :]
        self._end(parts)
        self._kind = "header"
        return True

    def _say(self, text: str, parts: Parts) -> None:
        if self._kind == "thoughts":
            parts.add("thoughts", text)
        elif self._kind == "words":
            parts.add("words", text)
        elif (
            told := "" if self._arguments.is_done or self._arguments.is_broken else self._arguments.push(text)
        ):
            parts.news.append(CallNews(self._num_calls, "arguments", told))

    def _end(self, parts: Parts) -> None:
        """The message is over. A call whose arguments are no JSON object has no end."""
        if self._kind != "call":
            return
        parts.news.append(CallNews(self._num_calls, "end" if self._arguments.is_done else "cut"))
        self.num_whole_calls += self._arguments.is_done
        self._num_calls += 1
