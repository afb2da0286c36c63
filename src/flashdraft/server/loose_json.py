"""A JSON object as models write it, made JSON while it comes: what is right passes through as it stands.

Mended are line breaks and tabs within texts, Python's words and quotes, bare words, escapes that JSON does not have,
and a comma too many: the slips that make a whole call unreadable.
"""

import json
import re

_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_WORDS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
_SPACE, _BRACKETS = " \t\r\n", {"{": "}", "[": "]"}
_ESCAPED = re.compile(r'\\(["\\/bfnrt]|u[0-9a-fA-F]{4})')
_WORD_END = re.compile(r"[\s,:\]}\"'{\[]")
_MAX_DEPTH = 256


class _BrokenError(ValueError):
    """What stands there is no JSON object, nor meant as one."""


class LooseJson:
    """Reads one object. ``push`` gives the JSON that the text so far is certain to be.

    The sum of what it gives does not depend on where the text was cut. ``rest``: what stands behind the object once
    ``is_done`` or ``is_broken``.
    """

    def __init__(self) -> None:
        self.is_done = self.is_broken = False
        self.rest = ""
        self._open: list[str] = []  # closing brackets of what is open
        self._awaits = "value"  # or key, colon, comma; "first" is a key or value that may not come
        self._gap = ""  # a comma with white space around it, which is told before what follows it
        self._quote = ""  # of the text that is read now
        self._held = ""  # an escape or a word whose end has not come

    def push(self, text: str) -> str:
        """Take more text, until the object is over."""
        told, held, at = [], self._held + text, 0
        while at < len(held) and not self.is_done:
            try:
                step, piece = (self._in_text if self._quote else self._between)(held, at)
            except _BrokenError:
                self.is_broken = True
                break
            if not step:
                break
            told.append(piece)
            at += step
        self._held = self.rest = held[at:]
        return "".join(told)

    @property
    def held(self) -> str:
        """What was not told yet, for it may go on or be left out."""
        return "" if self.is_done else self._gap + self._held

    # Each reads one piece at ``at``: how long it is, 0 while it may go on, and what it is as JSON.

    def _in_text(self, held: str, at: int) -> tuple[int, str]:
        char = held[at]
        if char == self._quote:
            self._quote = ""
            return 1, '"'
        if char == "\\":
            return self._escape(held[at : at + 6])
        if char == '"' or char < " ":
            return 1, json.dumps(char)[1:-1]
        return 1, char

    def _escape(self, held: str) -> tuple[int, str]:
        if found := _ESCAPED.match(held):
            return found.end(), found[0]
        if len(held) < 2 or (held[1] == "u" and len(held) < 6 and re.fullmatch(r"[0-9a-fA-F]*", held[2:])):
            return 0, ""
        # \' is a quote and \d no escape at all: a regular expression, or a path
        return (2, held[1]) if held[1] == "'" else (1, "\\\\")

    def _between(self, held: str, at: int) -> tuple[int, str]:
        char = held[at]
        if char in _SPACE:
            return self._space(char)
        if not self._open and char != "{":
            raise _BrokenError
        if char == "," and self._awaits == "comma":
            self._gap += char
            self._awaits = "key" if self._open[-1] == "}" else "value"
            return 1, ""
        if char == ":" and self._awaits == "colon":
            self._awaits = "value"
            return 1, char
        if char in "}]":
            return 1, self._close(char)
        if self._awaits in ("comma", "colon") or char in ",:":
            raise _BrokenError
        if char in "\"'":
            self._quote = char
            return 1, self._begun('"')
        if char in _BRACKETS:
            return 1, self._enter(char)
        return self._word(held, at)

    def _space(self, char: str) -> tuple[int, str]:
        if self._gap:
            self._gap += char
            return 1, ""
        return 1, char

    def _enter(self, char: str) -> str:
        if len(self._open) == _MAX_DEPTH or self._is_key():
            raise _BrokenError
        told = self._begun(char)
        self._open.append(_BRACKETS[char])
        self._awaits = "first"
        return told

    def _close(self, char: str) -> str:
        ends = self._awaits in ("first", "comma") or "," in self._gap
        if not ends or not self._open or self._open.pop() != char:
            raise _BrokenError
        space, self._gap = self._gap.replace(",", "", 1), ""
        self._awaits = "comma"
        self.is_done = not self._open
        return space + char

    def _word(self, held: str, at: int) -> tuple[int, str]:
        end = _WORD_END.search(held, at)
        if end is None:
            return 0, ""
        word, is_key = held[at : end.start()], self._is_key()
        if not is_key and word in _WORDS:
            told = _WORDS[word]
        else:
            told = word if not is_key and _NUMBER.fullmatch(word) else json.dumps(word, ensure_ascii=False)
        return len(word), self._begun(told)

    def _is_key(self) -> bool:
        return self._awaits == "key" or (self._awaits == "first" and self._open[-1] == "}")

    def _begun(self, told: str) -> str:
        """A key or a value begins with ``told``."""
        self._awaits = "colon" if self._is_key() else "comma"
        gap, self._gap = self._gap, ""
        return gap + told
