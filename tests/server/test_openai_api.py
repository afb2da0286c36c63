"""The official client against a real server: whole and streamed, and the same text as the offline face."""

import json

import openai
import pytest

from flashdraft.llm import LLM
from flashdraft.sampling_params import SamplingParams
from server_case import MODEL, Running

MESSAGES = [{"role": "user", "content": "hello"}]
GREEDY = SamplingParams(temperature=0, max_tokens=40)


def test_a_chat_is_the_offline_answer_with_its_usage(client: openai.OpenAI, llm: LLM) -> None:
    offline = llm.chat([MESSAGES], GREEDY)[0]
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=40, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content == offline.outputs[0].text
    assert answer.choices[0].finish_reason == offline.outputs[0].finish_reason
    usage, metrics = answer.usage, offline.metrics
    assert usage.prompt_tokens == len(offline.prompt_token_ids)
    assert usage.completion_tokens == len(offline.outputs[0].token_ids)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    details = usage.completion_tokens_details
    assert details.accepted_prediction_tokens == metrics.num_accepted > 0
    assert details.rejected_prediction_tokens == metrics.num_drafted - metrics.num_accepted > 0


def test_a_stream_adds_up_to_the_whole_answer(client: openai.OpenAI) -> None:
    asked = {"model": MODEL, "messages": MESSAGES, "max_completion_tokens": 40, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == "length"
    assert not chunks[-1].choices
    assert chunks[-1].usage == whole.usage


def test_a_stream_without_include_usage_has_none_and_ends_with_done(running: Running) -> None:
    body = {"messages": MESSAGES, "max_tokens": 3, "stream": True, "temperature": 0}
    response = running.post("/v1/chat/completions", **body)
    events = [line for line in response.text.split("\n\n") if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert events[-1] == "data: [DONE]"
    assert all("usage" not in json.loads(one.removeprefix("data: ")) for one in events[:-1])


def test_completions_take_texts_and_token_ids_one_or_many(client: openai.OpenAI, llm: LLM) -> None:
    texts = ["one", "two words"]
    ids = [llm.tokenizer.encode(text) for text in texts]
    offline = [
        one.outputs[0].text for one in llm.generate(texts, SamplingParams(temperature=0, max_tokens=16))
    ]
    for prompt, expected in (
        (texts, offline),
        (ids, offline),
        (texts[1], offline[1:]),
        (ids[1], offline[1:]),
    ):
        answer = client.completions.create(model=MODEL, prompt=prompt, temperature=0)
        assert [choice.text for choice in answer.choices] == expected


def test_n_answers_have_seeds_that_count_up(client: openai.OpenAI, llm: LLM) -> None:
    offline = [
        llm.generate("abc", SamplingParams(temperature=1, top_p=0.9, top_k=50, seed=seed, max_tokens=9))[0]
        for seed in (5, 6, 7)
    ]
    asked = {"model": MODEL, "prompt": "abc", "n": 3, "seed": 5, "max_tokens": 9, "top_p": 0.9}
    answer = client.completions.create(**asked, extra_body={"top_k": 50})
    texts = [choice.text for choice in answer.choices]
    assert texts == [one.outputs[0].text for one in offline]
    assert len(set(texts)) == 3
    assert answer.usage.prompt_tokens == 3
    streamed = ["", "", ""]
    for chunk in client.completions.create(**asked, extra_body={"top_k": 50}, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == texts


def test_a_stop_text_cuts_and_is_never_shown(client: openai.OpenAI, llm: LLM) -> None:
    text = llm.generate("abc", GREEDY)[0].outputs[0].text
    at = next(i for i in range(5, len(text)) if text.find(text[i : i + 2]) == i)
    stop = text[at : at + 2]
    asked = {"model": MODEL, "prompt": "abc", "max_tokens": 40, "temperature": 0, "stop": [stop, "never"]}
    answer = client.completions.create(**asked)
    assert answer.choices[0].text == text[:at]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens < 40
    assert "".join(c.choices[0].text for c in client.completions.create(**asked, stream=True)) == text[:at]


def test_a_block_of_one_is_plain_decoding_and_origins_say_so(running: Running) -> None:
    asked = {
        "prompt": "abc",
        "max_tokens": 60,
        "temperature": 0,
        "token_origins": True,
        "return_meta_info": True,
    }
    answers = [running.post("/v1/completions", **asked, **more).json() for more in ({}, {"block_size": 1})]
    assert all(answer["meta_info"] == answer["choices"][0]["meta_info"] for answer in answers)
    drafted, plain = (answer["choices"][0] for answer in answers)
    assert drafted["text"] == plain["text"] == "".join(drafted["token_texts"])
    assert set(plain["token_origins"]) == {"plain"}
    assert drafted["token_origins"][0] == "plain"  # the prefill's
    assert {"accepted", "bonus"} <= set(drafted["token_origins"])
    assert plain["meta_info"]["spec_accept_length"] == 1.0
    meta = drafted["meta_info"]
    assert meta["spec_accept_length"] == pytest.approx(59 / meta["spec_verify_ct"])


def test_the_controller_may_choose_the_blocks(running: Running) -> None:
    asked = {"prompt": "abc", "max_tokens": 60, "temperature": 0}
    plain, chosen = (running.post("/v1/completions", **asked, block_size=size).json() for size in (1, "auto"))
    assert chosen["choices"][0]["text"] == plain["choices"][0]["text"]
    rounds = [
        line for line in running.get("/metrics").text.splitlines() if "spec_decode_num_rounds_total" in line
    ]
    assert any('block_size="1"' in line for line in rounds), "those of plain decoding at least"


def test_a_stream_says_how_each_token_came(running: Running, llm: LLM) -> None:
    body = {"prompt": "abc", "max_tokens": 60, "temperature": 0, "token_origins": True, "stream": True}
    events = running.post("/v1/completions", **body).text.split("\n\n")
    choices = [json.loads(one[6:])["choices"][0] for one in events if one.startswith("data: {")]
    origins = [origin for choice in choices for origin in choice["token_origins"]]
    metrics = llm.generate("abc", SamplingParams(temperature=0, max_tokens=60))[0].metrics
    assert 60 <= len(origins) <= 61  # one more where the last character never came whole
    assert origins.count("accepted") == metrics.num_accepted > 0
    assert sum(c["num_accepted"] for c in choices) == metrics.num_accepted
    assert sum(c["num_drafted"] for c in choices) == metrics.num_drafted


def test_ignore_eos_goes_on(running: Running, llm: LLM) -> None:
    body = {"prompt": "abc", "max_tokens": 30, "temperature": 1, "top_k": 0}
    eos = llm.eos_token_ids[0]
    seed = next(
        seed
        for seed in range(400)
        if llm.generate("abc", SamplingParams(seed=seed, max_tokens=30))[0].outputs[0].token_ids[-1] == eos
    )
    stopped, goes_on = (
        running.post("/v1/completions", **body, seed=seed, ignore_eos=flag).json() for flag in (False, True)
    )
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert goes_on["usage"]["completion_tokens"] == 30 > stopped["usage"]["completion_tokens"]


def test_text_parts_are_joined_and_a_developer_is_a_system(running: Running) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    told = running.post("/tokenize", messages=[{"role": "developer", "content": parts}]).json()["tokens"]
    plain = running.post("/tokenize", messages=[{"role": "system", "content": "a\nb"}]).json()["tokens"]
    assert told == plain


def test_max_tokens_beyond_the_context_is_what_the_context_leaves(running: Running) -> None:
    prompt = [5] * 2040
    answer = running.post("/v1/completions", prompt=prompt, max_tokens=4096, ignore_eos=True).json()
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["choices"][0]["finish_reason"] == "length"
