"""Text out of tokens: whole characters, nothing shown that a stop text may still take back."""

from collections.abc import Sequence

import pytest

from flashdraft.server.answer_text import AnswerText
from tiny_pair import byte_tokenizer

TOKENIZER = byte_tokenizer()


def steps(text: str, stop_texts: Sequence[str]) -> tuple[list[str], AnswerText]:
    """What is shown after each token (a byte) and after the end."""
    answer = AnswerText(TOKENIZER, stop_texts)
    shown = ["".join(p.text for p in answer.push(token, "plain")) for token in TOKENIZER.encode(text)]
    return [*shown, "".join(p.text for p in answer.flush())], answer


@pytest.mark.parametrize(
    ("text", "stop_texts", "shown"),
    [
        ("abc", [], ["a", "b", "c", ""]),
        ("é", [], ["", "é", ""]),
        ("abXc", ["XY"], ["a", "b", "", "Xc", ""]),  # held while it might have been the stop
        ("aXX", ["XXX"], ["a", "", "", "XX"]),  # never came: the end gives it back
        ("aXXYb", ["XY"], ["a", "", "X", "", "", ""]),
        ("abXYc", ["XY", "bX"], ["a", "", "", "", "", ""]),  # bX is complete first
        ("ééz", ["éz"], ["", "", "", "é", "", ""]),
    ],
)
def test_what_is_shown_when(text: str, stop_texts: Sequence[str], shown: list[str]) -> None:
    assert steps(text, stop_texts)[0] == shown


def test_tokens_count_up_to_the_one_that_completed_the_stop() -> None:
    _, answer = steps("abXYcd", ["XY"])
    assert (answer.is_stopped, answer.num_tokens) == (True, 4)


def test_an_unfinished_character_is_given_at_the_end() -> None:
    answer = AnswerText(TOKENIZER, ["!"])
    assert "".join(p.text for p in answer.push(TOKENIZER.encode("é")[0], "bonus")) == ""
    assert "".join(p.text for p in answer.flush()) == "\ufffd"
