"""Structured output through the official client: it obeys, streamed and not, and a bad grammar hurts nobody."""

import asyncio
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import openai
import pydantic
import pytest

import patient
from flashdraft.engine.async_engine import AsyncEngine
from flashdraft.engine.grammar_trials import GrammarTrials
from flashdraft.errors import OverloadedError, UsageError
from flashdraft.grammar import Grammar
from flashdraft.llm import LLM
from flashdraft.sampling_params import SamplingParams
from flashdraft.server.config import ServerConfig
from server_case import MODEL, Running, own_engine

MESSAGES: Any = [{"role": "user", "content": "hello"}]
SPACES = {str(token): -20 for token in (197, 198, 201, 220)}  # a random model would write as many as it may


class Thing(pydantic.BaseModel):
    colour: str = pydantic.Field(pattern="^(red|blue)$")
    sizes: list[int] = pydantic.Field(min_length=1, max_length=2)


SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "blue"]},
        "sizes": {"type": "array", "items": {"enum": [1, 22]}},
    },
    "required": ["colour", "sizes"],
}


def ask(client: openai.OpenAI, **more: Any) -> str:
    """The text of an answer, which is the same streamed."""
    more = {"temperature": 0, "max_tokens": 300, "logit_bias": SPACES} | more
    whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, **more)
    chunks = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, **more)
    text = whole.choices[0].message.content
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert text is not None
    assert whole.choices[0].finish_reason == "stop", text
    return text


def test_openais_response_formats(client: openai.OpenAI) -> None:
    schema = {"name": "thing", "schema": SCHEMA, "strict": True}
    said = json.loads(ask(client, response_format={"type": "json_schema", "json_schema": schema}))
    assert said["colour"] in ("red", "blue")
    assert set(said["sizes"]) <= {1, 22}
    bias = {str(token): -20 for token in range(256)}  # or its strings would never end
    bias |= {str(ord('"') - 33): 0, str(ord(":") - 33): 0, str(ord("}") - 33): 4}
    text = ask(client, response_format={"type": "json_object"}, logit_bias=bias, temperature=1.0, seed=2)
    assert isinstance(json.loads(text), dict)


def test_the_clients_parse_gives_an_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL,
        messages=MESSAGES,
        response_format=Thing,
        temperature=0,
        max_tokens=300,
        logit_bias=SPACES,
    )
    thing = answer.choices[0].message.parsed
    assert thing is not None
    assert thing.colour in ("red", "blue")


@pytest.mark.parametrize(
    ("extra", "pattern"),
    [
        ({"guided_regex": "[ab]{3}-[0-9]{2}"}, "[ab]{3}-[0-9]{2}"),
        ({"guided_grammar": 'root ::= ("x" | "yy"){2,4} "."'}, r"(x|yy){2,4}\."),
        ({"guided_choice": ["one", "two"]}, "one|two"),
        ({"guided_json": {"enum": ["p", "q"]}}, '"p"|"q"'),
        ({"structured_outputs": {"regex": "[ab]{3}"}}, "[ab]{3}"),
        ({"structured_outputs": {"json": '{"enum": [1, 2]}'}}, "1|2"),
        ({"structured_outputs": {"choice": ["one", "two"]}}, "one|two"),
        ({"regex": "[ab]{3}"}, "[ab]{3}"),
    ],
)
def test_vllms_and_sglangs_fields(client: openai.OpenAI, extra: dict[str, Any], pattern: str) -> None:
    assert re.fullmatch(pattern, ask(client, extra_body=extra))


def test_completions_responses_and_generate(client: openai.OpenAI, running: Running) -> None:
    text = client.completions.create(
        model=MODEL, prompt="a", max_tokens=99, temperature=0, extra_body={"guided_choice": ["one", "two"]}
    )
    assert text.choices[0].text in ("one", "two")
    form: Any = {
        "format": {"type": "json_schema", "name": "n", "schema": {"enum": ["p", "q"]}, "strict": True}
    }
    response = client.responses.create(model=MODEL, input="hi", temperature=0, text=form)
    assert response.output_text in ('"p"', '"q"')
    for field in ({"json_schema": '{"enum": ["p"]}'}, {"regex": '"p"'}, {"ebnf": r'root ::= "\"p\""'}):
        row = running.post("/generate", text="a", sampling_params={"temperature": 0, **field}).json()
        assert row["text"] == '"p"'


def test_offline_it_is_the_same(client: openai.OpenAI, llm: LLM) -> None:
    params = SamplingParams(
        temperature=1, seed=4, max_tokens=99, grammar=Grammar("regex", "([a-f]{2}-){3,9}")
    )
    offline = llm.chat(MESSAGES, params)[0].outputs[0].text
    served = ask(
        client, temperature=1, seed=4, max_tokens=99, logit_bias={}, extra_body={"regex": params.grammar.text}
    )
    assert served == offline


def test_bad_and_good_requests_share_a_batch(running: Running, client: openai.OpenAI) -> None:
    alone = ask(client, extra_body={"guided_regex": "[a-c]{40}"})

    def one(i: int) -> Any:
        if i % 3 == 0:
            return running.post("/v1/chat/completions", messages=MESSAGES, guided_regex=f"({i}").status_code
        body = {"messages": MESSAGES, "temperature": 0, "guided_regex": "[a-c]{40}", "logit_bias": SPACES}
        return running.post("/v1/chat/completions", **body).json()["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(12))) == [400 if i % 3 == 0 else alone for i in range(12)]
    assert running.service.num_unfinished == 0


SLOW = Grammar("ebnf", "root ::= " + " | ".join(f'[a-z]{{1,{i}}} "{i}"' for i in range(1, 400)))


def test_a_grammar_that_takes_too_long_is_ended_and_holds_nobody_up(llm: LLM) -> None:
    async def run() -> None:
        engine = AsyncEngine(own_engine(llm, ServerConfig()), grammar_limit_s=3)
        await engine.start()
        try:
            waiting = [
                asyncio.create_task(engine.begin_grammar(replace(SLOW, after=after))) for after in "ab"
            ]
            free = SamplingParams(temperature=0, max_tokens=3)
            assert [news async for news in engine.generate([1, 2], free)][-1].finished
            assert await engine.begin_grammar(Grammar("json_schema", "{}"))  # beside them
            for one in waiting:
                with pytest.raises(UsageError, match="was not ready within 3 seconds"):
                    await one
            assert await engine.begin_grammar(Grammar("regex", "a")), "their places are free again"
            with pytest.raises(UsageError, match="Regex parsing error"):
                await engine.begin_grammar(Grammar("regex", "(a"))
        finally:
            await engine.stop()

    asyncio.run(run())


def test_a_grammar_without_a_place_is_told_to_come_again_and_one_without_a_client_gives_its_place_back(
    llm: LLM,
) -> None:
    async def run() -> None:
        trials = GrammarTrials((llm.tokenizer, 512, tuple(llm.eos_token_ids)), limit_s=20, num_processes=1)
        try:
            await trials.check(Grammar("regex", "a"))
            slow = asyncio.create_task(trials.check(SLOW))
            await asyncio.sleep(0.1)
            trials._limit_s = 0.1
            with pytest.raises(OverloadedError, match="try again"):
                await trials.check(Grammar("regex", "b"))
            slow.cancel()
            await asyncio.wait([slow])
            trials._limit_s = 20
            await asyncio.wait_for(trials.check(Grammar("regex", "b")), patient.PATIENCE_S)
        finally:
            await trials.close()
        assert trials._process is None

    asyncio.run(run())
