"""A difference is found where it is, and only a near-tie is called one."""

import pytest
import torch

from flashdraft.bench.lossless import NEAR_TIE_GAP, find_difference, first_difference
from flashdraft.errors import UsageError
from flashdraft.generate import generate
from flashdraft.models.base import TargetModel
from flashdraft.sampling_params import SamplingParams
from toys import toy_target

PROMPT = [5, 9, 11, 40]
GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


@pytest.fixture(scope="module")
def target() -> TargetModel:
    return toy_target()


def answer(target: TargetModel, params: SamplingParams) -> list[int]:
    return generate(target, None, PROMPT, params).token_ids


def test_first_difference() -> None:
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 9, 3]) == 1
    assert first_difference([1, 2, 3], [1, 2]) == 2
    assert first_difference([], [1]) == 0


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(seed=3, max_tokens=12)])
def test_the_gap_is_that_of_the_targets_own_scores(target: TargetModel, params: SamplingParams) -> None:
    plain = answer(target, params)
    assert find_difference(target, PROMPT, plain, plain, params) is None
    other = [*plain[:6], (plain[6] + 1) % 97, *plain[7:]]
    found = find_difference(target, PROMPT, plain, other, params)
    assert found is not None
    assert found.index == 6
    assert found.gap > NEAR_TIE_GAP[torch.float32]
    assert not found.is_near_tie
    back = find_difference(target, PROMPT, other, plain, params)
    assert back == found


def test_a_tie_is_called_one() -> None:
    target = toy_target()
    plain = answer(target, GREEDY)
    twin = next(token for token in range(97) if token not in {*PROMPT, *plain})
    target.head_weight().data[twin] = target.head_weight().data[plain[6]]
    found = find_difference(target, PROMPT, plain, [*plain[:6], twin], GREEDY)
    assert found is not None
    assert (found.index, found.gap, found.is_near_tie) == (6, 0.0, True)


def test_an_answer_that_stops_early_is_no_tie(target: TargetModel) -> None:
    plain = answer(target, GREEDY)
    found = find_difference(target, PROMPT, plain, plain[:6], GREEDY)
    assert found is not None
    assert (found.index, found.gap, found.is_near_tie) == (6, 0.0, False)


def test_sampling_without_a_seed_cannot_be_compared(target: TargetModel) -> None:
    with pytest.raises(UsageError, match="seed"):
        find_difference(target, PROMPT, [1, 2], [1, 3], SamplingParams())
