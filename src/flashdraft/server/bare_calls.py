"""Tool calls that stand one behind the other, without tags of their own: Llama's, Mistral's and those like Python."""

import ast
import json
import re
from typing import Any

from flashdraft.server.argument_types import dumps
from flashdraft.server.call_styles import ARGS, TOOL_CALLS, Tools
from flashdraft.server.loose_json import LooseJson
from flashdraft.server.tool_calls import Brackets, BrokenCallError, CallReader

_KEYS = tuple(f'{{"{key}"' for key in ("name", "type", "function", "arguments", "parameters", "id"))
_PYTHON_HEAD = re.compile(r"\s*([\w.-]+)\s*\(")
_PYTHON_HEAD_BEGUN = re.compile(r"\s*([\w.-]+\s*)?")
_NAME_BEGUN = re.compile(r"\s*[\w.-]*(\[[A-Z_]*\]?[\w-]*)*")  # of name[CALL_ID]id[ARGS]
_CALL_ID = re.compile(r"\[CALL_ID\][\w-]*")
_MAX_NAME, _MAX_PYTHON = 512, 20_000  # characters
_WORDS = {"true": True, "false": False, "null": None}


class BareCallReader(CallReader):
    """Reads what follows ``opener``: as many calls as stand there. What is no call any more is text again."""

    def __init__(self, index: int, tools: Tools, opener: str) -> None:
        super().__init__(index, tools, opener)
        self._held = "" if opener == TOOL_CALLS else opener
        self._in_list = self._is_object = False
        self._around = Brackets(depth=1)  # the object that the arguments stand in
        self._python = Brackets("\"'")

    def _end_of_answer(self, is_cut: bool) -> None:
        is_over = self._read == self._between or (self._read == self._json_end and self._finished())
        if is_over or (is_cut and not self.opener and not self._is_named):
            self._held = ""
        elif self._is_named:
            self._held = ""
            self._tell("cut")
        else:
            raise BrokenCallError

    def _finished(self) -> bool:
        """The call is over; more may follow."""
        self._tell("end")
        self.index, self.opener, self._raw = self.index + 1, "", self._held
        self._name, self._is_named, self._is_object = "", False, False
        self._read = self._between
        return True

    # Each state reads what it can of _held; False: it needs more.

    def _head(self) -> bool:
        self._held = self._held.lstrip()
        if not self._held:
            return False
        self._in_list = self._held[0] == "["
        self._held = self._held.removeprefix("[")
        if self._in_list or self._held[0] == "{":
            self._read = self._item
        else:
            self._read = self._named_arguments
        return True

    def _item(self) -> bool:
        """One call of a list, or one that stands alone."""
        if self.tools.style == "pythonic":
            self._python, self._read = Brackets("\"'"), self._python_call
            return True
        # What is other JSON than a call may be long: it is let go at once.
        begun = re.sub(r"\s", "", self._held[:64])
        if any(begun.startswith(key) for key in _KEYS):
            self._is_object, self._around = True, Brackets(depth=1)
            self._object, self._told, self._num_looked_at = LooseJson(), "", 0
            self._read = self._json_head
            return True
        if any(key.startswith(begun) for key in _KEYS):
            return False
        raise BrokenCallError

    def _named_arguments(self) -> bool:
        """``name[ARGS]{...}``."""
        head, mark, rest = self._held.partition(ARGS)
        if not mark:
            if len(head) > _MAX_NAME or not _NAME_BEGUN.fullmatch(head):
                raise BrokenCallError
            return False
        self._held = ARGS + rest.lstrip()
        if self._next_is(f"{ARGS}{{") is None:
            self._held = head + self._held
            return False
        self._begin(_CALL_ID.sub("", head).strip())
        self._tell_name()
        self._held, self._object = self._held.removeprefix(ARGS), LooseJson()
        self._read = self._json_arguments
        return True

    def _json_end(self) -> bool:
        """Behind the arguments: the call's id perhaps, and the end of the object that they stand in."""
        if self._is_object:
            if not (end := self._around.end(self._held)):
                return False
            self._held = self._held[end:]
        return self._finished()

    def _left_over(self) -> bool:
        """Without end tags nobody knows how far the call goes."""
        self.is_done = True
        return False

    def _xml_end(self) -> bool:
        """Behind a call whose fields stood in another order."""
        return self._finished()

    def _python_call(self) -> bool:
        """``name(key=value, ...)``."""
        head = _PYTHON_HEAD.match(self._held)
        if head is None:
            begun = _PYTHON_HEAD_BEGUN.match(self._held)
            if begun and begun.end() == len(self._held) <= _MAX_NAME:
                return False
            raise BrokenCallError
        if head[1] not in self.tools.schemas or len(self._held) > _MAX_PYTHON:
            raise BrokenCallError
        if not (end := self._python.end(self._held)):
            return False
        arguments = _python_arguments(self._held[head.end() - 1 : end])
        self._begin(head[1])
        self._tell_name()
        self._tell("arguments", arguments)
        self._held = self._held[end:]
        return self._finished()

    def _between(self) -> bool:
        """Behind a call: another one, the end of the list, or what is no call."""
        held = self._held.lstrip()
        if not held:
            return False
        behind = held[1:].lstrip()
        if held[0] in (",;" if self.tools.style == "llama" else ",") and (self._in_list or behind[:1] == "{"):
            self._held, self._read = behind, self._item
            return True
        if not self._in_list and held[0] in ",;" and not behind and self.tools.style == "llama":
            return False
        self._held = held[1:] if self._in_list and held[0] == "]" else self._held
        self.is_done = True
        return False


def _python_arguments(call: str) -> str:
    """The keyword arguments of a call in Python, from its bracket on, as JSON."""
    try:
        tree = ast.parse(f"f{call}", mode="eval").body  # the tool's name may be none in Python
        if not isinstance(tree, ast.Call) or tree.args:
            raise BrokenCallError
        values = {one.arg: ast.literal_eval(_Words().visit(one.value)) for one in tree.keywords}
        if None in values:
            raise BrokenCallError
        json.dumps(values, allow_nan=False)  # raises for what JSON has no number for
        return dumps(values)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise BrokenCallError from None


class _Words(ast.NodeTransformer):
    """JSON's words among Python's values."""

    def visit_Name(self, node: ast.Name) -> Any:
        """See ast.NodeVisitor."""
        return ast.copy_location(ast.Constant(_WORDS[node.id]), node) if node.id in _WORDS else node
