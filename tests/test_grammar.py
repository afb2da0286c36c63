"""A grammar is obeyed, and changes nothing else: the tokens are plain decoding's, alone and in a batch."""

import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch

from flashdraft import grammar as grammar_module
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.errors import UsageError
from flashdraft.generate import GenerateOutput, generate
from flashdraft.grammar import Grammar, GrammarCompiler, begin_grammar
from flashdraft.models.base import TargetModel
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.drafter import Drafter
from flashdraft.spec_decode.ngram import NgramDrafter
from tiny_pair import byte_tokenizer
from toys import ScriptedDrafter, toy_target

TOKENIZER = byte_tokenizer()
EOS = TOKENIZER.eos_token_id
VOCAB = len(TOKENIZER) + 5  # wider than the tokenizer, as many models are
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue"]},
        "tags": {"type": "array", "items": {"enum": ["a", "bb"]}, "minItems": 2, "maxItems": 6},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["colour", "tags", "n"],
    "additionalProperties": False,
}


def is_right(text: str) -> bool:
    said = json.loads(text)
    fits = said["colour"] in {"red", "green", "blue"} and set(said["tags"]) <= {"a", "bb"}
    return fits and 2 <= len(said["tags"]) <= 6 and 0 <= said["n"] <= 99


CASES: dict[str, tuple[Grammar, Callable[[str], bool]]] = {
    "ebnf": (
        Grammar("ebnf", 'root ::= "{" [a-z]{1,3} "}" ("," "{" [a-z]{1,3} "}"){3,9}'),
        lambda text: re.fullmatch(r"\{[a-z]{1,3}\}(,\{[a-z]{1,3}\}){3,9}", text) is not None,
    ),
    "json_schema": (Grammar("json_schema", json.dumps(SCHEMA)), is_right),
    "regex": (
        Grammar("regex", r"([0-9]{2}-){2,8}x(é|ü)?"),
        lambda text: re.fullmatch(r"([0-9]{2}-){2,8}x(é|ü)?", text) is not None,
    ),
    "choice": (Grammar.choice(["yes", "yes indeed", "no"]), lambda text: text in {"yes", "yes indeed", "no"}),
}


@cache
def target() -> TargetModel:
    return toy_target(vocab_size=VOCAB, eos_token_id=EOS)


def ask(name: str, **more: object) -> SamplingParams:
    # Against spaces: a random model would write as many as it may.
    bias = dict.fromkeys(TOKENIZER.encode(" \n\t\r"), -20.0)
    values = {"temperature": 0.0, "max_tokens": 200, "grammar": CASES[name][0], "logit_bias": bias}
    return SamplingParams(**(values | more))  # type: ignore[arg-type]


def answer(
    prompt: Sequence[int], params: SamplingParams, drafter: Drafter | None = None, size: int | None = None
) -> GenerateOutput:
    return generate(target(), drafter, prompt, params, size, [EOS], tokenizer=TOKENIZER)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "more", [{}, {"temperature": 1.0, "seed": 3, "top_p": 0.9}, {"frequency_penalty": 0.5}]
)
def test_an_answer_obeys_and_is_plain_decodings_at_any_block_size(name: str, more: dict[str, float]) -> None:
    prompt, params = [5, 6, 7], ask(name, **more)
    plain = answer(prompt, params)
    assert (plain.finish_reason, plain.token_ids[-1]) == ("stop", EOS)
    assert CASES[name][1](plain.text), plain.text
    script = prompt + plain.token_ids
    for size in (2, 5, 16):
        for drafter in (ScriptedDrafter(script, lambda at: at % 7 == 0), NgramDrafter(max_block_size=16)):
            drafted = answer(prompt, params, drafter, size)
            assert drafted.token_ids == plain.token_ids
            assert drafted.text == plain.text
            if isinstance(drafter, ScriptedDrafter) and len(plain.token_ids) > 9:
                assert drafted.metrics.num_accepted > len(plain.token_ids) / 4


def test_a_drafter_that_is_always_right_is_always_accepted() -> None:
    plain = answer([5], ask("json_schema"))
    drafted = answer([5], ask("json_schema"), ScriptedDrafter([5, *plain.token_ids], lambda _: False), 16)
    assert drafted.token_ids == plain.token_ids
    assert drafted.metrics.num_accepted == drafted.metrics.num_drafted > 0


def test_a_draft_is_cut_at_its_first_forbidden_token() -> None:
    state = begin_grammar(CASES["regex"][0], TOKENIZER, VOCAB, [EOS])
    assert state is not None
    said, draft = TOKENIZER.encode("12-3"), TOKENIZER.encode("4-x5")
    for _ in range(2):  # the state is where it was
        assert state.cut(said, draft) == draft[:3]
    assert state.cut(said, [EOS]) == []
    assert state.cut(said, [VOCAB - 1]) == []
    whole = TOKENIZER.encode("4-x")
    assert state.cut(said, [*whole, EOS, EOS, 5]) == [*whole, EOS]
    logits = torch.zeros(2, VOCAB)
    state.forbid(logits, [*said, *whole[:1]], state.cut([*said, *whole[:1]], whole[1:2]))
    allowed = [{i for i, value in enumerate(row) if value == 0} for row in logits.tolist()]
    assert allowed == [set(TOKENIZER.encode("-")), set(TOKENIZER.encode("0123456789x"))]
    # A tree that is walked goes on behind an end token; nothing of that is delivered.
    ended = [*said, *whole, EOS]
    for output in (ended, [*ended, 5]):
        logits = torch.zeros(1, VOCAB)
        state.forbid(logits, output, state.cut(output, []))
        assert not logits.any()


def test_50_answers_in_one_batch_are_those_given_alone() -> None:
    engine = Engine(target(), NgramDrafter(8), EngineConfig(page_size=4, num_pages=80), [EOS], TOKENIZER)
    jobs = [
        ([i, *range(i % 9)], ask(name, temperature=float(i % 2), seed=i))
        for i, name in enumerate(list(CASES) * 12)
    ]
    free = ([9, 9], SamplingParams(temperature=0, max_tokens=60))
    for i, (prompt, params) in enumerate([*jobs, free, free]):
        engine.add_request(str(i), prompt, params, [1, 4, 8][i % 3])
    got: dict[str, list[int]] = {}
    for output in engine.run():
        got.setdefault(output.request_id, []).extend(output.token_ids)
    engine.check_integrity()
    assert engine.stats().num_preemptions > 0
    for i, (prompt, params) in enumerate([*jobs, free, free]):
        assert got[str(i)] == answer(prompt, params).token_ids
    assert engine.metrics.num_accepted > 50


def test_stops_and_lengths_end_an_answer_before_its_grammar_does() -> None:
    plain = answer([5], ask("json_schema"))
    cut = answer([5], ask("json_schema", stop='"n'), NgramDrafter(8), 8)
    assert (cut.text, cut.finish_reason) == (plain.text[: plain.text.index('"n')], "stop")
    short = answer([5], ask("json_schema", max_tokens=9), NgramDrafter(8), 8)
    assert (short.token_ids, short.finish_reason) == (plain.token_ids[:9], "length")


def test_free_text_may_come_first() -> None:
    grammar = Grammar("choice", '["yes", "no"]', after="</think>")
    state = begin_grammar(grammar, TOKENIZER, VOCAB, [EOS])
    assert state is not None
    fits = TOKENIZER.encode('well, "x"...</think>\n\nno')
    assert state.cut([], [*fits, EOS]) == [*fits, EOS]
    assert state.cut([], [*TOKENIZER.encode("no"), EOS]) == TOKENIZER.encode("no")


def test_free_text_that_is_opened_by_a_mark_may_be_left_out() -> None:
    grammar = Grammar("choice", '["yes", "no"]', after="</think>", opened_by="<think>")
    state = begin_grammar(grammar, TOKENIZER, VOCAB, [EOS])
    assert state is not None
    for text in ("no", "<think>\nwell: no\n</think>\n\nno"):
        assert state.cut([], [*TOKENIZER.encode(text), EOS]) == [*TOKENIZER.encode(text), EOS]
    assert state.cut([], TOKENIZER.encode("well</think>no")) == []


def test_a_special_token_is_no_text() -> None:
    state = begin_grammar(Grammar("regex", ".*"), TOKENIZER, VOCAB, [EOS])
    assert state is not None
    assert state.cut([], TOKENIZER.encode("a<|im_start|>")) == TOKENIZER.encode("a")


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("regex", "(a", "parenthesis is not closed"),
        ("ebnf", 'root ::= "a" b', 'Rule "b" is not defined'),
        ("json_schema", '{"type": "colour"}', "the json_schema has the type 'colour'; expected one of null"),
        (
            "json_schema",
            '{"properties": {"a": {"required": true}}}',
            "required is True; expected a list of texts",
        ),
        ("json_schema", "{", "cannot be read"),
        ("json_schema", '{"a":' * 3000 + "1" + "}" * 3000, "json_schema"),
        ("json_schema", "3", "the json_schema holds 3"),
        ("choice", "[]", "at least one"),
        ("choice", '{"a": 1}', "expected a list of texts"),
        ("lark", "body: nothing", "unknown name"),
        ("json_schema", '{"properties": {"a": 3}}', "expected a schema"),
        ("json_schema", '{"items": {"uniqueItems": true}}', "demands uniqueItems"),
        ("json_schema", '{"properties": {"a": {"not": {}}}}', "demands not"),
        ("json_schema", '{"$ref": "http://example.com/a"}', "does not fetch resources"),
        ("json_schema", '{"minProperties": 3}', "demands minProperties"),
        ("json_schema", '{"minimum": 3, "type": "integer", "allOf": [{"maximum": 2}]}', "nsatisfiable"),
        ("json_schema", "false", "allows no value"),
        ("json_schema", '{"pattern": "a(?!b)"}', "demands looking ahead"),
        ("regex", "(?<=a)b", "demands looking ahead"),
        ("regex", "a" * (64 << 10) + "a", "65537 bytes; expected at most 65536"),
    ],
)
def test_a_bad_grammar_is_told_by_its_reason(kind: str, text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=re.escape(reason)):
        begin_grammar(Grammar(kind, text), TOKENIZER, VOCAB, [EOS])  # type: ignore[arg-type]


def test_what_only_looks_like_a_demand_is_none() -> None:
    Grammar(
        "json_schema", '{"properties": {"not": {"const": {"if": 1}}}, "uniqueItems": false, "allOf": [{}]}'
    )
    Grammar("regex", r"\(?=(?:a)")


def test_what_a_grammar_cannot_do_without() -> None:
    grammar = CASES["choice"][0]
    with pytest.raises(UsageError, match="needs a tokenizer"):
        begin_grammar(grammar, None, VOCAB, [EOS])
    with pytest.raises(UsageError, match="needs an end token"):
        begin_grammar(grammar, TOKENIZER, VOCAB, [])
    for more in ({"ignore_eos": True}, {"min_tokens": 2}):
        with pytest.raises(UsageError, match="leave one out"):
            ask("choice", **more)


@pytest.mark.parametrize("name", ["choice", "json_schema"])
def test_a_token_that_is_not_allowed_is_an_error_of_its_own_answer(name: str) -> None:
    state = begin_grammar(CASES[name][0], TOKENIZER, VOCAB, [EOS])
    assert state is not None
    wrong = TOKENIZER.encode("\x01")
    assert state.cut(wrong, [5, 6]) == []
    with pytest.raises(UsageError, match=f"its token {wrong[0]} is not allowed there"):
        state.forbid(torch.zeros(1, VOCAB), wrong, [])
    state.rewind()
    state.forbid(torch.zeros(1, VOCAB), [], [])


def test_a_grammar_that_gets_too_slow_ends_its_own_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(target(), NgramDrafter(8), EngineConfig(page_size=4), [EOS], TOKENIZER)
    free = SamplingParams(temperature=0, max_tokens=20)
    engine.add_request("slow", [5], ask("json_schema"))
    engine.add_request("free", [5], free)
    engine.step()
    monkeypatch.setattr(grammar_module, "MAX_MASK_S", 0.0)
    news = list(engine.run())
    [last] = [one for one in news if one.request_id == "slow"]
    assert (last.finished, last.token_ids) == (True, [])
    assert "too many ways" in (last.error or "")
    got = [token for one in news if one.request_id == "free" for token in one.token_ids]
    assert got == answer([5], free).token_ids[-len(got) :]
    engine.check_integrity()


def test_a_missing_module_is_named_with_the_packages_that_bring_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("xgrammar", "tvm_ffi")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tvm_ffi", None)
    with pytest.raises(UsageError, match=r"needs tvm_ffi.*; install it: pip install xgrammar llguidance$"):
        GrammarCompiler(None, 8, [0])
