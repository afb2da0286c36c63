"""What tests of tool calls share: tools, answers cut and put together again, and grammars that are asked."""

import json
import random
from typing import Any

from flashdraft.grammar import Grammar, begin_grammar
from flashdraft.server.tool_calls import Parts
from flashdraft.server.tool_grammar import CallRules, calls_lark
from tiny_pair import byte_tokenizer

TOKENIZER = byte_tokenizer()
EOS, VOCAB = TOKENIZER.eos_token_id, len(TOKENIZER)
SCHEMAS: dict[str, Any] = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "units": {"enum": ["C", "F"]},
            "flags": {"type": "array"},
        },
    },
    "now": {},
}
Calls = list[tuple[str, Any]]


def added_up(pieces: list[Parts]) -> tuple[str, str, Calls]:
    calls: dict[int, list[str]] = {}
    ended = set()
    for parts in pieces:
        for one in parts.calls:
            if one.kind == "name":
                assert one.index == len(calls)
                calls[one.index] = [one.text, ""]
            elif one.kind == "arguments":
                calls[one.index][1] += one.text
            elif one.kind == "end":
                ended.add(one.index)
    told = [(name, json.loads(text)) for index, (name, text) in calls.items() if index in ended]
    return "".join(p.reasoning for p in pieces), "".join(p.content for p in pieces), told


def cuts(text: str) -> list[list[str]]:
    rng = random.Random(0)
    borders = sorted(rng.sample(range(1, len(text)), min(9, len(text) - 1)))
    uneven = [text[a:b] for a, b in zip([0, *borders], [*borders, len(text)], strict=True)]
    sized = [[text[i : i + size] for i in range(0, len(text), size)] for size in (1, 3, 16, 64)]
    return [[text], uneven, *sized]


def accepts(rules: CallRules, text: str) -> bool:
    state = begin_grammar(Grammar("lark", calls_lark(rules)), TOKENIZER, VOCAB, [EOS])
    ids = [*TOKENIZER.encode(text), EOS]
    return state is not None and state.cut([], ids) == ids
