"""Spoils files as bad disks, cut downloads and bad authors do; one seed, one spoiled folder."""

import json
import random
import struct
from pathlib import Path
from typing import Any

ODD_VALUES = (
    *(
        -1,
        0,
        1,
        3,
        10**7,
        10**9,
        10**18,
        10**40,
        -(10**9),
        0.5,
        -0.0,
        float("nan"),
        float("inf"),
        True,
        False,
        None,
    ),
    *("", "x", "1", "../../x", [], {}, [[]], {"x": 1}, [1, 2, 3], ["a"], [None], "a" * 10_000, "\ud800"),
)


def spoil(file: Path, rng: random.Random) -> str:
    """Change ``file``; returns what was done."""
    if file.suffix == ".json" and rng.random() < 0.75:
        return _spoil_json(file, rng)
    if file.suffix == ".safetensors" and rng.random() < 0.6:
        return _spoil_header(file, rng)
    return _spoil_bytes(file, rng)


def _spoil_bytes(file: Path, rng: random.Random) -> str:
    data = bytearray(file.read_bytes())
    kind = rng.choice(("cut", "flip", "zero", "insert", "head", "empty", "swap"))
    place = rng.randrange(len(data))
    if kind == "cut":
        del data[place:]
    elif kind == "empty":
        data.clear()
    elif kind == "flip":
        for _ in range(rng.choice((1, 1, 4, 64))):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == "head":  # where counts, lengths and types are
        for _ in range(rng.choice((1, 2, 8))):
            data[rng.randrange(min(len(data), 600))] = rng.choice((0, 1, 127, 255, rng.randrange(256)))
    elif kind == "zero":
        end = min(place + rng.choice((8, 64, 4096)), len(data))
        data[place:end] = bytes(end - place)
    elif kind == "insert":
        data[place:place] = rng.randbytes(rng.choice((1, 8, 100)))
    else:
        other = rng.randrange(len(data))
        data[place : place + 8], data[other : other + 8] = data[other : other + 8], data[place : place + 8]
    file.write_bytes(data)
    return f"{kind} at {place}"


def _spoil_json(file: Path, rng: random.Random) -> str:
    content = json.loads(file.read_text())
    if rng.random() < 0.05:
        file.write_text("[" * 200_000 + "]" * 200_000)
        return "too deep"
    done = _spoil_value(content, rng)
    file.write_text(json.dumps(content))
    return done


def _spoil_header(file: Path, rng: random.Random) -> str:
    data = file.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    if rng.random() < 0.05:
        text = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
        done = "header too deep"
    else:
        done = _spoil_value(header, rng)
        text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return done


def _spoil_value(content: Any, rng: random.Random) -> str:
    """Replace, remove or double one value somewhere in ``content``."""
    places: list[tuple[Any, Any]] = []
    todo = [content]
    while todo:
        one = todo.pop()
        entries = one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ()
        for key, value in entries:
            places.append((one, key))
            todo.append(value)
    # Lists of thousands of tokens would take all the tries: few of their places are enough.
    shallow = [place for place in places if isinstance(place[0], dict)]
    holder, key = rng.choice(shallow if shallow and rng.random() < 0.8 else places)
    if rng.random() < 0.15:
        del holder[key]
        return f"{key} removed"
    holder[key] = rng.choice(ODD_VALUES)
    return f"{key} = {str(holder[key])[:40]}"
