"""gpt-oss' form of answers: thoughts, words and calls apart however an answer is cut, asked for, and in histories."""

import json
from typing import Any

import pytest

from call_cases import EOS, SCHEMAS, TOKENIZER, VOCAB, Calls, accepts, added_up, cuts
from flashdraft.checkpoint.tokenizer import with_call_marks
from flashdraft.grammar import Grammar, begin_grammar
from flashdraft.llm import LLM
from flashdraft.sampling_params import SamplingParams
from flashdraft.server.answer_parts import read_whole, thinking_of
from flashdraft.server.call_styles import Tools, call_style
from flashdraft.server.harmony import HarmonyReader
from flashdraft.server.structured import behind_thoughts
from flashdraft.server.tool_grammar import CallRules
from scripted_server import ScriptedEngine, with_template
from server_case import MODEL, serving
from tiny_pair import byte_tokenizer

# In the form of gpt-oss' own: thoughts are called thinking, and a message has one call.
TEMPLATE = (
    "<|start|>system<|message|>Reasoning: {{ reasoning_effort | default('medium') }}<|end|>"
    "{% if tools %}<|start|>developer<|message|>{{ tools | tojson }}<|end|>{% endif %}"
    "{% for m in messages %}{% if m.tool_calls %}{% set call = m.tool_calls[0].function %}"
    "{% if m.content and m.thinking %}{{ raise_exception('both') }}{% endif %}"
    "{% if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
    "<|start|>assistant to=functions.{{ call.name }}<|channel|>commentary json<|message|>"
    "{{ call.arguments | tojson }}<|call|>{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
HM = "<|channel|>analysis<|message|>hm, <b>so</b>\n<|end|><|start|>assistant"
YES = "<|channel|>final<|message|>yes: 1 < 2"
ARGUMENTS = '{"city": "<|en", "days": 2}'
CALL = f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{ARGUMENTS}"
HEAD_FIRST = f" to=functions.get_weather<|channel|>commentary json<|message|>{ARGUMENTS}<|call|>"
WEATHER: Calls = [("get_weather", {"city": "<|en", "days": 2})]
NOBODY = '<|channel|>commentary to=functions.nobody <|constrain|>json<|message|>{"a": 1}'
SCRIPTS: list[tuple[str, str, str, Calls]] = [
    (HM + YES, "hm, <b>so</b>\n", "yes: 1 < 2", []),
    (f"{HM}{YES}<|return|>", "hm, <b>so</b>\n", "yes: 1 < 2", []),
    (YES, "", "yes: 1 < 2", []),
    (HM + CALL, "hm, <b>so</b>\n", "", WEATHER),
    (f"{HM}{CALL}<|call|>", "hm, <b>so</b>\n", "", WEATHER),
    (HEAD_FIRST, "", "", WEATHER),
    (
        f"{HM}<|channel|>commentary<|message|>I ask.<|end|><|start|>assistant{CALL}",
        "hm, <b>so</b>\n",
        "I ask.",
        WEATHER,
    ),
    (f"{HM}{HM}{YES}", "hm, <b>so</b>\n\n\nhm, <b>so</b>\n", "yes: 1 < 2", []),
    (f"{HM}{NOBODY}", "hm, <b>so</b>\n", NOBODY, []),
    ("no marks at all", "", "no marks at all", []),
    ("t", "", "t", []),
    (CALL[:-1], "", "", []),
]


@pytest.mark.parametrize(("text", "thoughts", "words", "calls"), SCRIPTS)
def test_read_the_same_however_it_is_cut(text: str, thoughts: str, words: str, calls: Calls) -> None:
    tools = Tools(SCHEMAS, "harmony")
    for pieces in cuts(text) if len(text) > 1 else [[text]]:
        reader = HarmonyReader(tools)
        found = added_up([*map(reader.push, pieces), reader.flush()])
        assert found == (thoughts, words, calls)
        assert reader.num_whole_calls == len(calls)


def test_cut_by_the_length() -> None:
    tools = Tools(SCHEMAS, "harmony")
    parts, calls, num_whole = read_whole(HM + CALL[:-5], "harmony", tools, is_cut=True)
    assert (parts.content, [call.name for call in calls], num_whole) == ("", ["get_weather"], 0)
    assert calls[0].arguments
    assert ARGUMENTS.startswith(calls[0].arguments)
    parts, calls, _ = read_whole(HM[:-8], "harmony", tools, is_cut=True)
    assert (parts.reasoning, parts.content, calls) == ("hm, <b>so</b>\n", "", [])


def test_told_by_the_template() -> None:
    assert call_style(TEMPLATE) == "harmony"
    assert thinking_of(TEMPLATE, "x<|end|><|start|>assistant") == "harmony"
    assert thinking_of(TEMPLATE, "x<|end|>") == "none"


def test_marks_are_part_of_the_text() -> None:
    """Also where they are special tokens; those of other models stay special."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|channel|>", "<|message|>", "<|end|>", "<|call|>"]}
    )
    ids = tokenizer.encode(f"{YES}<|end|><|call|>")
    assert with_call_marks(tokenizer).decode(ids, skip_special_tokens=True) == f"{YES}<|end|>"
    other = byte_tokenizer()
    other.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    assert with_call_marks(other).decode(other.encode("a<|end|>"), skip_special_tokens=True) == "a"


def test_forced_calls() -> None:
    must = CallRules({"now": {}}, "harmony", True, True)
    now = "<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}"
    assert accepts(must, HM + now)
    assert accepts(must, now)
    assert not accepts(must, HM + YES)
    assert not accepts(must, now.replace("now", "other"))
    free = CallRules({"now": {}}, "harmony", False, True)
    assert accepts(free, HM + YES)
    assert accepts(free, HM + now)
    assert not accepts(free, now + "x")
    both = CallRules({"now": {}}, "harmony", False, True, '"[1]"')
    assert accepts(both, f"{HM}<|channel|>final<|message|>[1]")
    assert accepts(both, HM + now)
    assert not accepts(both, HM + YES)


def test_a_grammar_begins_behind_the_final_mark() -> None:
    params = behind_thoughts(SamplingParams(grammar=Grammar.any_json()), "harmony")
    assert params.grammar is not None
    for text, is_right in ((f'{HM}<|channel|>final<|message|>{{"a": 1}}', True), (HM + YES, False)):
        state = begin_grammar(params.grammar, TOKENIZER, VOCAB, [EOS])
        ids = [*TOKENIZER.encode(text), EOS]
        assert state is not None
        assert (state.cut([], ids) == ids) == is_right


TOOL: Any = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMAS["get_weather"]}}
USER: Any = {"role": "user", "content": "hi"}


@pytest.mark.parametrize("num_tokens", [1, 16])
def test_served(llm: LLM, num_tokens: int) -> None:
    """Thoughts in their own field, calls as calls, whole and streamed, of both interfaces."""
    spoken = with_template(llm, TEMPLATE)
    asked: Any = {"model": MODEL, "messages": [USER], "tools": [TOOL]}
    for text, (thoughts, words, calls) in {one[0]: one[1:] for one in (SCRIPTS[0], SCRIPTS[6])}.items():
        with serving(spoken, ScriptedEngine(spoken, text, num_tokens)) as running, running.openai() as client:
            answer = client.chat.completions.create(**asked)
            message = answer.choices[0].message
            found = [(c.function.name, json.loads(c.function.arguments)) for c in message.tool_calls or []]
            assert (message.reasoning_content, message.content or "", found) == (thoughts, words, calls)
            assert answer.choices[0].finish_reason == ("tool_calls" if calls else "stop")
            deltas = [
                chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)
            ]
            assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == thoughts
            assert "".join(delta.content or "" for delta in deltas) == words
            told = "".join(c.function.arguments or "" for delta in deltas for c in delta.tool_calls or [])
            assert told == (ARGUMENTS if calls else "")
            assert answer.usage.completion_tokens_details.reasoning_tokens > len(thoughts)
            items = client.responses.create(model=MODEL, input="hi").output
            assert [item.type for item in items][:2] == ["reasoning", "message"]


def test_a_history_with_calls(llm: LLM) -> None:
    """Thoughts, and words before a call, are what the template takes as thinking; of two calls it would show one."""
    spoken = with_template(llm, TEMPLATE)
    call = {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": '{"days": 2}'}}
    said: Any = {"role": "assistant", "content": "I ask.", "reasoning_content": "hm", "tool_calls": [call]}
    result: Any = {"role": "tool", "tool_call_id": "a", "content": "sun"}
    with serving(spoken) as running:
        body = {"messages": [USER, said, result], "tools": [TOOL], "reasoning_effort": "low"}
        ids = running.post("/tokenize", **{k: v for k, v in body.items() if k != "reasoning_effort"}).json()[
            "tokens"
        ]
        text = llm.tokenizer.decode(ids)
        assert (
            "analysis<|message|>hm\n\nI ask.<|end|><|start|>assistant to=functions.get_weather<|channel|>"
            in text
        )
        assert text.endswith(
            'json<|message|>{"days": 2}<|call|><|start|>tool<|message|>sun<|end|><|start|>assistant'
        )
        said["tool_calls"] = [call, call | {"id": "b"}]
        refused = running.post("/v1/chat/completions", **body)
        assert refused.status_code == 400
        assert "has 2 calls; the model's chat template takes one a message" in refused.text
