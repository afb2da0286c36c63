"""Calls of Llama, of Mistral and in Python: read the same however the answer is cut, streamed or whole, and forced."""

import itertools
import json
import random
from typing import Any

import pytest

from call_cases import EOS, SCHEMAS, TOKENIZER, VOCAB, Calls, accepts, added_up, cuts
from flashdraft.checkpoint.tokenizer import with_call_marks
from flashdraft.grammar import Grammar, begin_grammar
from flashdraft.llm import LLM
from flashdraft.server.answer_parts import PartsReader, read_whole
from flashdraft.server.call_styles import CallStyle, Tools, call_style
from flashdraft.server.tool_grammar import CallRules, calls_lark
from scripted_server import ScriptedEngine, with_template
from server_case import serving
from tiny_pair import byte_tokenizer

CITY = {"city": 'a}b"]);', "days": 2}
ARGUMENTS = json.dumps(CITY)
LLAMA = f'{{"name": "get_weather", "parameters": {ARGUMENTS}}}'
TYPED = '{\n  "type": "function",\n  "name": "get_weather",\n  "parameters": {"days": "10"}\n}'
MISTRAL = f'{{"name": "get_weather", "arguments": {ARGUMENTS}, "id": "abcDEF123"}}'
NOW = '{"name": "now", "arguments": {}}'
PYTHON = "get_weather(city='a}b\"]);', days=2)"
ARGS = f"[TOOL_CALLS]get_weather[ARGS]{ARGUMENTS}"
WEATHER: Calls = [("get_weather", CITY)]
CLOCK: Calls = [("now", {})]
SCRIPTS: list[tuple[CallStyle, str, str, Calls]] = [
    ("llama", LLAMA, "", WEATHER),
    ("llama", TYPED, "", [("get_weather", {"days": "10"})]),
    ("llama", f"{LLAMA}; {LLAMA}", "", WEATHER * 2),
    ("llama", f"{LLAMA}\n{LLAMA}", "", WEATHER * 2),
    ("llama", f"I ask. {LLAMA}; done", "I ask.; done", WEATHER),
    ("llama", LLAMA.replace("parameters", "arguments"), "", WEATHER),
    ("llama", '{"name": "Bob", "age": 3}', '{"name": "Bob", "age": 3}', []),
    ("llama", '{"name": "nobody", "parameters": {}} x', '{"name": "nobody", "parameters": {}} x', []),
    ("llama", 'if (a) { b["c"] = {}; }', 'if (a) { b["c"] = {}; }', []),
    # What a stream has told of a call stands, though its arguments are none or have no end.
    ("llama", '{"name": "now", "parameters": {"a": }}', "}}", []),
    ("llama", LLAMA[:-20], "", []),
    ("llama", LLAMA.replace("a}b", "a\n}b"), "", [("get_weather", CITY | {"city": 'a\n}b"]);'})]),
    ("llama", "{", "{", []),
    ("mistral", f"[TOOL_CALLS][{MISTRAL}]", "", WEATHER),
    ("mistral", f"[TOOL_CALLS] [{MISTRAL}, {NOW}]", "", WEATHER + CLOCK),
    ("mistral", f"Let me see.[TOOL_CALLS][{NOW},\n{MISTRAL}] ok", "Let me see.ok", CLOCK + WEATHER),
    ("mistral", f"[TOOL_CALLS]{NOW}", "", CLOCK),
    ("mistral", f"[TOOL_CALLS][{MISTRAL}", "", WEATHER),
    ("mistral", f"[TOOL_CALLS][{MISTRAL}, x]", ", x]", WEATHER),
    ("mistral", "[TOOL_CALLS] no", "[TOOL_CALLS] no", []),
    ("mistral", "a [TOOL", "a [TOOL", []),
    ("mistral-args", ARGS, "", WEATHER),
    ("mistral-args", f"{ARGS}[TOOL_CALLS]now[CALL_ID]x1[ARGS]{{}}", "", WEATHER + CLOCK),
    ("mistral-args", f"I ask.{ARGS} ok", "I ask.ok", WEATHER),
    ("mistral-args", "[TOOL_CALLS]nobody[ARGS]{}", "[TOOL_CALLS]nobody[ARGS]{}", []),
    ("mistral-args", "[TOOL_CALLS]now[ARGS] {}", "", CLOCK),
    ("mistral-args", "[TOOL_CALLS]now[ARGS]{'a': None,}", "", [("now", {"a": None})]),
    ("mistral-args", "[TOOL_CALLS]now", "[TOOL_CALLS]now", []),
    ("pythonic", f"[{PYTHON}]", "", WEATHER),
    ("pythonic", f"[{PYTHON}, now()]", "", WEATHER + CLOCK),
    ("pythonic", f"I ask.\n[now( ), {PYTHON}]\n", "I ask.", CLOCK + WEATHER),
    (
        "pythonic",
        "[get_weather(city=None, flags=[true, False, {'a': null}], days=-1)]",
        "",
        [("get_weather", {"city": None, "flags": [True, False, {"a": None}], "days": -1})],
    ),
    ("pythonic", "see [a link](b) and [1, 2]", "see [a link](b) and [1, 2]", []),
    ("pythonic", "[nobody(a=1)]", "[nobody(a=1)]", []),
    ("pythonic", "[now(1)]", "[now(1)]", []),
    ("pythonic", "[now(a=b)]", "[now(a=b)]", []),
    ("pythonic", "[now(), nobody()] x", ", nobody()] x", CLOCK),
    ("pythonic", "[get_weather(city='a", "[get_weather(city='a", []),
]


@pytest.mark.parametrize("script", SCRIPTS, ids=range(len(SCRIPTS)))
def test_calls_are_read_the_same_however_the_answer_is_cut(script: tuple[CallStyle, str, str, Calls]) -> None:
    style, text, content, calls = script
    tools = Tools(SCHEMAS, style)
    for pieces in cuts(text):
        reader = PartsReader("none", tools)
        assert added_up([*map(reader.push, pieces), reader.flush()]) == ("", content, calls), pieces
        assert reader.num_whole_calls == len(calls)


@pytest.mark.parametrize("style", ["llama", "mistral", "mistral-args", "pythonic"])
def test_random_garbage_is_read_the_same_however_it_is_cut(style: CallStyle) -> None:
    rng = random.Random(3)
    words = [
        "[TOOL_CALLS]",
        "[ARGS]",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "; ",
        '{"name": "now", ',
        '"parameters": {',
        "}}",
    ]
    words += [
        '"arguments": {',
        "now",
        "now(",
        ")",
        "city=",
        "'a'",
        '"',
        "'",
        "\n",
        " ",
        "a",
        "\\",
        "[CALL_ID]",
    ]
    words += [LLAMA, MISTRAL, NOW, PYTHON, "[now()]", ARGS]
    tools = Tools(SCHEMAS, style)
    for _ in range(300):
        text = "".join(rng.choices(words, k=rng.randrange(2, 12)))
        results = []
        for pieces in cuts(text):
            reader = PartsReader("none", tools)
            results.append(added_up([*map(reader.push, pieces), reader.flush()]))
        assert all(result == results[0] for result in results), text


def test_a_cut_call_is_told_as_far_as_it_came() -> None:
    for style, text in (("llama", LLAMA), ("mistral", f"[TOOL_CALLS][{MISTRAL}"), ("mistral-args", ARGS)):
        parts, calls, num_whole = read_whole(text[:-30], "none", Tools(SCHEMAS, style), is_cut=True)
        assert (parts.content, num_whole, [one.name for one in calls]) == ("", 0, ["get_weather"])
        assert ARGUMENTS.startswith(calls[0].arguments)


LLAMA_TEMPLATE = (
    "{% if tools %}Environment: ipython\n"
    '{"name": .., "parameters": .. }{% for t in tools %}{{ t | tojson }}{% endfor %}'
    "{% endif %}{% for m in messages %}{{ m.role }}: {{ m.content }}{% for c in m.tool_calls or [] %}"
    '{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}{% endfor %}\n{% endfor %}'
)
NINE = "{% if ID|length != 9 %}{{ raise_exception('nine') }}{% endif %}"
MISTRAL_TEMPLATE = (
    "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}{% for m in messages %}"
    "{{ m.content }}{% if m.tool_call_id is defined %}"
    + NINE.replace("ID", "m.tool_call_id")
    + "{% endif %}{% for c in m.tool_calls or [] %}"
    + NINE.replace("ID", "c.id")
    + "[TOOL_CALLS][{{ c.function | tojson }}]{% endfor %}{% endfor %}"
)
PYTHON_TEMPLATE = (
    "{% if tools %}Call as [func_name1(params_name1=value)].{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}{{ m.content }}{{ m.tool_calls or '' }}{% endfor %}"
)
TEMPLATES: dict[CallStyle, str] = {
    "llama": LLAMA_TEMPLATE,
    "mistral": MISTRAL_TEMPLATE,
    "mistral-args": MISTRAL_TEMPLATE.replace("[{{ c.function | tojson }}]", "f[ARGS]{}"),
    "pythonic": PYTHON_TEMPLATE,
}
SAID = {
    "llama": LLAMA,
    "mistral": f"[TOOL_CALLS][{MISTRAL}]",
    "mistral-args": ARGS,
    "pythonic": f"[{PYTHON}]",
}
ASKED: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": schema or {"type": "object"}}}
    for name, schema in SCHEMAS.items()
]


@pytest.mark.parametrize(("style", "num_tokens"), [*itertools.product(SAID, (1, 16))])
def test_a_call_and_its_result_go_round_over_http(llm: LLM, style: CallStyle, num_tokens: int) -> None:
    assert call_style(TEMPLATES[style]) == style
    other = with_template(llm, TEMPLATES[style])
    turns: list[Any] = [{"role": "user", "content": "go"}]
    engine = ScriptedEngine(other, SAID[style], num_tokens)
    with serving(other, engine) as running, running.openai() as client:
        answer = client.chat.completions.create(model="tiny", messages=turns, tools=ASKED)
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls or []
        assert call.type == "function"
        assert (call.function.name, json.loads(call.function.arguments)) == WEATHER[0]
        with client.chat.completions.stream(model="tiny", messages=turns, tools=ASKED) as stream:
            (told,) = stream.get_final_completion().choices[0].message.tool_calls or []
            assert told.function.arguments == call.function.arguments
        result = {"role": "tool", "tool_call_id": call.id, "content": "ok"}
        again = running.post(
            "/v1/chat/completions", messages=[*turns, choice.message.to_dict(), result], tools=ASKED
        )
        assert again.status_code == 200


SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "pattern": "^[ab]$"},
        "days": {"type": "integer", "maximum": 9},
        "more": {"enum": [None, True]},
    },
    "required": ["days"],
    "additionalProperties": False,
}
ONE = '{"name": "f", "arguments": {"city": "a", "days": 3}}'
LLAMAS = ONE.replace("arguments", "parameters")
NAMED = '[TOOL_CALLS]f[ARGS]{"city": "a", "days": 3}'
RIGHT: dict[CallStyle, tuple[str, str]] = {  # one call, and two
    "llama": (LLAMAS, f"{LLAMAS}; {LLAMAS}"),
    "mistral": (f"[TOOL_CALLS][{ONE}]", f"[TOOL_CALLS][{ONE}, {ONE}]"),
    "mistral-args": (NAMED, NAMED + NAMED),
    "pythonic": ('[f(city="a", days=3)]', '[f(city="a", days=3), f(city="a", days=3)]'),
}


@pytest.mark.parametrize("style", RIGHT)
def test_forced_and_strict_calls_fit_their_schema(style: CallStyle) -> None:
    right, two = RIGHT[style]
    wrong = [right.replace('"a"', '"c"'), right.replace("3", "10"), right.replace("city", "x"), right[:-1]]
    other = right.replace('"f"', '"g"').replace("f[", "g[").replace("f(", "g(")
    schemas = {"f": SCHEMA, "now": {}}
    for must_call, is_single in itertools.product((True, False), (True, False)):
        rules = CallRules(schemas, style, must_call, is_single)
        assert accepts(rules, right)
        assert accepts(rules, two) != is_single
        assert accepts(rules, "words") != must_call
        if not must_call:
            assert accepts(rules, f"I ask. {right}")
        for text in wrong:
            assert not accepts(rules, text), text
        assert accepts(rules, other) == (style == "pythonic" and not must_call)  # where it is no call
        tools = Tools(schemas, style)
        parts, calls, _ = read_whole(two, "none", tools)
        assert (parts.content, len(calls)) == ("", 2)


def test_arguments_in_python_come_in_their_order_and_may_be_left_out() -> None:
    free = {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}}}
    rules = CallRules({"f": SCHEMA, "g": free}, "pythonic", True, True)
    told = ["f(days=1)", 'f(city="b", days=1, more=null)', "f(days=1, more=true)"]
    for call in [*told, "g()", "g(a=true)", "g(b=null)", "g(a=true, b=null)"]:
        assert accepts(rules, f"[{call}]"), call
    for call in (
        "f()",
        'f(city="b")',
        "f(more=true, days=1)",
        "f(, days=1)",
        "g(b=null, a=true)",
        "f(days=1,)",
    ):
        assert not accepts(rules, f"[{call}]"), call


def test_the_marks_of_mistrals_calls_are_text_although_they_are_special() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]", "[ARGS]", "[INST]"]})
    ids = tokenizer.encode("a[TOOL_CALLS]f[ARGS]{}[INST]<|im_end|>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "af{}"
    shown = with_call_marks(tokenizer)
    assert shown.decode(ids, skip_special_tokens=True) == "a[TOOL_CALLS]f[ARGS]{}"
    assert shown.encode("a[TOOL_CALLS]f[ARGS]{}[INST]<|im_end|>") == ids
    rules = calls_lark(CallRules({"f": SCHEMA}, "mistral-args", True, True))
    state = begin_grammar(Grammar("lark", rules), shown, len(shown), [EOS])
    assert state is not None
    said = [*shown.encode('[TOOL_CALLS]f[ARGS]{"days": 3}'), EOS]
    assert state.cut([], said) == said
    assert said[0] >= VOCAB


def test_other_templates_are_told_apart() -> None:
    assert call_style(None) is None
    assert call_style("{{ messages }}") is None
    assert call_style("{{ tools }} in a form of its own") is None
    assert call_style("{{ tools }}<tool_call>") == "json"
    assert call_style("{{ tools }}<tool_call><function=x>") == "xml"
    assert TOKENIZER.eos_token_id == EOS
