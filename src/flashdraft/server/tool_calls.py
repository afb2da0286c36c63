"""One tool call as a model writes it, read piece by piece: Qwen3.5's XML or Hermes' JSON, told apart by their looks.

<tool_call>                              <tool_call>
<function=get_weather>                   {"name": "get_weather", "arguments": {"city": "Paris"}}
<parameter=city>                         </tool_call>
Paris
</parameter>
</function>
</tool_call>
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flashdraft.server.argument_types import ArgumentTypes

BEGIN, END = "<tool_call>", "</tool_call>"
_JSON_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')
Tools = Mapping[str, Mapping[str, Any]]  # name -> JSON schema of its arguments
Kind = Literal["name", "arguments", "end", "broken"]


@dataclass(frozen=True)
class CallNews:
    """What is new of the call number ``index``: its name, more of its arguments' JSON, or its end.

    "broken": it was no call after all.
    """

    index: int
    kind: Kind
    text: str = ""


class _BrokenError(Exception):
    """The text is no call."""


def start_len(text: str, marker: str) -> int:
    """Length of the longest end of ``text`` that ``marker`` begins with."""
    return next((n for n in range(min(len(marker) - 1, len(text)), 0, -1) if text.endswith(marker[:n])), 0)


class CallReader:
    """Reads what follows ``<tool_call>``. A call of a tool that is not among ``tools`` is broken."""

    def __init__(self, index: int, tools: Tools) -> None:
        self.index, self.tools = index, tools
        self.is_done = False
        self._raw, self._held = "", ""
        self._news: list[CallNews] = []
        self._read: Callable[[], bool] = self._head
        self._types = ArgumentTypes({})
        self._schema: Any = True  # of the argument that is read now
        self._num_values, self._is_text = 0, False
        self._arguments, self._depth, self._in_text, self._escaped = "", 0, False, False

    def push(self, text: str) -> tuple[list[CallNews], str]:
        """Take more text; the news, and what is left of the text when the call is over."""
        self._held += text
        self._raw += text
        try:
            while not self.is_done and self._read():
                pass
        except _BrokenError:
            return self.give_up()
        rest = self._held if self.is_done else ""
        return self._taken(), rest

    def give_up(self) -> tuple[list[CallNews], str]:
        """It is no call: the news, and the text behind ``<tool_call>``, which may hold another."""
        self.is_done = True
        self._tell("broken")
        return self._taken(), self._raw

    def _taken(self) -> list[CallNews]:
        news, self._news = self._news, []
        return news

    def _tell(self, kind: Kind, text: str = "") -> None:
        self._news.append(CallNews(self.index, kind, text))

    def _begin(self, name: str) -> None:
        if name not in self.tools:
            raise _BrokenError
        self._types = ArgumentTypes(self.tools[name])
        self._tell("name", name)

    def _finish(self, rest: str) -> bool:
        self._tell("end")
        self._held, self.is_done = rest, True
        return False

    def _next_is(self, *markers: str) -> str | None:
        """Which of ``markers`` comes next, past white space; None: that is open yet."""
        self._held = self._held.lstrip()
        for marker in markers:
            if self._held.startswith(marker):
                return marker
        if any(marker.startswith(self._held) for marker in markers):
            return None
        raise _BrokenError

    # Each state reads what it can of _held; False: it needs more.

    def _head(self) -> bool:
        form = self._next_is("<function=", "{")
        if form == "{":
            self._read = self._json_head
        elif form and (end := self._held.find(">")) > 0:
            self._begin(self._held[len(form) : end])
            self._held = self._held[end + 1 :]
            self._read = self._parameter
        else:
            return False
        return True

    def _parameter(self) -> bool:
        found = self._next_is("<parameter=", "</function>")
        if found == "</function>":
            self._tell("arguments", "}" if self._num_values else "{}")
            self._held = self._held[len(found) :]
            self._read = self._xml_end
            return True
        end = self._held.find(">")
        # The value begins after one line break, which must be there to be left out.
        if not found or end < 0 or end + 1 == len(self._held):
            return False
        key = self._held[len(found) : end]
        self._held = self._held[end + 1 :].removeprefix("\n")
        self._schema = self._types.named(key)
        self._is_text = self._types.is_free_text(self._schema)
        lead = ", " if self._num_values else "{"
        self._num_values += 1
        self._tell("arguments", f"{lead}{_dumps(key)}: " + '"' * self._is_text)
        self._read = self._value
        return True

    def _value(self) -> bool:
        end = self._held.find("</parameter>")
        if end >= 0:
            value = self._held[:end].removesuffix("\n")
            self._held = self._held[end + len("</parameter>") :]
            self._tell(
                "arguments", _dumps(value)[1:] if self._is_text else self._types.typed(value, self._schema)
            )
            self._read = self._parameter
            return True
        if self._is_text:
            keep = max(start_len(self._held, "</parameter>"), start_len(self._held, "\n</parameter>"))
            ready, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
            if ready:
                self._tell("arguments", _dumps(ready)[1:-1])
        return False

    def _xml_end(self) -> bool:
        return self._next_is(END) is not None and self._finish(self._held[len(END) :])

    def _json_head(self) -> bool:
        if head := _JSON_HEAD.match(self._held):
            self._begin(_loads(head[1]))
            self._held = self._held[head.end() :]
            self._read = self._json_arguments
            return True
        end = self._held.find(END)
        return end >= 0 and self._json_whole(self._held[:end], self._held[end + len(END) :])

    def _json_whole(self, text: str, rest: str) -> bool:
        """A call whose fields stand in another order."""
        call = _loads(text)
        arguments = call.get("arguments", {}) if isinstance(call, dict) else None
        if not isinstance(arguments, dict) or not isinstance(call.get("name"), str):
            raise _BrokenError
        self._begin(call["name"])
        self._tell("arguments", _dumps(arguments))
        return self._finish(rest)

    def _json_arguments(self) -> bool:
        for at, char in enumerate(self._held):
            if self._in_text:
                self._in_text = self._escaped or char != '"'
                self._escaped = char == "\\" and not self._escaped
            elif char == '"':
                self._in_text = True
            else:
                self._depth += (char in "{[") - (char in "}]")
                if not self._depth:
                    self._pass_on(at + 1)
                    _loads(self._arguments)
                    self._read = self._json_end
                    return True
        self._pass_on(len(self._held))
        return False

    def _pass_on(self, num_chars: int) -> None:
        text, self._held = self._held[:num_chars], self._held[num_chars:]
        self._arguments += text
        if text:
            self._tell("arguments", text)

    def _json_end(self) -> bool:
        if self._next_is("}") is None:
            return False
        self._held = self._held[1:]
        self._read = self._xml_end
        return True


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _loads(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise _BrokenError from None


def _refuse_constant(name: str) -> None:
    raise ValueError(name)
