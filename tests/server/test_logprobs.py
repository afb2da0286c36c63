"""Log-probabilities through the official client: those of the model, streamed and not, of prompts too."""

from typing import Any

import openai
import pytest
import torch

from flashdraft.batch import ForwardBatch
from flashdraft.llm import LLM
from server_case import MODEL

MESSAGES: Any = [{"role": "user", "content": "hello"}]


@torch.inference_mode()
def by_hand(llm: LLM, ids: list[int]) -> torch.Tensor:
    """Log-probabilities [len(ids), vocab_size] of what follows each token."""
    cache = llm.target.new_cache(1, len(ids))
    hidden = llm.target.forward(ForwardBatch.of_row(ids, 0, llm.target.device), cache).hidden
    return llm.target.logits(hidden[0]).log_softmax(-1)


def test_a_chats_logprobs_are_the_models(client: openai.OpenAI, llm: LLM) -> None:
    asked: Any = {"model": MODEL, "messages": MESSAGES, "max_tokens": 30, "temperature": 0}
    asked |= {"logprobs": True, "top_logprobs": 3}
    whole = client.chat.completions.create(**asked).choices[0].logprobs.content
    answer = llm.chat(MESSAGES, llm_params(30))[0]
    ids = answer.outputs[0].token_ids
    rows = by_hand(llm, answer.prompt_token_ids + ids)[len(answer.prompt_token_ids) - 1 :]
    assert len(whole) == len(ids)
    for one, token, row in zip(whole, ids, rows, strict=False):
        assert one.logprob == pytest.approx(row[token].item(), abs=1e-4)
        assert [top.logprob for top in one.top_logprobs] == pytest.approx(
            row.topk(3).values.tolist(), abs=1e-4
        )
        assert one.top_logprobs[0].token == one.token  # greedy
    raw = b"".join(bytes(one.bytes) for one in whole)
    assert raw.decode(errors="replace") == answer.outputs[0].text
    streamed = []
    for chunk in client.chat.completions.create(**asked, stream=True):
        streamed += chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else []
    assert streamed == whole


def test_a_completion_with_echo_scores_its_prompt(client: openai.OpenAI, llm: LLM) -> None:
    prompts = ["the first prompt", "and another, which is longer"]
    asked: Any = {"model": MODEL, "prompt": prompts, "max_tokens": 5, "temperature": 0}
    for _ in range(2):  # the second time the prefix cache knows them
        choices = client.completions.create(**asked, echo=True, logprobs=2).choices
        for prompt, choice in zip(prompts, choices, strict=True):
            ids = llm.tokenizer.encode(prompt)
            answer = llm.generate(prompt, llm_params(5))[0].outputs[0]
            rows = by_hand(llm, ids + answer.token_ids)
            told = choice.logprobs
            assert choice.text == prompt + answer.text
            assert "".join(told.tokens[: len(ids)]) == prompt
            assert (told.token_logprobs[0], told.top_logprobs[0]) == (None, None)
            expected = [
                row[token].item() for row, token in zip(rows, [*ids, *answer.token_ids][1:], strict=False)
            ]
            assert told.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)
            best = rows[3].max().item()
            assert max(told.top_logprobs[4].values()) == pytest.approx(best, abs=1e-4)
            assert told.text_offset[: len(ids)] == list(range(len(ids)))


def test_a_streamed_completion_adds_up(client: openai.OpenAI) -> None:
    asked: Any = {
        "model": MODEL,
        "prompt": "abc",
        "max_tokens": 20,
        "temperature": 0,
        "logprobs": 1,
        "echo": True,
    }
    whole = client.completions.create(**asked).choices[0]
    text, tokens, values, offsets = "", [], [], []
    for chunk in client.completions.create(**asked, stream=True):
        text += chunk.choices[0].text
        if told := chunk.choices[0].logprobs:
            tokens += told.tokens
            values += told.token_logprobs
            offsets += told.text_offset
    assert (text, tokens) == (whole.text, whole.logprobs.tokens)
    assert values[1:] == pytest.approx(whole.logprobs.token_logprobs[1:])
    assert len(offsets) == len(tokens)


def test_echo_alone_tells_the_prompt(client: openai.OpenAI, llm: LLM) -> None:
    ids = llm.tokenizer.encode("xyz")
    choice = client.completions.create(model=MODEL, prompt=ids, max_tokens=2, echo=True, n=2, seed=1).choices[
        1
    ]
    assert choice.text.startswith("xyz")
    assert choice.logprobs is None


def llm_params(max_tokens: int) -> Any:
    from flashdraft.sampling_params import SamplingParams

    return SamplingParams(temperature=0, max_tokens=max_tokens)
