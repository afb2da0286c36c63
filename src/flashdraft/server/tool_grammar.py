"""Tool calls as a grammar: what a forced or strict call may be, to the character, in the form that the model writes."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flashdraft.errors import UsageError
from flashdraft.grammar import json_rule
from flashdraft.json_schema import check_shapes, plain_classes
from flashdraft.server.argument_types import ArgumentTypes, values_of
from flashdraft.server.call_styles import BEGIN, CHANNEL, TO_FUNCTION, TOOL_CALLS, CallStyle
from flashdraft.server.harmony import FINAL
from flashdraft.server.tool_calls import END

_MAX_TEXTS = 256
_MAX_STEPS = 2000  # through the parts of one tool's schema
_KNOWN = {"type", "properties", "required", "additionalProperties", "$defs", "definitions"}
_NOTES = {"title", "description", "$schema", "$id", "$comment", "default", "examples", "strict"}
_FORMATS = {
    "date": r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])",
    "time": r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?(Z|[+-][01]\d:[0-5]\d)",
    "uuid": "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "ipv4": r"((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)",
    "email": r"[A-Za-z0-9._%+-]{1,64}@([A-Za-z0-9]([A-Za-z0-9-]{0,62}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}",
}
_FORMATS["date-time"] = f"{_FORMATS['date']}T{_FORMATS['time']}"
_UNENDED = r"UNENDED: ~/(?s:.*)<\/parameter>(?s:.*)/"  # or the value would end before its end


@dataclass(frozen=True)
class _Frame:
    """What stands around calls: ``mark`` opens them, ``first`` and ``last`` enclose them, ``between`` parts them."""

    mark: str
    between: str
    first: str = ""
    last: str = ""

    def group(self, is_single: bool) -> str:
        """Calls behind their mark, as a Lark expression."""
        around = [f"{json.dumps(one)}" if one else "" for one in (self.first, self.last)]
        return f"{around[0]} call {self.more(is_single)} {around[1]}"

    def more(self, is_single: bool) -> str:
        """Further calls behind one."""
        return "" if is_single else f"({json.dumps(self.between)} call)*"

    def free(self, is_single: bool) -> str:
        """Free text in which calls may stand, as Lark rules with ``body``."""
        mark, group = _exactly(self.mark), self.group(is_single or not self.last)
        body = f"(chunk {group} | tail)" if is_single else f"(chunk {group})* tail"
        tail = f"tail: TAIL\nTAIL: {_without(mark)}\n"
        return f"body: {body}\nchunk[lazy]: /(?s:.*){mark}/\n{tail}"


# What stands before and behind the arguments of the call NAME.
_JSON_AROUND: dict[CallStyle, tuple[str, str]] = {
    "json": ('\n{"name": "NAME", "arguments": ', f"}}\n{END}"),
    "llama": ('"NAME", "parameters": ', "}"),
    "mistral": ('{"name": "NAME", "arguments": ', "}"),
    "mistral-args": ("NAME[ARGS]", ""),
    "harmony": ("NAME <|constrain|>json<|message|>", ""),
}
_LLAMA_MARK = '{"name": '
_FRAMES: dict[CallStyle, _Frame] = {
    "xml": _Frame(BEGIN, f"\n{BEGIN}"),
    "json": _Frame(BEGIN, f"\n{BEGIN}"),
    "llama": _Frame(_LLAMA_MARK, f"; {_LLAMA_MARK}"),
    "mistral": _Frame(TOOL_CALLS, ", ", "[", "]"),
    "mistral-args": _Frame(TOOL_CALLS, TOOL_CALLS),
    "pythonic": _Frame("[", ", ", "", "]"),
    "harmony": _Frame(f"{CHANNEL}commentary {TO_FUNCTION}", ""),
}


@dataclass(frozen=True)
class CallRules:
    """Which calls there must or may be. ``answer``: a JSON schema that the answer has instead of calls.

    ``must_call``: nothing but calls; else free text with calls, or ``answer``. ``is_single``: one call at most.
    """

    tools: Mapping[str, Mapping[str, Any]]  # name -> JSON schema of its arguments
    style: CallStyle
    must_call: bool
    is_single: bool
    answer: str | None = None


def calls_lark(rules: CallRules) -> str:
    """Rules for :class:`~flashdraft.grammar.Grammar` of kind "lark". Raises UsageError for what cannot be followed."""
    writer = _Writer(rules.style)
    names = [writer.call(name, schema) for name, schema in rules.tools.items()]
    calls = " | ".join(names)
    frame = _FRAMES[rules.style]
    if rules.style == "harmony":
        head = _harmony(frame, rules)
        writer.rules += [f"answer: {rules.answer}"] if rules.answer is not None else []
    elif rules.must_call or rules.answer is not None:
        body = f"{json.dumps(frame.mark)} {frame.group(rules.is_single)}"
        if rules.answer is not None and not rules.must_call:
            body, writer.rules = f"{body} | answer", [*writer.rules, f"answer: {rules.answer}"]
        head = f"body: {body}\n"
    elif rules.style == "pythonic":
        head = _free_python(dict(zip(rules.tools, names, strict=True)), rules.is_single)
    else:
        head = frame.free(rules.is_single)
    return head + f"call: {calls}\n" + "".join(f"{rule}\n" for rule in writer.rules)


def _without(pattern: str) -> str:
    """Any text in which ``pattern`` is not found; what is not that may be no text at all, such as a special token."""
    return f"/(?s:.*)/ & ~/(?s:.*)({pattern})(?s:.*)/"


def _harmony(frame: _Frame, rules: CallRules) -> str:
    """One call, which ends the answer, behind messages of any kind; the whole answer, its thoughts included."""
    chunk = f"chunk[lazy]: /(?s:.*){_exactly(frame.mark)}/\n"
    if rules.must_call:
        return f"body: chunk call\n{chunk}"
    if rules.answer is not None:
        return f"body: chunk call | said answer\n{chunk}said[lazy]: /(?s:.*){_exactly(FINAL)}/\n"
    return frame.free(is_single=True)


def _free_python(calls: Mapping[str, str], is_single: bool) -> str:
    """Free text in which lists of calls in Python may stand: a list begins with [ and the name of a tool.

    ``calls``: the name of each tool -> that of its rule.
    """
    found = [rf"\[{_exactly(name)}\(" for name in calls]
    rules = [
        f"tail: TAIL\nTAIL: {_without('|'.join(found))}",
        f'more: {_FRAMES["pythonic"].more(is_single)} "]"',
    ]
    uses = []
    for i, (mark, call) in enumerate(zip(found, calls.values(), strict=True)):
        others = "|".join(one for one in found if one != mark)
        less = f" & ~/(?s:.*)({others})(?s:.*)/" if others else ""
        rules.append(f"chunk_{i}[lazy]: /(?s:.*){mark}/{less}")
        uses.append(f"chunk_{i} {call}_rest more")
    body = f"body: {' | '.join([*uses, 'tail'])}" if is_single else f"body: ({' | '.join(uses)})* tail"
    return "\n".join([body, *rules]) + "\n"


class _Writer:
    """Collects the rules of calls."""

    def __init__(self, style: CallStyle) -> None:
        self.style = style
        self.rules: list[str] = []

    def call(self, name: str, schema: Mapping[str, Any]) -> str:
        """Write the rules of what follows the mark in a call of ``name``; the first one's own name."""
        rule = f"call_{len(self.rules)}"
        try:
            if self.style == "pythonic":
                self.rules.append(f'{rule}: "{name}(" {rule}_rest')
                self.rules.append(f'{rule}_rest: {self._keywords(schema)} ")"')
            elif self.style != "xml":
                arguments = json_rule(schema or {"type": "object", "additionalProperties": False})
                before, behind = _JSON_AROUND[self.style]
                head, tail = json.dumps(before.replace("NAME", name)), json.dumps(behind)
                self.rules.append(f"{rule}: {head} {arguments} {tail if behind else ''}")
            else:
                head, tail = json.dumps(f"\n<function={name}>\n"), json.dumps(f"</function>\n{END}")
                at = len(self.rules)
                self.rules.append("")
                self.rules[at] = f"{rule}: {head} {self._parameters(schema)} {tail}"
        except UsageError as error:
            raise UsageError(f"tool {name!r}: {error}") from None
        return rule

    def _parameters(self, schema: Mapping[str, Any]) -> str:
        types = ArgumentTypes(schema)
        schema, named, required, others = _arguments(types)
        told = [
            self._parameter(name, one, types) + ("" if name in required else "?")
            for name, one in named.items()
            if one is not False
        ]
        if not named and schema and others is not False and "properties" not in schema:
            value = self._value(others, types)
            told.append(rf'("<parameter=" /[A-Za-z_][A-Za-z0-9_]*/ ">\n" {value} "\n")*')
        return " ".join(told)

    def _keywords(self, schema: Mapping[str, Any]) -> str:
        """``a=1, b="x"``: in their order, parted by commas, whichever of them are there."""
        types = ArgumentTypes(schema)
        _, named, required, _ = _arguments(types)
        first, rest = [] if required else [""], ""
        for name, one in reversed([pair for pair in named.items() if pair[1] is not False]):
            if not name.isidentifier():
                raise UsageError(f"its argument {name!r} is no name in Python")
            told = f'"{name}=" {_rule(one, types)}'
            first.insert(0, f"{told} {rest}")
            if name in required:
                first = first[:1]
            rule = f"rest_{len(self.rules)}"
            self.rules.append(
                f'{rule}: ", " {told} {rest}' if name in required else f'{rule}: (", " {told})? {rest}'
            )
            rest = rule
        return f"({' | '.join(first)})" if any(first) else ""

    def _parameter(self, name: str, schema: Any, types: ArgumentTypes) -> str:
        if not re.fullmatch(r"[^<>\n]+", name):
            raise UsageError(f"its argument {name!r} cannot be written between < and >")
        head = json.dumps(f"<parameter={name}>\n")
        return rf'({head} {self._value(schema, types)} "\n")'

    def _value(self, schema: Any, types: ArgumentTypes) -> str:
        """The rule for a value with what ends it: text as it stands, anything else as JSON."""
        found = types.kinds(schema)
        choices = []
        if "string" in found:
            name = f"TEXT_{len(self.rules)}"
            texts = _Texts(types).of(schema)
            text = " | ".join(map(_terminal, texts))
            self.rules.append(f'{name}: {name}_VALUE "\\n</parameter>"\n{name}_VALUE: ({text}) & UNENDED')
            choices += [name] if texts else []
            if _UNENDED not in self.rules:
                self.rules.append(_UNENDED)
        if others := sorted(found - {"string"} - ({"integer"} if "number" in found else set())):
            told = dict(schema) if isinstance(schema, Mapping) else {}
            if "string" in found:
                told = {"allOf": [told], "type": others} if told else {"type": others}
            name = f"value_{len(self.rules)}"
            self.rules.append(f'{name}: {_rule(told, types)} "\\n</parameter>"')
            choices.append(name)
        if not choices:
            raise UsageError("one of its arguments allows no value at all")
        return f"({' | '.join(choices)})"


def _arguments(types: ArgumentTypes) -> tuple[Mapping[str, Any], dict[str, Any], list[str], Any]:
    """A tool's schema, its arguments by name, those that must be there, and the schema of any others.

    Raises UsageError for what cannot be demanded of arguments that stand one by one.
    """
    check_shapes(types.root)
    schema = types.object_schema()
    if beyond := set(schema) - _KNOWN - _NOTES:
        name = min(beyond)
        raise UsageError(f"its schema demands {name} of all arguments together, which cannot be followed")
    if schema and "object" not in types.kinds({"type": schema.get("type", "object")}):
        raise UsageError("its arguments are no object")
    named, required = dict(schema.get("properties") or {}), list(schema.get("required") or [])
    others = schema.get("additionalProperties", True)
    if others is False and (lost := set(required) - set(named)):
        raise UsageError(f"its schema requires {min(lost)!r} and allows no such argument")
    return schema, named | {name: others for name in required if name not in named}, required, others


def _rule(schema: Any, types: ArgumentTypes) -> str:
    """A part of a tool's schema by itself: what it refers to goes along, in ``$defs``."""
    defs: dict[str, Any] = {}
    names: dict[str, str] = {}

    def moved(one: Any) -> Any:
        if isinstance(one, list):
            return [moved(inner) for inner in one]
        if not isinstance(one, Mapping):
            return one
        ref = one.get("$ref")
        if not isinstance(ref, str):
            return {key: moved(value) for key, value in one.items()}
        if ref not in names:
            if (found := types.resolved(ref)) is True:
                raise UsageError(f"it refers to {ref!r}; expected a place in the same schema")
            names[ref] = f"ref{len(names)}"
            defs[names[ref]] = moved(found)
        return {key: moved(value) for key, value in one.items()} | {"$ref": f"#/$defs/{names[ref]}"}

    if not isinstance(schema, Mapping):
        return json_rule(schema)
    told = moved({key: one for key, one in schema.items() if key not in ("$defs", "definitions")})
    return json_rule(told | {"$defs": defs} if defs else told)


class _Texts:
    """Which texts a schema allows: alternatives, each a list of regular expressions that all have to fit."""

    def __init__(self, types: ArgumentTypes) -> None:
        self._types, self._num_steps = types, 0

    def of(self, schema: Any) -> list[list[str]]:
        """The alternatives; [[]]: any text. Raises UsageError for too many."""
        self._num_steps += 1
        if self._num_steps > _MAX_STEPS:
            raise UsageError("the schema of one of its arguments refers to itself, or is too large")
        if "string" not in self._types.kinds(schema):
            return []
        if not isinstance(schema, Mapping):
            return [[]]
        values = values_of(schema)
        own = [_demands(schema)]
        if values is not None:
            own = [[*own[0], _exactly(one)] for one in values if isinstance(one, str)]
        joined = [self.of(one) for one in schema.get("allOf") or ()]
        if "$ref" in schema:
            joined.append(self.of(self._types.resolved(schema["$ref"])))
        for key in ("anyOf", "oneOf"):
            if isinstance(schema.get(key), list):
                joined.append([text for one in schema[key] for text in self.of(one)])
        for texts in joined:
            own = [first + second for first in own for second in texts]
            if len(own) > _MAX_TEXTS:
                raise UsageError(f"one of its arguments has more than {_MAX_TEXTS} kinds of text")
        return own


def _exactly(text: str) -> str:
    return "".join(char if char.isalnum() else f"\\x{{{ord(char):x}}}" for char in text)


def _demands(schema: Mapping[str, Any]) -> list[str]:
    found = []
    if "pattern" in schema:
        found.append(containing(plain_classes(str(schema["pattern"]))))
    if "minLength" in schema or "maxLength" in schema:
        found.append(f"(?s:.{{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}})")
    if schema.get("format") in _FORMATS:
        found.append(_FORMATS[schema["format"]])
    return found


def containing(pattern: str) -> str:
    """A regular expression for the whole of each text in which ``pattern`` is found."""
    told = []
    for branch in _branches(pattern):
        starts, ends = branch.startswith("^"), bool(re.search(r"(?<!\\)(\\\\)*\$$", branch))
        inner = branch[int(starts) : len(branch) - int(ends)]
        told.append(("" if starts else "(?s:.*)") + f"({inner})" + ("" if ends else "(?s:.*)"))
    return "|".join(told)


def _branches(pattern: str) -> list[str]:
    """``pattern``, cut at each | that stands in no brackets."""
    found, depth, in_class, at = [""], 0, False, 0
    while at < len(pattern):
        step = 2 if pattern[at] == "\\" else 1
        char = pattern[at : at + step]
        if in_class:
            in_class = char != "]"
        elif char == "[":
            in_class = True
        elif char in "()":
            depth += 1 if char == "(" else -1
        if char == "|" and not depth and not in_class:
            found.append("")
        else:
            found[-1] += char
        at += step
    return found


def _terminal(regexes: Sequence[str]) -> str:
    told = [f"/({_slashed(one)})/" for one in regexes] or ["/(?s:.*)/"]
    return f"({' & '.join(told)})"


def _slashed(regex: str) -> str:
    """As it may stand between slashes."""
    escaped = re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", regex)
    return escaped.replace("\n", r"\n").replace("\r", r"\r")
