"""Counts and fields that other programs rely on: usage, speculation, offsets, histories as clients send them."""

import json
from copy import copy
from typing import Any

import openai
import pytest
from tokenizers import processors

from flashdraft.llm import LLM
from scripted_server import saying, with_template
from server_case import MODEL, Running, serving
from tiny_pair import TOOLS_TEMPLATE, byte_tokenizer

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI: Any = [{"role": "user", "content": "hello"}]


def events(response: Any) -> list[dict[str, Any]]:
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def test_usage_tells_found_prefixes_and_speculation(running: Running) -> None:
    body = {"prompt": "abcabcabcabcabcabc" * 4, "temperature": 0, "max_tokens": 30, "block_size": 8}
    body |= {"return_spec_tokens_details": True, "return_meta_info": True}
    running.post(TEXT, **body)
    told = running.post(TEXT, **body).json()
    cached = told["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == told["meta_info"]["cached_tokens"] > 0
    account, details = told["metrics"]["speculative_decoding"], told["usage"]["completion_tokens_details"]
    assert (
        account["num_spec_steps"]
        == told["meta_info"]["spec_verify_ct"]
        == sum(account["acceptance_histogram"])
    )
    assert account["num_accepted_draft_tokens"] == details["accepted_prediction_tokens"]
    assert account["num_draft_tokens"] == sum(details[k] for k in details if "prediction" in k)
    assert account["mean_acceptance_length"] == told["meta_info"]["spec_accept_length"]
    assert account["num_spec_tokens"] == 7
    mine = told["sglext"]["spec_tokens_details"]
    assert mine["spec_accept_length"] == account["mean_acceptance_length"]
    assert mine["spec_correct_drafts_histogram"] == account["acceptance_histogram"]
    chunks = events(running.post(TEXT, **body, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1]["metrics"] == told["metrics"]
    assert "usage" not in chunks[0]


def test_every_chunk_may_tell_the_usage(running: Running) -> None:
    options = {"continuous_usage_stats": True}
    body = {"prompt": "abcabcabc", "temperature": 0, "max_tokens": 20, "return_token_ids": False}
    chunks = events(running.post(TEXT, **body, stream=True, stream_options=options))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 20


@pytest.mark.parametrize("num_tokens", [1, 16])
def test_thoughts_are_counted(llm: LLM, num_tokens: int) -> None:
    text = "<think>hm</think>yes"
    with saying(llm, text, num_tokens) as client:
        answer = client.chat.completions.create(model=MODEL, messages=HI)
        assert answer.usage is not None
        assert answer.usage.completion_tokens_details is not None
        assert answer.usage.completion_tokens_details.reasoning_tokens == len("<think>hm</think>")
        response = client.responses.create(model=MODEL, input="hi")
        assert response.usage is not None
        assert response.usage.output_tokens_details.reasoning_tokens == len("<think>hm</think>")
    with saying(llm, "yes", num_tokens) as client:
        answer = client.chat.completions.create(model=MODEL, messages=HI)
        assert answer.usage is not None
        assert answer.usage.completion_tokens_details is not None
        assert answer.usage.completion_tokens_details.reasoning_tokens == 0


def test_offsets_are_places_in_the_text(running: Running) -> None:
    body = {"prompt": "a \N{GRINNING FACE} b", "echo": True, "logprobs": 2, "max_tokens": 1, "temperature": 0}
    logprobs = running.post(TEXT, **body).json()["choices"][0]["logprobs"]
    assert logprobs["text_offset"] == [0, 1, 2, 2, 2, 2, 3, 4, 5]
    assert logprobs["tokens"][2] == "bytes:\\xf0"
    assert all(len(best) >= 2 for best in logprobs["top_logprobs"][1:])
    told = running.post(TEXT, **body, return_tokens_as_token_ids=True).json()["choices"][0]["logprobs"]
    assert told["tokens"][0] == "token_id:64"


def test_a_token_that_the_tokenizer_puts_in_front_is_no_part_of_the_text(llm: LLM) -> None:
    other = copy(llm)
    other.tokenizer = byte_tokenizer()
    first = other.tokenizer.convert_tokens_to_ids("<|im_start|>")
    other.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", first)]
    )
    with serving(other) as running:
        body = {"echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
        for prompt, offsets in (("hi", [0, 0, 1, 2]), ("<|im_start|>hi", [0, 12, 12, 13, 14])):
            choice = running.post(TEXT, prompt=prompt, **body).json()["choices"][0]
            assert choice["text"].startswith(prompt)
            assert choice["logprobs"]["text_offset"] == offsets


def test_a_prompt_can_be_scored_alone(running: Running) -> None:
    body = {"prompt": "abc", "echo": True, "logprobs": 1, "temperature": 0}
    told = running.post(TEXT, **body, max_tokens=0).json()
    scored = running.post(TEXT, **body, max_tokens=1).json()
    choice, other = told["choices"][0], scored["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("abc", "length")
    assert choice["logprobs"]["token_logprobs"] == other["logprobs"]["token_logprobs"][:3]
    assert told["usage"]["completion_tokens"] == 0


def test_minus_one_is_no_seed_and_large_seeds_are_seeds(running: Running) -> None:
    def text(seed: int) -> str:
        return str(running.post(TEXT, prompt="a", max_tokens=20, seed=seed).json()["choices"][0]["text"])

    assert text(-1) != text(-1)
    assert text(2**63 - 1) == text(2**63 - 1)
    assert text(-(2**63)) == text(-(2**63))


def test_min_tokens_and_the_stop_text_itself(running: Running) -> None:
    body = {"prompt": "abcabcabc", "temperature": 0, "max_tokens": 30}
    free = running.post(TEXT, **body).json()["choices"][0]["text"]
    stop = next(free[i] for i in range(2, len(free)) if free[i].isascii() and free[i].strip())
    cut = running.post(TEXT, **body, stop=stop).json()["choices"][0]["text"]
    kept = running.post(TEXT, **body, stop=stop, include_stop_str_in_output=True).json()["choices"][0]["text"]
    assert (cut + stop, free.startswith(kept)) == (kept, True)
    late = running.post(TEXT, **body, stop=stop, min_tokens=30).json()
    assert (late["choices"][0]["text"], late["usage"]["completion_tokens"]) == (free, 30)


@pytest.mark.parametrize(
    "message",
    [
        {"content": None},
        {},
        {"content": None, "refusal": "No."},
        {"content": [{"type": "refusal", "refusal": "No."}]},
        {"content": None, "reasoning_content": "hm"},
        {"content": "", "tool_calls": []},
        {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": None}}]},
        {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]},
    ],
)
def test_histories_as_clients_send_them_are_taken(llm: LLM, message: dict[str, Any]) -> None:
    with serving(with_template(llm, TOOLS_TEMPLATE)) as running:
        turns = [*HI, {"role": "assistant", **message}, *HI]
        body = {"messages": turns, "max_tokens": 1, "stream": None, "stream_options": {"include_usage": None}}
        response = running.post(CHAT, **body)
        assert response.status_code == 200, response.text


def test_thoughts_of_a_history_reach_the_prompt_by_either_name(llm: LLM) -> None:
    template = "{% for m in messages %}{{ m.reasoning_content }}|{{ m.content }}{% endfor %}"
    with serving(with_template(llm, template)) as running:
        counts = {}
        for name in ("reasoning", "reasoning_content", "other"):
            turns = [*HI, {"role": "assistant", "content": "x", name: "a long thought"}]
            told = running.post(CHAT, messages=turns, max_tokens=1).json()
            counts[name] = told["usage"]["prompt_tokens"]
        assert counts["reasoning"] == counts["reasoning_content"] == counts["other"] + len("a long thought")


def test_effort_none_thinks_not(llm: LLM) -> None:
    with serving(with_template(llm, TOOLS_TEMPLATE)) as running, running.openai() as client:
        asked: Any = {"model": MODEL, "messages": HI, "max_tokens": 8, "temperature": 0}
        off = client.chat.completions.create(**asked, reasoning_effort="none").choices[0].message
        on = client.chat.completions.create(**asked, reasoning_effort="high").choices[0].message
        assert off.content
        assert not on.content


def test_tokenize_counts_as_the_chat_does(llm: LLM) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    with serving(with_template(llm, TOOLS_TEMPLATE)) as running:
        body: dict[str, Any] = {
            "messages": HI,
            "tools": [tool],
            "chat_template_kwargs": {"enable_thinking": False},
        }
        told = running.post("/tokenize", **body, return_token_strs=True).json()
        chat = running.post(CHAT, **body, max_tokens=1).json()
        assert told["count"] == chat["usage"]["prompt_tokens"] == len(told["token_strs"])
        assert (
            running.post("/tokenize", messages=HI, add_generation_prompt=False).json()["count"]
            < told["count"]
        )


def test_prompts_are_cut_and_marked_as_asked(running: Running) -> None:
    told = running.post(TEXT, prompt="abcdef", truncate_prompt_tokens=2, echo=True, max_tokens=1).json()
    assert told["usage"]["prompt_tokens"] == 2
    assert told["choices"][0]["text"].startswith("ef")
    plain = running.post(TEXT, prompt="abc", add_special_tokens=False, max_tokens=1).json()
    assert plain["usage"]["prompt_tokens"] == 3


def test_the_list_of_models_has_no_name(client: openai.OpenAI, running: Running) -> None:
    assert running.get("/v1/models/").json() == running.get("/v1/models").json()
    assert client.models.retrieve(MODEL).id == MODEL


def test_vllms_dashboards_find_their_names(running: Running) -> None:
    running.post(TEXT, prompt="abcabcabc", max_tokens=10, temperature=0, block_size=8)
    lines = running.get("/metrics").text.splitlines()
    ours = {line.replace("flashdraft:", "vllm:") for line in lines if line.startswith("flashdraft:")}
    theirs = {line for line in lines if line.startswith("vllm:")}
    assert theirs < ours
    names = {line.partition("{")[0] for line in theirs}
    wanted = ("drafts", "draft_tokens", "accepted_tokens", "accepted_tokens_per_pos")
    assert {f"vllm:spec_decode_num_{name}_total" for name in wanted} < names
    assert "vllm:http_responses_total" not in names
