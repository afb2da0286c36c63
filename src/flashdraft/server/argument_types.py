"""What JSON a tool's argument is when a model has written it as bare text, by the whole of its schema.

``True``, ``None`` and ``{'a': 1}`` are read too: chat templates print arguments as Python does, and models repeat it.
"""

import ast
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

_NAMES = ("null", "boolean", "integer", "number", "object", "array", "string")  # the first that fits is meant
ANY = frozenset(_NAMES)
_MAX_DEPTH = 48  # of schemas within and behind one another
_MAX_STEPS = 2000  # of comparing one value with its schema
_MAX_LITERAL = 20_000  # characters that are read as Python
_MAX_NUMBER = 300  # digits: no larger number is a float
_WORDS = {"True": True, "False": False, "None": None}
_LIKE_WORDS = {"true": True, "false": False, "null": None, "none": None}
_SURROGATE = re.compile("[\ud800-\udfff]")
_NOTHING = object()


class ArgumentTypes:
    """The schema of a tool's arguments, ``root``, and what its parts allow. References point into it."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self.root = root
        self._kinds: dict[int, frozenset[str]] = {}  # by id of a part, which lives as long as the root
        self._named: dict[str, Any] = {}
        self._num_steps = self._depth = 0

    def named(self, name: str) -> Any:
        """The schema of one argument, wherever it is declared; True where it is not."""
        if name not in self._named:  # kept, for kinds are known by id
            found = self._declared(self.root, name, 0)
            self._named[name] = True if found is None else found
        return self._named[name]

    def _declared(self, schema: Any, name: str, depth: int) -> Any:
        """What ``schema`` says of an argument: by its properties, else by patterns, else of all others."""
        if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
            return None
        own = _mapping(schema, "properties").get(name)
        if own is None:
            # Which pattern it fits is not tried: a stranger's expression may take for ever.
            ways = list(_mapping(schema, "patternProperties").values())
            own = {"anyOf": ways} if ways else None
        inner = [self.resolved(schema["$ref"])] if "$ref" in schema else []
        inner += _schemas(schema, "allOf")
        found = [own, *(self._declared(one, name, depth + 1) for one in inner)]
        for key in ("anyOf", "oneOf"):
            told = [
                one
                for way in _schemas(schema, key)
                if (one := self._declared(way, name, depth + 1)) is not None
            ]
            found.append({"anyOf": told} if told else None)
        found = [one for one in found if one is not None]
        if not found:
            return (
                schema.get("additionalProperties")
                if schema.get("additionalProperties") is not False
                else None
            )
        return found[0] if len(found) == 1 else {"allOf": found}

    def object_schema(self) -> Mapping[str, Any]:
        """The root, or what it refers to."""
        schema: Any = self.root
        for _ in range(_MAX_DEPTH):
            if not (isinstance(schema, Mapping) and "$ref" in schema and "properties" not in schema):
                break
            schema = self.resolved(schema["$ref"])
        return schema if isinstance(schema, Mapping) else {}

    def resolved(self, ref: Any) -> Any:
        """The schema at a JSON pointer within the root, such as ``#/$defs/city``; True where there is none."""
        found: Any = self.root
        if not isinstance(ref, str) or not ref.startswith("#"):
            return True
        for part in ref.lstrip("#").split("/")[1:]:
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            elif isinstance(found, Mapping) and name in found:
                found = found[name]
            else:
                return True
        return found

    def kinds(self, schema: Any) -> frozenset[str]:
        """The types that a value may have."""
        if schema is False:
            return frozenset()
        if not isinstance(schema, Mapping):
            return ANY
        if id(schema) not in self._kinds:
            self._kinds[id(schema)] = found = _own_kinds(schema)  # for a schema that refers to itself
            if self._depth == _MAX_DEPTH:
                return found
            self._depth += 1
            if "$ref" in schema:
                found &= self.kinds(self.resolved(schema["$ref"]))
            for key in ("anyOf", "oneOf"):
                if ways := _schemas(schema, key):
                    found &= frozenset[str]().union(*map(self.kinds, ways))
            for one in _schemas(schema, "allOf"):
                found &= self.kinds(one)
            self._depth -= 1
            self._kinds[id(schema)] = found
        return self._kinds[id(schema)]

    def is_free_text(self, schema: Any) -> bool:
        """Whether every text is a value as it stands, so that it may be passed on while it comes."""
        narrowing = {"enum", "const", "$ref", "anyOf", "oneOf", "allOf"}
        return self.kinds(schema) == {"string"} and not narrowing & set(schema)

    def typed(self, text: str, schema: Any) -> str:
        """``text`` as the JSON that ``schema`` has for it."""
        allowed = self.kinds(schema)
        value = read_literal(text)
        candidates = [one for one in _readings(value, text) if allowed.intersection(_kinds_of(one))]
        self._num_steps = 0
        for one in candidates:
            if self._fits(one, schema):
                return dumps(one)
        if candidates:
            return dumps(candidates[0])
        return dumps(text if value is _NOTHING else value)

    def _fits(self, value: Any, schema: Any, depth: int = 0) -> bool:
        """Whether ``value`` is one that ``schema`` has: by types, values, bounds, lengths, alone and put together.

        Patterns and formats are not looked at; this tells readings of one text apart and is no validator.
        """
        self._num_steps += 1
        if not isinstance(schema, Mapping) or self._num_steps > _MAX_STEPS or depth > _MAX_DEPTH:
            return schema is not False
        if not self.kinds(schema).intersection(_kinds_of(value)):
            return False
        values = values_of(schema)
        if values is not None and not any(_same(value, one) for one in values):
            return False
        inner = [self.resolved(schema["$ref"])] if "$ref" in schema else []
        inner += _schemas(schema, "allOf")
        if not all(self._fits(value, one, depth + 1) for one in inner):
            return False
        for key in ("anyOf", "oneOf"):
            ways = _schemas(schema, key)
            if ways and not any(self._fits(value, one, depth + 1) for one in ways):
                return False
        if isinstance(value, dict):
            named, required = _mapping(schema, "properties"), schema.get("required")
            is_whole = all(name in value for name in required) if isinstance(required, list) else True
            return is_whole and all(self._fits(one, named.get(key), depth + 1) for key, one in value.items())
        if isinstance(value, list):
            return all(self._fits(one, schema.get("items"), depth + 1) for one in value)
        return _is_within(value, schema)


def _own_kinds(schema: Mapping[str, Any]) -> frozenset[str]:
    """By what the schema says itself; where it names no type, by the keywords that are for one alone."""
    found = ANY
    if (named := schema.get("type")) is not None:
        names = named if isinstance(named, list) else [named]
        found = frozenset(one for one in names if isinstance(one, str)) & ANY or ANY
        found |= {"integer"} if "number" in found else set()
        found |= {"null"} if schema.get("nullable") is True else set()
    elif "properties" in schema or "additionalProperties" in schema:
        found = frozenset({"object"})
    elif "items" in schema or "prefixItems" in schema:
        found = frozenset({"array"})
    elif "pattern" in schema or "format" in schema:
        found = frozenset({"string"})
    if (values := values_of(schema)) is not None:
        found &= {name for value in values for name in _kinds_of(value)}
    return found


def values_of(schema: Mapping[str, Any]) -> list[Any] | None:
    """The values that ``enum`` or ``const`` leave; None: any."""
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


def _readings(value: Any, text: str) -> Iterator[Any]:
    """Whatever ``text`` may mean, the likeliest first."""
    if value is not _NOTHING and not isinstance(value, str):
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            yield int(value)
        yield value
    yield text
    yield text.strip()
    if isinstance(value, str):  # a text in quotes, or a value in them
        yield value
        if (inner := read_literal(value)) is not _NOTHING:
            yield inner
    yield from _alike(text.strip())


def _alike(text: str) -> Iterator[Any]:
    """What a program would read it as, though it is neither JSON nor Python: TRUE, 007, +5, .5."""
    if text.lower() in _LIKE_WORDS:
        yield _LIKE_WORDS[text.lower()]
    elif len(text) < _MAX_NUMBER and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)", text):
        yield int(text) if text.lstrip("+-").isdecimal() else float(text)


def read_literal(text: str) -> Any:
    """What ``text`` says as JSON, or else as Python; a mark of its own where it is neither."""
    text = text.strip()
    try:
        return loads(text)
    except (ValueError, RecursionError):
        pass
    if text in _WORDS:
        return _WORDS[text]
    if text[:1] not in "[{(" or len(text) > _MAX_LITERAL:
        return _NOTHING
    try:
        value = ast.literal_eval(text)
        return json.loads(json.dumps(value, allow_nan=False))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return _NOTHING


def loads(text: str) -> Any:
    """JSON in which texts may have line breaks; a number too large for a float stays a text. Raises ValueError."""
    return json.loads(text, parse_constant=_refuse, parse_float=_finite, strict=False)


def dumps(value: Any) -> str:
    """JSON that can be sent: half a surrogate pair is written as its escape."""
    told = json.dumps(value, ensure_ascii=False)
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", told)


def _finite(text: str) -> float | str:
    return float(text) if math.isfinite(float(text)) else text


def _mapping(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = schema.get(key)
    return found if isinstance(found, Mapping) else {}


def _schemas(schema: Mapping[str, Any], key: str) -> list[Any]:
    """The schemas of ``allOf``, ``anyOf`` or ``oneOf``; none where they are no list: a schema is not checked here."""
    found = schema.get(key)
    return found if isinstance(found, list) else []


def _refuse(name: str) -> None:
    raise ValueError(name)


def _is_within(value: Any, schema: Mapping[str, Any]) -> bool:
    size: Any = len(value) if isinstance(value, str) else value
    if isinstance(value, bool) or not isinstance(size, int | float):
        return True
    low, high = ("minLength", "maxLength") if isinstance(value, str) else ("minimum", "maximum")
    bounds = schema.get(low, size), schema.get(high, size)
    return all(isinstance(one, int | float) for one in bounds) and bounds[0] <= size <= bounds[1]


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _kinds_of(value: Any) -> tuple[str, ...]:
    """The name of a JSON value's type; a whole number is a number too."""
    if value is None:
        return ("null",)
    if isinstance(value, bool):
        return ("boolean",)
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return ("integer", "number") if isinstance(value, int) else ("number", "integer")
    for name, kind in (("number", float), ("string", str), ("array", list), ("object", Mapping)):
        if isinstance(value, kind):
            return (name,)
    raise TypeError(f"{type(value).__name__} is no JSON")
