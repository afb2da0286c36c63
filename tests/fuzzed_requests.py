"""Malformed requests by a seed: valid ones with values, fields and bytes exchanged."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

HI = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
SAMPLING: dict[str, Any] = {
    **{"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 3, "n": 1, "stop": ["x"]},
    **{"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1, "logit_bias": {"5": 1}},
    **{"ignore_eos": False, "stop_token_ids": [3]},
}
OPENAI = SAMPLING | {"max_tokens": 2, "stream": False, "block_size": 4, "model": "tiny"}
VALID: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", OPENAI | {"messages": HI, "logprobs": True, "top_logprobs": 2}),
    ("/v1/chat/completions", {"messages": HI, "max_tokens": 2, "tools": [TOOL], "tool_choice": "auto"}),
    (
        "/v1/chat/completions",
        {"messages": HI, "max_tokens": 2, "chat_template_kwargs": {"enable_thinking": False}},
    ),
    ("/v1/completions", OPENAI | {"prompt": "abc", "logprobs": 2, "echo": True}),
    (
        "/v1/completions",
        {"prompt": [[1, 2], [3]], "max_tokens": 2, "stream_options": {"include_usage": True}},
    ),
    ("/v1/completions", {"prompt": "a", "max_tokens": 2, "guided_json": SCHEMA}),
    ("/v1/completions", {"prompt": "a", "max_tokens": 2, "guided_regex": "[ab]{3}"}),
    (
        "/v1/completions",
        {
            "prompt": "a",
            "max_tokens": 2,
            "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
        },
    ),
    ("/v1/responses", {"input": "abc", "max_output_tokens": 2, "instructions": "be brief", "stream": False}),
    ("/generate", {"text": ["a", "b"], "sampling_params": SAMPLING | {"max_new_tokens": 2}}),
    ("/generate", {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 2}, "stream": True}),
    ("/tokenize", {"prompt": "abc", "add_special_tokens": True}),
    ("/tokenize", {"messages": HI}),
    ("/detokenize", {"tokens": [1, 2, 3]}),
]
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e-320, 1e308),
    *(float("nan"), float("inf"), -float("inf"), "", "a", "\x00", "\ud800", "é" * 50, "auto", "<|im_end|>"),
    *("x" * 5000, "(" * 200, "[a-z]{1,9}" * 40, "{", "null", "\r\nA: b", "../../etc", "日本" * 100),
    *([], [[]], [[[[]]]], {}, {"a": {}}, {"": ""}, [None], [1, "a"], [1.5], [-1], [10**9], ["a"] * 40),
    *({"type": "object", "$ref": "#"}, {"role": "user"}, [{"role": "user", "content": None}]),
    *({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, {"type": ["string"] * 60}),
]


def requests(seed: int, number: int) -> Iterator[tuple[str, bytes]]:
    """``number`` of them: path and body. One seed gives one list."""
    dice = random.Random(seed)
    for _ in range(number):
        path, valid = dice.choice(VALID)
        body = copy.deepcopy(valid)
        for _ in range(dice.choice((1, 1, 1, 2, 4))):
            _exchange(body, dice)
        text = json.dumps(body).encode()
        yield path, _bytes_exchanged(text, dice) if dice.random() < 0.15 else text


def _exchange(body: dict[str, Any], dice: random.Random) -> None:
    """Exchange, add or take away one value, however deep."""
    place: Any = body
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = dice.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and dice.random() < 0.6:
            place = place[key]
            continue
        action = dice.random()
        if action < 0.75:
            place[key] = copy.deepcopy(dice.choice(ODD))
        elif action < 0.85:
            del place[key]
        elif isinstance(place, dict):
            place[dice.choice([*SAMPLING, "messages", "extra", "tools", "type"])] = dice.choice(ODD)
        else:
            place.extend([place[key]] * dice.choice((1, 5, 300)))
        return


def _bytes_exchanged(text: bytes, dice: random.Random) -> bytes:
    start, end = sorted(dice.randrange(len(text) + 1) for _ in range(2))
    way = dice.randrange(4)
    if way == 0:
        return text[:start]
    if way == 1:
        return text[:start] + text[end:]
    if way == 2:
        return text[:end] + text[start:]
    return text[:start] + dice.randbytes(8) + text[start:]


def heads(seed: int, number: int) -> Iterator[bytes]:
    """``number`` of requests as bytes, whose head is wrong somewhere."""
    dice = random.Random(seed)
    body = b'{"prompt": "a", "max_tokens": 1}'
    for _ in range(number):
        head = [
            dice.choice((b"POST", b"GET", b"POST", b"BREW", b"OPTIONS", b""))
            + b" "
            + dice.choice(
                (b"/v1/completions", b"/", b"*", b"//v1", b"/%00%ff", b"/assets/../app.py", b"http://a/")
            )
            + dice.choice((b" HTTP/1.1", b" HTTP/1.0", b" HTTP/9", b"")),
            b"Host: " + dice.choice((b"localhost", b"", b"a b", b"\xff")),
            dice.choice(
                (b"Content-Length: %d" % len(body), b"Content-Length: -1", b"Content-Length: 9e9", b"A")
            ),
            dice.choice(
                (b"Transfer-Encoding: chunked", b"Upgrade: h2c", b"Expect: 100-continue", b"A: b\x00c", b"")
            ),
            b"Connection: " + dice.choice((b"close", b"close, Upgrade", b"keep-alive")),
        ]
        yield dice.choice((b"\r\n", b"\r\n", b"\n", b"\r")).join(head) + b"\r\n\r\n" + body
