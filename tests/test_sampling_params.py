"""What users may ask of the choice of tokens, and what is refused."""

from typing import Any

import pytest
import torch

from flashdraft.errors import UsageError
from flashdraft.sampler import TokenChooser, token_logprobs
from flashdraft.sampling_params import SamplingParams


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", 1e38),
        ("top_p", float("nan")),
        ("min_p", float("nan")),
        ("presence_penalty", float("nan")),
        ("frequency_penalty", float("inf")),
        ("repetition_penalty", float("nan")),
        ("repetition_penalty", 1e-320),
        ("repetition_penalty", float("inf")),
        ("top_p", 0.0),
        ("top_k", -2),
        ("min_p", 1.5),
        ("max_tokens", 0),
        ("min_tokens", 17),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("repetition_penalty", 0.0),
        ("stop", ["a", ""]),
        ("logprobs", -1),
        ("n", 0),
        ("n", 1.5),
        ("max_tokens", "3"),
        ("max_tokens", None),
        ("temperature", None),
        ("temperature", "0"),
        ("seed", "one"),
        ("stop", 5),
        ("logit_bias", [1]),
        ("logit_bias", {"a": 1}),
    ],
)
def test_a_value_out_of_range_is_named(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{field} is .*; expected"):
        SamplingParams(**{field: value})


@pytest.mark.parametrize("bias", [float("nan"), float("inf"), -float("inf"), 1e39, 101])
def test_a_bias_is_a_number_within_bounds(bias: float) -> None:
    with pytest.raises(UsageError, match=r"logit_bias of token 3 is .*; expected -100 to 100"):
        SamplingParams(logit_bias={3: bias})


@pytest.mark.parametrize("temperature", [1e-320, 1e-38, 9e-6])
def test_a_temperature_that_float32_cannot_divide_by_is_greedy(temperature: float) -> None:
    logits = torch.tensor([[0.5, 3.0, 2.9]])
    assert TokenChooser(SamplingParams(temperature=temperature, seed=1), [0], []).choose(logits, []) == [1]


def test_a_top_p_that_float32_rounds_to_nothing_keeps_the_likeliest() -> None:
    chooser = TokenChooser(SamplingParams(temperature=100.0, top_p=1e-320, seed=1), [0], [])
    assert chooser.choose(torch.tensor([[0.5, 3.0, 2.9]]), []) == [1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_without_a_token_to_choose_there_is_an_error(temperature: float) -> None:
    logits = torch.zeros(1, 3)
    banned = TokenChooser(SamplingParams(temperature=temperature, min_tokens=1), [0], range(3))
    with pytest.raises(UsageError, match="every one is banned"):
        banned.choose(logits, [])
    logits[0, 1] = float("nan")
    with pytest.raises(UsageError, match="no number"):
        TokenChooser(SamplingParams(temperature=temperature), [0], []).choose(logits, [])


def test_stop_may_be_one_text_and_split_counts_seeds_up() -> None:
    assert SamplingParams(stop="end").stop_texts == ("end",)
    seeds = [one.seed for one in SamplingParams(n=3, seed=7).split()]
    assert seeds == [7, 8, 9]
    fresh = [one.seed for one in SamplingParams(n=2).split()]
    assert None not in fresh
    assert all(one.n == 1 for one in SamplingParams(n=2).split())


def test_each_slot_sees_the_drafts_before_it() -> None:
    """Three equal logits: each choice is the least frequent token so far, ties to the lower id."""
    params = SamplingParams(temperature=0, frequency_penalty=1.0)
    chooser = TokenChooser(params, [0, 0], [])
    assert chooser.choose(torch.zeros(4, 3), [0], [1, 2, 0]) == [1, 2, 0, 1]


def test_banned_tokens_may_come_from_min_tokens_on() -> None:
    logits = torch.tensor([[1.0, 5.0]] * 3)
    chooser = TokenChooser(SamplingParams(temperature=0, min_tokens=3), [0], [1])
    assert chooser.choose(logits, [0], [0, 0]) == [0, 0, 1]
    assert logits[0, 1] == 5.0, "the given logits stay: logprobs are of the raw ones"


def test_logprobs_are_of_the_raw_logits_best_first() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [9.0, 9.0, 9.0]])
    [entry] = token_logprobs(logits, [2], 2)
    expected = logits[0].log_softmax(0)
    assert entry.token_id == 2
    assert entry.logprob == pytest.approx(float(expected[2]))
    assert [token for token, _ in entry.top] == [1, 2]
