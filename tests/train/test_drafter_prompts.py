"""The prompts of the embedded drafter's recipe: their mixture, by seed, and what is held back from training."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flashdraft.data.on_policy import Document
from flashdraft.train.run import is_held_back
from scripts import scripts

SENTENCE = "The river number {} rises in the hills of the north and flows to the sea."


@pytest.fixture(scope="module")
def prompts() -> Iterator[Any]:
    """The recipe's module ``dflash2_prompts``."""
    with scripts("recipes/smollm2-135m", "dflash2_prompts") as (module,):
        yield module


def made(prompts: Any, folder: Path, seed: int, **others: float) -> list[Document]:
    for name, say in (
        ("math-gsm8k-train", "Of {} eggs 7 are sold. How many are left?"),
        ("code-nl2bash", "Show the {} largest files."),
        ("chat-book-passages", " ".join([SENTENCE] * 9)),
    ):
        rows = [json.dumps({"prompt": say.format(*range(i, i + 9))}) + "\n" for i in range(100)]
        (folder / f"{name}.jsonl").write_text("".join(rows))
    prompts.prepare(folder, folder / f"run-{seed}", 700, seed, **others)
    documents, closing = prompts.read_prepared(folder / f"run-{seed}")
    assert closing
    found: list[Document] = documents
    return found


def test_a_seed_makes_other_prompts_and_temperatures_and_holds_back_the_same(
    prompts: Any, tmp_path: Path
) -> None:
    first, again, other = (made(prompts, tmp_path, seed) for seed in (0, 0, 1))
    assert first == again
    ways = [
        {(doc.id, doc.temperature) for doc in some if not doc.source.startswith("begun")}
        for some in (first, other)
    ]
    assert ways[0] != ways[1]
    for documents in (first, other):
        held_back = {doc.id for doc in documents if is_held_back(doc) and not doc.source.startswith("begun")}
        asked = defaultdict(set)
        for doc in documents[: 2 * len(held_back)]:
            asked[doc.id].add(doc.temperature)
        assert asked.keys() == held_back  # first in the order, for answers may end before the prompts do
        assert all(temperatures == {0.0, 1.0} for temperatures in asked.values())


def test_kinds_and_temperatures_have_their_shares(prompts: Any, tmp_path: Path) -> None:
    assert sum(prompts.SHARES.values()) == pytest.approx(1.0)
    documents = [doc for doc in made(prompts, tmp_path, 3) if not is_held_back(doc)]
    kinds = Counter(
        "begun" if doc.source.startswith("begun") else doc.source.split("-")[0] for doc in documents
    )
    assert kinds["begun"] > kinds["math"] / 2
    heats = Counter(doc.temperature for doc in documents if not doc.source.startswith("begun"))
    first_turn = sum(heats.values())
    assert heats[0.0] / first_turn == pytest.approx(prompts.GREEDY, abs=0.15)
    assert {doc.temperature for doc in documents if doc.source.startswith("begun")} == {
        prompts.BEGUN_TEMPERATURE
    }
    fewer = made(prompts, tmp_path, 3, greedy=0.2)
    heats = Counter(d.temperature for d in fewer if not d.source.startswith("begun") and not is_held_back(d))
    assert heats[0.0] < first_turn * prompts.GREEDY * 0.7


def test_a_passage_is_asked_about_whole_and_in_part(prompts: Any) -> None:
    text = " ".join(SENTENCE.format(i) for i in range(30))
    rng = prompts.random.Random(0)
    passage = prompts.Prompt(
        "chat-book-passages/1", "chat-book-passages", ({"role": "user", "content": text},)
    )
    tasks = list(prompts.derived([passage] * 20, rng))
    assert Counter(one.id for one in tasks).keys() == {passage.id + "+" * n for n in range(1, 7)}
    assert Counter(one.source for one in tasks).keys() == {"chat-summaries", "chat-translation", "chat-texts"}
    whole, part = (
        [one.messages[0]["content"] for one in tasks if one.source == "chat-texts" and one.id.count("+") == n]
        for n in (3, 6)
    )
    assert all(SENTENCE.format(0) in content for content in whole)
    assert any(SENTENCE.format(0) not in content for content in part)
