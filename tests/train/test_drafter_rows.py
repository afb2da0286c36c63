"""The rows that the embedded drafter's recipe trains on: by temperature, conversations only where they are right."""

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import torch

from flashdraft.data.loader import PackedRows, pack
from flashdraft.data.on_policy import Document
from flashdraft.generate import generate
from flashdraft.models.base import FINAL_HIDDEN
from flashdraft.sampling_params import SamplingParams
from flashdraft.train.forward import target_features
from flashdraft.train.run import is_held_back
from scripts import scripts
from toys import toy_target

TARGET = toy_target().requires_grad_(False)
CHAT = [5, 90, 91, 6, 91, 5, 92]  # <|im_start|>system ... <|im_end|>, <|im_start|>user


@pytest.fixture(scope="module")
def data() -> Iterator[Any]:
    """The recipe's module ``dflash2_data``."""
    with scripts("recipes/smollm2-135m", "dflash2_data") as (module,):
        yield module


def answered(number: int, temperature: float, head: list[int]) -> list[Document]:
    rng = random.Random(number)
    documents = []
    for i in range(number):
        prompt = [*head, *(rng.randrange(10, 90) for _ in range(rng.randrange(3, 20)))]
        params = SamplingParams(temperature=temperature, seed=i, max_tokens=40)
        answer = generate(TARGET, None, prompt, params)
        name = f"{i}-{temperature}"
        documents.append(Document(name, "toy", temperature, prompt, answer.token_ids, "length"))
    return documents


def test_rows_say_which_places_are_sampled_answers(data: Any) -> None:
    groups = [[Document(f"{heat}-{i}", "toy", heat, [5 + int(heat)] * 9, [7] * 20, "stop") for i in range(40)]
              for heat in (0.0, 1.0)]  # fmt: skip
    rows, is_sampled = data.short_rows(groups, data.Sizes(2048, 0.0, 1, 1.0, 1), random.Random(0))
    assert rows.token_ids.shape == is_sampled.shape
    anchors = rows.is_anchor
    assert (rows.token_ids.gather(1, rows.doc_start.long())[anchors] == 5 + is_sampled[anchors].int()).all()
    assert {anchors[is_sampled].sum().item(), anchors[~is_sampled].sum().item()} == {40 * 19}


def test_a_conversation_keeps_the_anchors_whose_next_token_is_the_targets(data: Any) -> None:
    packed = pack(answered(3, 0.0, []), 128)
    rows = PackedRows(*(t.clone() for t in (packed.token_ids, packed.doc_start, packed.is_anchor)))
    assert len(rows) == 2
    place = int(rows.is_anchor[1].nonzero()[4])
    rows.token_ids[1, place + 1] = (rows.token_ids[1, place + 1] + 1) % 97
    before = rows.is_anchor.clone()
    data.keep_own(TARGET, rows, 3)  # one more than there are
    assert torch.equal(rows.is_anchor[0], before[0])
    assert torch.equal(rows.is_anchor[1, :place], before[1, :place])
    assert before[1, place]
    assert not rows.is_anchor[1, place]


def test_greedy_answers_in_a_conversation_are_trained_where_the_target_says_them_there(data: Any) -> None:
    """Sampled ones are kept whole, and so are those in packed rows, where they are in their own contexts."""
    documents = [*answered(40, 0.0, CHAT), *answered(40, 1.0, CHAT)]
    names = (name for name in map(str, count()) if is_held_back(replace(documents[0], id=name)))
    held_back = [replace(doc, id=next(names)) for doc in documents[::5]]
    made = data.rows_of([*documents, *held_back], data.Sizes(256, 0.5, 1, 1.0, 1), TARGET, 2)
    rows = made.rows
    assert made.validation.keys() == {"chat", "seen", "long"}
    assert made.sampled.keys() == {"chat"}
    assert rows.token_ids.shape == made.is_sampled.shape
    best = TARGET.logits(target_features(TARGET, rows, (FINAL_HIDDEN,))).argmax(-1)
    is_own = best[:, :-1] == rows.token_ids[:, 1:]
    greedy = (rows.is_anchor & ~made.is_sampled)[:, :-1]
    assert is_own[greedy].all()
    assert not is_own[(rows.is_anchor & made.is_sampled)[:, :-1]].all()
    # Before, all of them were anchors: 39 an answer, whichever row it is in.
    training = [doc for doc in data.without_loops(documents) if not is_held_back(doc)]
    every = {heat: sum(len(doc.answer_token_ids) - 1 for doc in training if doc.temperature == heat)
             for heat in (0.0, 1.0)}  # fmt: skip
    assert 0 < int(greedy.sum()) < every[0.0]
    assert every[1.0] * 0.8 < int((rows.is_anchor & made.is_sampled).sum())
