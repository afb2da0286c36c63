"""Tool calls as a grammar: what a forced or strict call may be, to the character, in the form that the model writes."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flashdraft.errors import UsageError
from flashdraft.grammar import json_rule
from flashdraft.server.argument_types import ArgumentTypes, values_of
from flashdraft.server.tool_calls import BEGIN, END, Tools

CallStyle = Literal["xml", "json"]
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
_TAIL = f"tail: TAIL\nTAIL: ~/(?s:.*){BEGIN}(?s:.*)/\n"


@dataclass(frozen=True)
class CallRules:
    """Which calls there must or may be. ``answer``: a JSON schema that the answer has instead of calls.

    ``must_call``: nothing but calls; else free text with calls, or ``answer``. ``is_single``: one call at most.
    """

    tools: Tools
    style: CallStyle
    must_call: bool
    is_single: bool
    answer: str | None = None


def calls_lark(rules: CallRules) -> str:
    """Rules for :class:`~flashdraft.grammar.Grammar` of kind "lark". Raises UsageError for what cannot be followed."""
    writer = _Writer(rules.style)
    names = [writer.call(name, schema) for name, schema in rules.tools.items()]
    calls = " | ".join(names)
    if rules.must_call or rules.answer is not None:
        body = f'"{BEGIN}" call' + ("" if rules.is_single else f' ("\\n{BEGIN}" call)*')
        if rules.answer is not None and not rules.must_call:
            body, writer.rules = f"{body} | answer", [*writer.rules, f"answer: {rules.answer}"]
        head = f"body: {body}\n"
    else:
        many = "?" if rules.is_single else "*"
        tail = "(chunk call | tail)" if rules.is_single else f"(chunk call){many} tail"
        head = f"body: {tail}\nchunk[lazy]: /(?s:.*){BEGIN}/\n{_TAIL}"
    return head + f"call: {calls}\n" + "".join(f"{rule}\n" for rule in writer.rules)


class _Writer:
    """Collects the rules of calls."""

    def __init__(self, style: CallStyle) -> None:
        self.style = style
        self.rules: list[str] = []

    def call(self, name: str, schema: Mapping[str, Any]) -> str:
        """Write the rules of what follows ``<tool_call>`` in a call of ``name``; the first one's own name."""
        rule = f"call_{len(self.rules)}"
        try:
            if self.style == "json":
                arguments = json_rule(schema or {"type": "object", "additionalProperties": False})
                head = json.dumps(f'\n{{"name": {json.dumps(name)}, "arguments": ')
                tail = json.dumps(f"}}\n{END}")
                self.rules.append(f"{rule}: {head} {arguments} {tail}")
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
        named |= {name: others for name in required if name not in named}
        told = [
            self._parameter(name, one, types) + ("" if name in required else "?")
            for name, one in named.items()
            if one is not False
        ]
        if not named and schema and others is not False and "properties" not in schema:
            value = self._value(others, types)
            told.append(rf'("<parameter=" /[A-Za-z_][A-Za-z0-9_]*/ ">\n" {value} "\n")*')
        return " ".join(told)

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
            defs = {key: types.root[key] for key in ("$defs", "definitions") if key in types.root}
            name = f"value_{len(self.rules)}"
            self.rules.append(f'{name}: {_rule(told | defs)} "\\n</parameter>"')
            choices.append(name)
        if not choices:
            raise UsageError("one of its arguments allows no value at all")
        return f"({' | '.join(choices)})"


def _rule(schema: Any) -> str:
    if far := next(_far_references(schema), None):
        raise UsageError(f"it refers to {far!r}; expected a schema in $defs")
    return json_rule(schema)


def _far_references(schema: Any) -> Iterator[str]:
    """References that point elsewhere than into ``$defs``, which one argument alone does not carry along."""
    if isinstance(schema, Mapping):
        ref = schema.get("$ref")
        if isinstance(ref, str) and not ref.startswith(("#/$defs/", "#/definitions/")):
            yield ref
        for one in schema.values():
            yield from _far_references(one)
    elif isinstance(schema, list):
        for one in schema:
            yield from _far_references(one)


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
        found.append(containing(str(schema["pattern"])))
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
