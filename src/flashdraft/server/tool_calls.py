"""One tool call as a model writes it, read piece by piece: Qwen3.5's XML or Hermes' JSON, told apart by their looks.

<tool_call>                              <tool_call>
<function=get_weather>                   {"name": "get_weather", "arguments": {"city": "Paris"}}
<parameter=city>                         </tool_call>
Paris
</parameter>
</function>
</tool_call>
"""

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic_core import from_json

from flashdraft.server.argument_types import ArgumentTypes, dumps, loads, read_literal
from flashdraft.server.call_styles import BEGIN, FUNCTION, Tools
from flashdraft.server.loose_json import LooseJson

END, END_FUNCTION, END_PARAMETER = "</tool_call>", "</function>", "</parameter>"
_JSON_HEAD = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_AROUND = " \t\r\n\"'"  # a name that is written like an attribute's value
Kind = Literal["name", "arguments", "end", "cut", "broken"]


@dataclass(frozen=True)
class CallNews:
    """What is new of the call number ``index``: its name, more of its arguments' JSON, or its end.

    "cut": it has no end, for the answer ended within it or what came is no argument; what was told of it stands.
    "broken": it was no call after all, and nothing was told.
    """

    index: int
    kind: Kind
    text: str = ""


@dataclass(frozen=True)
class TextNews:
    """More thoughts or words."""

    kind: Literal["thoughts", "words"]
    text: str


@dataclass
class Parts:
    """Of an answer, new or whole: thoughts, words and calls, as they follow one another."""

    news: list[TextNews | CallNews] = field(default_factory=list)

    def add(self, kind: Literal["thoughts", "words"], text: str) -> None:
        """Note more text."""
        if text:
            self.news.append(TextNews(kind, text))

    @property
    def reasoning(self) -> str:
        """All thoughts."""
        return self._text("thoughts")

    @property
    def content(self) -> str:
        """All words."""
        return self._text("words")

    @property
    def calls(self) -> list[CallNews]:
        """What is new of calls."""
        return [one for one in self.news if isinstance(one, CallNews)]

    def _text(self, kind: str) -> str:
        return "".join(one.text for one in self.news if isinstance(one, TextNews) and one.kind == kind)


class BrokenCallError(Exception):
    """The text is no call."""


def start_len(text: str, marker: str) -> int:
    """Length of the longest end of ``text`` that ``marker`` begins with."""
    return next((n for n in range(min(len(marker) - 1, len(text)), 0, -1) if text.endswith(marker[:n])), 0)


class CallReader:
    """Reads what follows ``opener``. A call of a tool that is not among ``tools`` is broken.

    A call is whole when its body is: models forget end tags, and some begin with ``<function=`` at once.
    """

    def __init__(self, index: int, tools: Tools, opener: str = BEGIN) -> None:
        self.index, self.tools, self.opener = index, tools, opener
        self.is_done = False
        self._raw, self._held = "", FUNCTION if opener == FUNCTION else ""
        self._news: list[CallNews] = []
        self._read: Callable[[], bool] = self._head
        self._types = ArgumentTypes({})
        self._schema: Any = True  # of the argument that is read now
        self._missing: list[str] = []  # declared arguments that have not come yet
        self._num_values, self._is_text, self._is_named = 0, False, False
        self._num_looked_at = 0  # characters of _held that the object has
        self._object = LooseJson()  # the arguments, or the whole call
        self._name, self._told = "", ""  # of the call, of the object

    def push(self, text: str) -> tuple[list[CallNews], str]:
        """Take more text; the news, and what is left of the text when the call is over."""
        self._held += text
        self._raw += text
        try:
            while not self.is_done and self._read():
                pass
        except BrokenCallError:
            if not self._is_named:
                return self._give_up()
            self._tell("cut")  # what a stream has told it cannot take back
            self._held, self._read = self._object.rest, self._left_over
            self._read()
        rest = self._held if self.is_done else ""
        return self._taken(), rest

    def flush(self, is_cut: bool) -> tuple[list[CallNews], str]:
        """The answer is over; ``is_cut``: by its length. The news, and the text of what is no call."""
        try:
            self._end_of_answer(is_cut)
        except BrokenCallError:
            return self._give_up()
        self.is_done = True
        return self._taken(), self._held

    def _end_of_answer(self, is_cut: bool) -> None:
        if self._read == self._left_over:
            self._held = ""
        elif self._read in (self._xml_end, self._json_end):
            self._held = ""
            self._tell("end")
        elif not self._name:
            raise BrokenCallError
        elif is_cut or self._read == self._json_arguments:
            self._tell_name()
            self._held = ""
            self._tell("cut")
        else:
            self._tell_name()
            if self._read == self._value:
                self._end_value(self._held.removesuffix(f"\n{END_FUNCTION}"), "")
            self._held = ""
            self._tell("arguments", "}" if self._num_values else "{}")
            self._tell("end")

    def _give_up(self) -> tuple[list[CallNews], str]:
        self.is_done = True
        self._tell("broken")
        return self._taken(), self._raw

    def _taken(self) -> list[CallNews]:
        news, self._news = self._news, []
        return news

    def _tell(self, kind: Kind, text: str = "") -> None:
        self._news.append(CallNews(self.index, kind, text))

    def _begin(self, name: str) -> None:
        """Of this name; it is told once nothing can be wrong any more."""
        if name not in self.tools.schemas:
            raise BrokenCallError
        self._types, self._name = ArgumentTypes(self.tools.schemas[name]), name
        declared = self._types.object_schema().get("properties")
        self._missing = list(declared) if isinstance(declared, Mapping) else []

    def _tell_name(self) -> None:
        if not self._is_named:
            self._is_named = True
            self._tell("name", self._name)

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
        raise BrokenCallError

    # Each state reads what it can of _held; False: it needs more.

    def _head(self) -> bool:
        form = self._next_is(FUNCTION, "{")
        if form == "{":
            self._read = self._json_head
        elif form and (end := self._held.find(">")) > 0:
            self._begin(self._held[len(form) : end].strip(_AROUND))
            self._held = self._held[end + 1 :]
            self._read = self._parameter
        else:
            return False
        return True

    def _parameter(self) -> bool:
        found = self._next_parameter()
        if found in (END_FUNCTION, END):
            self._tell_name()
            self._tell("arguments", "}" if self._num_values else "{}")
            self._held = self._held.removeprefix(END_FUNCTION)
            self._read = self._xml_end
            return True
        end = self._held.find(">")
        # The value begins after one line break, which must be there to be left out.
        if not found or end < 0 or end + 1 == len(self._held):
            return False
        self._tell_name()
        key = self._held[len(found) : end]
        key = key if key in self._missing else key.strip(_AROUND)
        self._held = self._held[end + 1 :].removeprefix("\n")
        self._schema = self._types.named(key)
        self._is_text = self._types.is_free_text(self._schema)
        self._missing = [name for name in self._missing if name != key]
        lead = ", " if self._num_values else "{"
        self._num_values += 1
        self._tell("arguments", f"{lead}{dumps(key)}: " + '"' * self._is_text)
        self._read = self._value
        return True

    def _next_parameter(self) -> str | None:
        """What comes next. Whatever stands between two arguments is passed over: the call has begun."""
        markers = ("<parameter=", END_FUNCTION, END)
        if not self._is_named:
            return self._next_is(*markers)
        at, found = min(
            ((at, one) for one in markers if (at := self._held.find(one)) >= 0), default=(-1, None)
        )
        keep = max(start_len(self._held, one) for one in markers)
        self._held = self._held[at:] if found else self._held[len(self._held) - keep :]
        return found

    def _value(self) -> bool:
        # Where the end tag is forgotten, a value ends before the next argument, or with the call.
        markers = [
            END_PARAMETER,
            f"\n{END_FUNCTION}\n{END}",
            *(f"\n<parameter={x}>\n" for x in self._missing),
        ]
        found = [(at, marker) for marker in markers if (at := self._held.find(marker)) >= 0]
        if found:
            at, marker = min(found)
            is_tag = marker == END_PARAMETER
            rest = self._held[at + len(marker) if is_tag else at :]
            self._end_value(self._held[:at].removesuffix("\n") if is_tag else self._held[:at], rest)
            return True
        if self._is_text:
            keep = max(start_len(self._held, marker) for marker in (*markers, f"\n{END_PARAMETER}"))
            ready, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
            if ready:
                self._tell("arguments", dumps(ready)[1:-1])
        return False

    def _end_value(self, value: str, rest: str) -> None:
        told = dumps(value)[1:] if self._is_text else self._types.typed(value, self._schema)
        self._tell("arguments", told)
        self._held, self._read = rest, self._parameter

    def _xml_end(self) -> bool:
        try:
            found = self._next_is(END)
        except BrokenCallError:  # it was forgotten
            return self._finish(self._held)
        return found is not None and self._finish(self._held[len(END) :])

    def _json_head(self) -> bool:
        if head := _JSON_HEAD.match(self._held):
            self._begin(_loads(head[1]))
            self._tell_name()
            self._held, self._object = self._held[head.end() :], LooseJson()
            self._read = self._json_arguments
            return True
        self._told += self._object.push(self._held[self._num_looked_at :])
        self._num_looked_at = len(self._held)
        if self._object.is_broken:
            raise BrokenCallError
        if not self._object.is_done:
            return False
        self._json_whole(_loads(self._told))
        self._held = self._object.rest
        self._read = self._xml_end
        return True

    def _json_whole(self, call: Any) -> None:
        """A call whose fields stand in another order, or in another form."""
        function = call.get("function")
        call = function if isinstance(function, dict) else {"name": function} | call
        arguments: Any = next((call[key] for key in ("arguments", "parameters") if key in call), {})
        if isinstance(arguments, str):
            arguments = read_literal(arguments or "{}")
        if not isinstance(arguments, dict | None) or not isinstance(call.get("name"), str):
            raise BrokenCallError
        self._begin(call["name"])
        self._tell_name()
        self._tell("arguments", dumps(arguments or {}))

    def _json_arguments(self) -> bool:
        told, self._held = self._object.push(self._held), ""
        if told:
            self._tell("arguments", told)
        if self._object.is_broken:
            raise BrokenCallError
        self._held = self._object.rest if self._object.is_done else ""
        self._read = self._json_end if self._object.is_done else self._json_arguments
        return self._object.is_done

    def _left_over(self) -> bool:
        """The rest of a call whose arguments were none is passed over."""
        _, end, rest = self._held.partition(END)
        self._held = rest if end else self._held[len(self._held) - start_len(self._held, END) :]
        self.is_done = bool(end)
        return False

    def _json_end(self) -> bool:
        try:
            found = self._next_is("}", END)
        except BrokenCallError:  # both were forgotten
            return self._finish(self._held)
        if found is None:
            return False
        self._held = self._held.removeprefix("}")
        self._read = self._xml_end
        return True


class Brackets:
    """Finds where a JSON object, or a list in Python, ends in text that comes piece by piece.

    ``quotes``: what texts stand in; ``depth``: brackets that are open before the text begins.
    """

    def __init__(self, quotes: str = '"', depth: int = 0) -> None:
        self._num_read, self._depth, self._quotes = 0, depth, quotes
        self._quote, self._escaped = "", False

    def end(self, text: str) -> int:
        """The length of what ``text`` begins with; 0: it goes on. ``text`` only grows, but for ``skip``."""
        for at in range(self._num_read, len(text)):
            char = text[at]
            self._num_read = at + 1
            if self._quote:
                is_end = char == self._quote and not self._escaped
                self._escaped = char == "\\" and not self._escaped
                self._quote = "" if is_end else self._quote
            elif char in self._quotes:
                self._quote = char
            else:
                self._depth += (char in "{[(") - (char in "}])")
                if not self._depth and char in "}])":
                    return at + 1
        return 0

    def skip(self, num_chars: int) -> None:
        """So much of the text is taken away from its front."""
        self._num_read -= num_chars


def read_arguments(text: str) -> dict[str, Any] | None:
    """The arguments of an earlier call, whose JSON may end too early: an answer's length may have cut it.

    What is whole stays, and of a text what there is; no text is no arguments. None: this is no JSON object, nor the
    beginning of one.
    """
    reader = LooseJson()
    told = reader.push(text.strip() or "{}")
    if reader.is_broken or (reader.rest.strip() and reader.is_done):
        return None
    is_partial: Any = False if reader.is_done else "trailing-strings"
    for end in (reader.held, ""):
        with contextlib.suppress(ValueError):
            value: dict[str, Any] = from_json(told + end, allow_inf_nan=False, allow_partial=is_partial)
            return value
    return None


def _loads(text: str) -> Any:
    try:
        return loads(text)
    except (ValueError, RecursionError):
        raise BrokenCallError from None
