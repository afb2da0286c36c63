"""The lossless rule, case by case."""

import pytest

from flashdraft.spec_decode.verify import verify


@pytest.mark.parametrize(
    ("draft", "wanted", "kept"),
    [
        ([], [5], (0, 5)),
        ([1, 2], [1, 2, 3], (2, 3)),
        ([1, 2], [7, 2, 3], (0, 7)),
        ([1, 2, 9], [1, 7, 9, 4], (1, 7)),  # what agrees again behind a mismatch is not kept
    ],
)
def test_the_longest_prefix_that_the_target_chose_and_one_token_more(
    draft: list[int], wanted: list[int], kept: tuple[int, int]
) -> None:
    assert verify(draft, wanted) == kept


def test_the_target_has_a_token_for_each_place_and_one_behind() -> None:
    for wanted in ([1, 2], [1, 2, 3, 4]):
        with pytest.raises(AssertionError):
            verify([1, 2], wanted)
