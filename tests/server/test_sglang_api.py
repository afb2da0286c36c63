"""SGLang's native way of asking."""

import json
from itertools import pairwise
from typing import Any

import pytest

from flashdraft.llm import LLM
from flashdraft.sampling_params import SamplingParams
from server_case import Running

GREEDY = {"temperature": 0, "max_new_tokens": 30}


def test_generate_is_the_offline_answer(running: Running, llm: LLM) -> None:
    offline = llm.generate(["abc", "hello"], SamplingParams(temperature=0, max_tokens=30))
    one = running.post("/generate", text="abc", sampling_params=GREEDY).json()
    assert one["text"] == offline[0].outputs[0].text
    assert one["output_ids"] == offline[0].outputs[0].token_ids
    meta = one["meta_info"]
    assert meta["spec_verify_ct"] == offline[0].metrics.num_rounds
    assert meta["spec_accept_length"] == pytest.approx(offline[0].metrics.acceptance_length)
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (3, 30)
    ids = [output.prompt_token_ids for output in offline]
    many = running.post("/generate", input_ids=ids, sampling_params=GREEDY).json()
    assert [row["text"] for row in many] == [output.outputs[0].text for output in offline]


def test_a_stream_carries_the_text_so_far(running: Running) -> None:
    body: dict[str, Any] = {"text": "abc", "sampling_params": GREEDY}
    whole = running.post("/generate", **body).json()
    events = running.post("/generate", **body, stream=True).text.strip().split("\n\n")
    rows = [json.loads(one.removeprefix("data: ")) for one in events[:-1]]
    assert events[-1] == "data: [DONE]"
    assert rows[-1]["text"] == whole["text"]
    assert all(later["text"].startswith(row["text"]) for row, later in pairwise(rows))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "text"),
        ({"text": "a", "input_ids": [1]}, "text"),
        ({"text": "a", "return_logprob": True}, "return_logprob"),
        ({"text": "a", "sampling_params": {"stop_regex": "a+"}}, "sampling_params.stop_regex"),
        ({"text": ["a", "b"], "sampling_params": [{}]}, "sampling_params"),
        ({"text": ["a", "b"], "stream": True}, "stream"),
    ],
)
def test_what_it_cannot_is_refused(running: Running, body: dict[str, Any], param: str) -> None:
    response = running.post("/generate", **body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_flush_cache(running: Running) -> None:
    assert running.post("/flush_cache").json()["success"]
