"""JSON as models write it: what is right passes through as it stands, slips are mended, and cuts change nothing."""

import json
import random
from typing import Any

import pytest

from flashdraft.server.loose_json import LooseJson


def pushed(text: str, size: int) -> tuple[str, bool, str]:
    reader, told = LooseJson(), ""
    for at in range(0, len(text), size):
        told += reader.push(text[at : at + size])
        if reader.is_done or reader.is_broken:
            return told, reader.is_done, reader.rest + text[at + size :]
    return told, False, reader.rest


def mended(text: str) -> str:
    told, is_done, rest = pushed(text, len(text))
    assert (is_done, rest) == (True, "")
    return told


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": "x\ny\t\\"z\\""}', {"a": 'x\ny\t"z"'}),
        ("{'a': True, 'b': None, \"c\": 'it\\'s \"x\"'}", {"a": True, "b": None, "c": 'it\'s "x"'}),
        ('{"a": [1, 2,], "b": {"c": 1,},}', {"a": [1, 2], "b": {"c": 1}}),
        ("{a: NaN, b: -Infinity, c: 007}", {"a": "NaN", "b": "-Infinity", "c": "007"}),
        (r'{"a": "\d+ C:\x \u12 \u00e9 \/"}', {"a": r"\d+ C:\x \u12 é /"}),
        ('{"a" : {} , "b":[ ]}', {"a": {}, "b": []}),
        ("{}", {}),
    ],
)
def test_slips_are_mended(text: str, value: Any) -> None:
    assert json.loads(mended(text)) == value
    for size in (1, 2, 5, 99):
        assert pushed(f"{text} so", size) == (mended(text), True, " so")


@pytest.mark.parametrize(
    "text",
    ['{"a" 1}', '{"a": hello world}', "{,}", '{"a":1,,}', "[1]", "{1}", '{"a": [1}', '{"a": {[', "x", "{} x"],
)
def test_what_is_no_object_is_never_done(text: str) -> None:
    assert pushed(text, 99)[1:] != (True, "")
    assert len({pushed(text, size) for size in (1, 2, 99)}) == 1


def test_right_json_passes_through_and_what_python_prints_becomes_json() -> None:
    rng = random.Random(0)

    def value(depth: int) -> Any:
        kind = rng.randrange(7 if depth < 3 else 5)
        if kind == 5:
            return {f"{i}'\"": value(depth + 1) for i in range(rng.randrange(4))}
        if kind == 6:
            return [value(depth + 1) for _ in range(rng.randrange(4))]
        text = "".join(rng.choices("ab\"\\\né😀 /{}[],:'", k=rng.randrange(8)))
        return (None, True, rng.random() * 10 ** rng.randrange(-5, 9), rng.randrange(-99, 99), text)[kind]

    for _ in range(300):
        one = {"x": value(0), "y": value(0)}
        text = json.dumps(one, indent=rng.choice((None, 1)), ensure_ascii=rng.random() < 0.5)
        assert mended(text) == text == pushed(text, rng.randrange(1, 9))[0]
        assert json.loads(mended(repr(one))) == one
