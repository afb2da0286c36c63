"""The embedded drafter's recipe: prompts made of others, and those that the target begins itself."""

import random
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from flashdraft.data.answerer import AnswerRequest, PromptAnswer
from flashdraft.data.on_policy import Document
from flashdraft.data.prompts import Prompt
from flashdraft.train.run import is_held_back
from scripts import scripts

CLOSING = [2, 198]
MBPP = """Write a function to add two numbers.
Your code should pass these tests:
```python
assert add(1, 2) == 3
assert add(-1, 1)==0
```"""


@pytest.fixture(scope="module")
def recipe() -> Iterator[Any]:
    """The modules ``dflash2_variants`` and ``dflash2_answers``."""
    with scripts("recipes/smollm2-135m", "dflash2_variants", "dflash2_answers") as (variants, answers):
        yield variants, answers


class Scripted:
    """Answers of two requests at a time, each what ``says`` holds for its prompt's first token."""

    def __init__(self, says: dict[int, tuple[list[int], str]]) -> None:
        self.says, self.asked = says, list[AnswerRequest]()

    def run(self, requests: Iterable[AnswerRequest]) -> Iterator[list[PromptAnswer]]:
        waiting = iter(requests)
        while some := list(islice(waiting, 2)):
            self.asked += some
            yield [PromptAnswer(one.key, *self.says[one.token_ids[0]]) for one in some]


def test_a_number_is_replaced_by_the_same_one_wherever_it_stands(recipe: Any) -> None:
    changed = recipe[0].changed_numbers("12 of 40 eggs, 12 of 7; \\frac{1}{40}; x2 is 0.5", random.Random(1))
    first, second, third = (changed.split()[i].strip(",;") for i in (0, 2, 6))
    assert changed == f"{first} of {second} eggs, {first} of {third}; \\frac{{1}}{{{second}}}; x2 is 0.5"
    assert (first, second) != ("12", "40")
    assert 6 <= int(first) <= 25
    assert 20 <= int(second) <= 81


def test_variants_are_held_back_where_their_prompt_is(recipe: Any) -> None:
    prompts = [
        Prompt(f"math-gsm8k-train/{i}", "math-gsm8k-train", ({"role": "user", "content": f"{i + 5} + 7?"},))
        for i in range(200)
    ]
    made = list(recipe[0].variants(prompts, random.Random(0)))
    held_back = {one.id for one in prompts if is_held_back(Document(one.id, "", 0.0, [], [], ""))}
    assert 0 < len(held_back) < 200
    assert len({one.id for one in made}) == len(made)
    for one in made:
        assert one.messages[0]["content"].endswith("?\n" + recipe[0].BOXED)
        assert is_held_back(Document(one.id, "", 0.0, [], [], "")) == (one.id.rstrip("+") in held_back)


def test_an_mbpp_task_is_asked_by_its_words_and_as_a_function(recipe: Any) -> None:
    prompt = Prompt("code-mbpp-train/1", "code-mbpp-train", ({"role": "user", "content": MBPP},))
    words, function = (one.messages[0]["content"] for one in recipe[0].variants([prompt], random.Random(0)))
    assert words == "Write a function to add two numbers."
    assert "def add(" in function
    assert ">>> add(1, 2)\n    3\n    >>> add(-1, 1)\n    0\n" in function


def test_what_the_target_asks_itself_is_answered(recipe: Any, tmp_path: Path) -> None:
    asked = [
        Document("begun-chat-1", "begun-chat", 0.8, [5, 1], [], ""),
        Document("begun-chat-2", "begun-chat", 0.8, [6], [], ""),
        Document("math-1", "math", 0.0, [7], [], ""),
    ]
    question = list(range(20, 30))
    answerer = Scripted({5: ([*question, 2], "stop"), 6: ([9] * 50, "length"), 7: ([8, 2], "stop")})
    made = recipe[1].Rollout(answerer, AnswerRequest, 60.0, 64).run(asked, CLOSING)
    prompts = [one.token_ids for one in answerer.asked]
    assert sorted(prompts) == [[5, 1], [5, 1, *question, *CLOSING], [6], [7]]
    assert sorted((one.id, one.answer_token_ids) for one in made) == [
        ("begun-chat-1", [*question, 2]),
        ("math-1", [8, 2]),
    ]
    for greedy, heat in ((0.0, 1.0), (1.0, 0.0)):
        again = recipe[1].Rollout(answerer, AnswerRequest, 60.0, 64, greedy).run(asked, CLOSING)
        assert {one.temperature for one in again if one.source == "begun-chat"} == {heat}
    recipe[1].save_answers(made, tmp_path)
    assert recipe[1].saved_answers(tmp_path) == made
