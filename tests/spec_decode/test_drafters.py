"""Prompt lookup against its definition; verification; metrics as ratios of sums."""

import random

import pytest

from flashdraft.spec_decode.metrics import RequestMetrics
from flashdraft.spec_decode.ngram import NgramDrafter
from flashdraft.spec_decode.tree import DraftTree
from flashdraft.spec_decode.verify import verify
from toys import Alone


def looked_up(history: list[int], anchor: int, num_draft: int) -> list[int]:
    """The definition, by search: the latest earlier occurrence of the longest of 3, 2, 1 last tokens."""
    text = [*history, anchor]
    for size in (3, 2, 1):
        if len(text) < size:
            continue
        for start in range(len(history) - size, -1, -1):
            if text[start : start + size] == text[-size:]:
                return history[start + size : start + size + num_draft]
    return []


def test_prompt_lookup_equals_the_definition() -> None:
    rng = random.Random(0)
    for _ in range(50):
        state, history = Alone(NgramDrafter(), 100), list[int]()
        for _ in range(12):
            new = [rng.randrange(5) for _ in range(rng.randrange(1, 5))]
            state.observe(new, None)
            history += new
            anchor = rng.randrange(5)
            drafted, expected = state.chain(anchor, 7), looked_up(history, anchor, 7)
            # An occurrence right at the end has nothing after it yet; then shorter ones may serve.
            assert drafted == expected or not expected


@pytest.mark.parametrize(
    ("draft", "wanted", "result"),
    [
        ([], [4], (0, 4)),
        ([1, 2, 3], [1, 2, 3, 9], (3, 9)),
        ([1, 2, 3], [1, 5, 3, 9], (1, 5)),
        ([1, 2, 3], [7, 2, 3, 9], (0, 7)),
    ],
)
def test_verify(draft: list[int], wanted: list[int], result: tuple[int, int]) -> None:
    assert verify(draft, wanted) == result


def test_many_requests_are_a_ratio_of_sums() -> None:
    total = RequestMetrics(num_requests=0)
    for accepted in ([3, 3], [0, 0, 0, 0]):
        one = RequestMetrics()
        one.record_tokens(1, 0)
        for num_accepted in accepted:
            one.record_round(DraftTree.chain([0] * 3), num_accepted)
            one.record_tokens(num_accepted + 1, num_accepted)
        total.add(one)
    assert total.acceptance_length == pytest.approx((8 + 4) / 6)
    assert total.accepted_histogram == [4, 0, 0, 2]
    assert total.accepted_by_position == [pytest.approx(1 / 3)] * 3
    assert RequestMetrics().acceptance_length == 1.0
