"""JSON Schema for llguidance: every demand that it knows as it is, some said in others' words, the rest refused.

llguidance follows a schema or says what it does not know. What it does not know is rewritten here where other keywords
say the same; the rest is refused by name. A ``format`` that is none of :data:`FORMATS` is an annotation, as the
standard has it (JSON Schema 2020-12, validation, section 7.2.1), and so is a keyword that the standard does not know.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from flashdraft.errors import UsageError

Schema = dict[str, Any] | bool

FORMATS = frozenset(
    ("date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown")
)

# Keywords whose value is a schema, a list of schemas, or schemas by name.
_ONE = {"items", "additionalItems", "additionalProperties", "propertyNames", "unevaluatedItems", "contains"}
_ONE |= {"unevaluatedProperties", "not", "if", "then", "else"}
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")

_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_NUMBERS = ["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"]
_NUMBERS += ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"]
_SHAPES: dict[str, tuple[str, type | tuple[type, ...]]] = {
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems", "enum"), ("a list", list)),
    "required": ("a list of texts", list),
    **dict.fromkeys(_NAMED, ("an object", dict)),
    **dict.fromkeys(("pattern", "format", "$ref"), ("a text", str)),
    **dict.fromkeys(_NUMBERS, ("a number", (int, float))),
}

_REFUSED = ["not", "if", "then", "else", "uniqueItems", "contains", "minContains", "maxContains"]
_REFUSED += ["propertyNames", "unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef"]
_JOINING = {"$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas", "patternProperties"}
_CLASS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)  # and what is escaped outside of one
_SET_SIGNS = re.compile(r"\\.|\[|&&|~~|--", re.DOTALL)  # of classes in Rust, and what is escaped
_ESCAPED_IN_JSON = re.compile(r'"|\\\\|\\x22|\\x5c|\\u0022|\\u005c', re.IGNORECASE)
_CONTROL_RANGE = re.compile(r"\\(x|u00)[01][0-9a-f]-|\\0-", re.IGNORECASE)
_LOOKS_AROUND = re.compile(r"(?<!\\)(?:\\\\)*\(\?<?[=!]")


def rewritten(schema: Any) -> Schema:
    """``schema`` in keywords that llguidance follows. Raises UsageError, by name, for a demand that it cannot.

    An object that names its properties, and says nothing of others, has no others: a small model would go on inventing
    some. Where schemas are put together that is left open, for each has properties of its own.
    """
    check_shapes(schema)
    told = _rewritten(schema)
    if not _joins(told):
        _close(told)
    return told


def check_shapes(schema: Any) -> None:
    """Raise UsageError for what is no schema, for a keyword has a value of the wrong type."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise UsageError(f"the json_schema holds {schema!r:.40}; expected a schema, which is an object")
    kind = schema.get("type", "object")
    if wrong := [one for one in (kind if isinstance(kind, list) else [kind]) if one not in _TYPES]:
        raise UsageError(
            f"the json_schema has the type {wrong[0]!r:.40}; expected one of {', '.join(_TYPES)}"
        )
    for key, value in schema.items():
        shape, types = _SHAPES.get(key, ("", object))
        is_right = isinstance(value, types) and not isinstance(value, bool)
        is_right &= key != "required" or (is_right and all(isinstance(one, str) for one in value))
        if shape and not is_right:
            raise UsageError(f"the json_schema's {key} is {value!r:.40}; expected {shape}")
        inner: list[Any] = [value] if key in _ONE and not isinstance(value, list) else []
        inner += value if key in _LISTS and isinstance(value, list) else []
        inner += value.values() if key in _NAMED else []
        for one in inner:
            if not (key == "dependencies" and isinstance(one, list)):
                check_shapes(one)


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    """The schema and all within it."""
    if not isinstance(schema, dict):
        return
    yield schema
    for key, value in schema.items():
        inner: list[Any] = []
        if key in _NAMED and isinstance(value, dict):
            inner = list(value.values())
        elif key in _LISTS and isinstance(value, list):
            inner = value
        elif key in _ONE:
            inner = [value]
        for one in inner:
            yield from _parts(one)


def _joins(schema: Schema) -> bool:
    demands = {"properties", "required", "additionalProperties", "type", "minProperties", "maxProperties"}
    return any(
        "allOf" in one or len({"$ref", "anyOf", "oneOf"} & set(one)) + bool(demands & set(one)) > 1
        for one in _parts(schema)
        if {"allOf", "$ref", "anyOf", "oneOf"} & set(one)
    )


def _close(schema: Schema) -> None:
    for one in _parts(schema):
        named, required, least = (one.get(key) for key in ("properties", "required", "minProperties"))
        if not isinstance(named, dict) or {"additionalProperties", "patternProperties"} & set(one):
            continue
        if set(map(str, required or [])) <= set(named) and (least or 0) <= len(named):
            one["additionalProperties"] = False


def _rewritten(schema: Any) -> Schema:
    if isinstance(schema, bool):
        return schema
    told = {key: _inner(key, value) for key, value in schema.items() if key != "x-guidance"}
    for rewrite in (_annotations, _bounds, _unevaluated, _names, _dependencies, _one_of):
        rewrite(told)
    for key in (*_REFUSED, *(["minProperties"] if _may_repeat(told) else [])):
        if key in told:
            raise UsageError(f"the json_schema demands {key}, which cannot be followed: leave it out")
    if any(map(looks_around, (told.get("pattern", ""), *_names_of(told)))):
        raise UsageError("the json_schema demands looking ahead or behind, which cannot be followed")
    if "pattern" in told:
        told["pattern"] = _within_json(plain_classes(told["pattern"]))
    if names := _names_of(told):
        told["patternProperties"] = {
            _within_json(plain_classes(name)): told["patternProperties"][name] for name in names
        }
    return told


def _within_json(pattern: str) -> str:
    r"""``pattern`` without control characters in classes that leave out the quote or the backslash, such as ``[^"]``.

    llguidance 1.9.1 lets ``\"`` and ``\\`` through where such a class has all control characters. Raises UsageError for
    a class that says them itself.
    """

    def narrowed(found: re.Match[str]) -> str:
        text = found[0]
        if text.startswith("[^") and _ESCAPED_IN_JSON.search(text):
            return rf"[^\x00-\x1f{text[2:]}"
        if text.startswith("[") and _CONTROL_RANGE.search(text):
            raise UsageError(
                f"the json_schema's pattern has the range {text!r:.40} of control characters, which cannot be followed"
            )
        return text

    return _CLASS.sub(narrowed, pattern)


def plain_classes(pattern: str) -> str:
    r"""``pattern`` with the classes of JSON Schema's dialect (ECMA-262), where ``[``, ``&&``, ``~~`` and ``--`` are no
    more than their characters; Rust's, which llguidance reads, put sets together with them.
    """

    def escaped(sign: re.Match[str]) -> str:
        if sign[0] == "--":  # the first may stand for a range
            return r"-\-"
        return sign[0] if sign[0].startswith("\\") else "".join(f"\\{char}" for char in sign[0])

    def plain(found: re.Match[str]) -> str:
        text = found[0]
        return text if text.startswith("\\") else "[" + _SET_SIGNS.sub(escaped, text[1:])

    return _CLASS.sub(plain, pattern)


def looks_around(pattern: str) -> bool:
    """Whether a regular expression looks ahead or behind, which no grammar here can."""
    return bool(_LOOKS_AROUND.search(pattern))


def _may_repeat(schema: dict[str, Any]) -> bool:
    """Whether an object could be long enough by one name said twice, for no grammar remembers undeclared names."""
    least, required = schema.get("minProperties", 0), schema.get("required", [])
    is_closed = schema.get("additionalProperties") is False and "patternProperties" not in schema
    is_readable = isinstance(least, int) and isinstance(required, list)
    return is_readable and not is_closed and least > len(set(map(str, required))) + 1


def _names_of(schema: dict[str, Any]) -> list[str]:
    named = schema.get("patternProperties")
    return list(named) if isinstance(named, dict) else []


def _inner(key: str, value: Any) -> Any:
    """The schemas within one keyword's value, rewritten; a wrong value is left for llguidance to name."""
    if key in _LISTS and isinstance(value, list):
        return [_rewritten(one) for one in value]
    if key in _NAMED and isinstance(value, dict):
        return {
            name: one if key == "dependencies" and isinstance(one, list) else _rewritten(one)
            for name, one in value.items()
        }
    if key in _ONE and isinstance(value, dict):
        return _rewritten(value)
    return value


def _annotations(schema: dict[str, Any]) -> None:
    """Leave out what demands nothing."""
    if schema.get("format") not in FORMATS:
        schema.pop("format", None)
    neutral: dict[str, Callable[[Any], bool]] = {
        "uniqueItems": lambda value: value is False,
        "unevaluatedProperties": lambda value: value in (True, {}),
        "unevaluatedItems": lambda value: value in (True, {}),
        "propertyNames": lambda value: value in (True, {}, {"type": "string"}),
    }
    for key, is_neutral in neutral.items():
        if key in schema and is_neutral(schema[key]):
            del schema[key]
    if "contains" not in schema:  # without it these say nothing
        schema.pop("minContains", None)
        schema.pop("maxContains", None)
    if "if" not in schema:
        schema.pop("then", None)
        schema.pop("else", None)


def _bounds(schema: dict[str, Any]) -> None:
    """Said inclusively: beside a bound less than 1 away llguidance 1.9.1 lets an excluded whole number through."""
    for key, plain, step in (("exclusiveMinimum", "minimum", 1e-9), ("exclusiveMaximum", "maximum", -1e-9)):
        bound: Any = schema.get(key)
        other: Any = schema.get(plain)
        if not _is_number(bound) or schema.get("type") == "integer" or not abs(bound) < 1e6 or bound % 1:
            continue
        if other is None or _is_number(other):
            del schema[key]
            tighter = max if step > 0 else min
            schema[plain] = bound + step if other is None else tighter(other, bound + step)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _names(schema: dict[str, Any]) -> None:
    """``propertyNames`` of a pattern, of lengths or of a list, as the properties that there may be."""
    names = schema.get("propertyNames")
    if not isinstance(names, dict) or "patternProperties" in schema:
        return
    keys = set(names) - {"type", "title", "description"}
    others = schema.get("additionalProperties", True)
    declared = schema.get("properties", {})
    if not isinstance(declared, dict) or names.get("type", "string") != "string":
        return
    if keys in ({"enum"}, {"const"}):
        listed = [names["const"]] if "const" in names else names["enum"]
        kept = {name: one for name, one in declared.items() if name in listed}
        fresh = {name: others for name in listed if isinstance(name, str) and name not in declared}
        schema |= {"properties": kept | fresh, "additionalProperties": False}
    elif (keys == {"pattern"} or keys <= {"minLength", "maxLength"}) and keys and not declared:
        low, high = names.get("minLength", 0), names.get("maxLength", "")
        pattern = names.get("pattern", rf"^[\s\S]{{{low},{high}}}$")
        schema |= {"patternProperties": {pattern: others}, "additionalProperties": False}
    else:
        return
    del schema["propertyNames"]


def _unevaluated(schema: dict[str, Any]) -> None:
    """Where no other schema joins in, what is not evaluated is what is additional."""
    if _JOINING & set(schema):
        return
    for key, plain in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
        if key in schema:
            value = schema.pop(key)
            schema.setdefault(plain, value)


def _dependencies(schema: dict[str, Any]) -> None:
    """``dependent...`` as alternatives: the property is not there, or what depends on it is."""
    found: list[Schema] = []
    for key in ("dependentRequired", "dependentSchemas", "dependencies"):
        value = schema.pop(key, {})
        if not isinstance(value, dict):
            raise UsageError(f"the json_schema has a {key} that is no object")
        for name, needed in value.items():
            there: dict[str, Any] = {"required": [name]}
            there |= {"required": [name, *needed]} if isinstance(needed, list) else {"allOf": [needed]}
            found.append({"anyOf": [{"properties": {name: False}}, there]})
    if found:
        schema["allOf"] = [*schema.get("allOf", []), *found]


def _one_of(schema: dict[str, Any]) -> None:
    """``oneOf`` of different values is ``anyOf``; of other schemas llguidance looks itself whether they overlap."""
    choices = schema.get("oneOf")
    if not isinstance(choices, list) or "anyOf" in schema:
        return
    values: list[Any] = []
    for one in choices:
        if not isinstance(one, dict) or not ("const" in one or isinstance(one.get("enum"), list)):
            return
        values += [one["const"]] if "const" in one else one["enum"]
    if all(first != second for i, first in enumerate(values) for second in values[:i]):
        schema["anyOf"] = schema.pop("oneOf")
