"""Conversations of the embedded drafter's recipe whose later answers were given behind all that was said."""

import random
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from flashdraft.data.on_policy import Document
from flashdraft.generate import generate
from flashdraft.sampling_params import SamplingParams
from scripts import scripts
from toys import toy_target

TARGET = toy_target().requires_grad_(False)
SYSTEM, USER = [5, 90, 91, 6, 91], [5, 92]  # <|im_start|>system ... <|im_end|>, <|im_start|>user
SEQ_LEN, LONGEST = 192, 16


@pytest.fixture(scope="module")
def recipe() -> Iterator[Any]:
    """The recipe's modules ``dflash2_conversations`` and ``dflash2_data``."""
    with scripts("recipes/smollm2-135m", "dflash2_conversations", "dflash2_data") as modules:
        yield modules


def documents(count: int, head: list[int]) -> list[Document]:
    rng = random.Random(0)
    prompts = [[*head, *USER, *(rng.randrange(10, 90) for _ in range(6))] for _ in range(count)]
    return [Document(f"{i}", "toy", 0.0, prompt, [7, 8, 9], "stop") for i, prompt in enumerate(prompts)]


@pytest.fixture(scope="module")
def made(recipe: Any) -> list[Any]:
    """Conversations with the toy target, four rows at a time, greedy ones and sampled ones."""
    every = [
        *documents(40, SYSTEM),
        *documents(5, [5, 88, 88, 88, 6]),
    ]  # the last ones have another system prompt
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe[0], "eos_token_ids", lambda _: (3,))
        answerer = recipe[0].conversing(TARGET, 4, SEQ_LEN, LONGEST)
    making = recipe[0].Conversations(answerer, every, every, SEQ_LEN)
    assert all(one.prompt_token_ids[:5] == SYSTEM for one in [*making.documents, *making.asked])
    assert 0 < len(making.documents) <= 40
    ticks = count()
    with (
        pytest.MonkeyPatch.context() as patch
    ):  # a clock of requests: how many there are does not depend on the machine
        patch.setattr(recipe[0], "FEWEST", 4)
        patch.setattr(recipe[0], "time", SimpleNamespace(monotonic=lambda: next(ticks)))
        found: list[Any] = making.run(60)
    assert {one.temperature for one in found} == {0.0, 1.0}
    return found


def test_every_answer_is_the_targets_behind_all_that_was_said(made: list[Any]) -> None:
    for one in [one for one in made if one.temperature == 0][:3]:
        starts = [i for i in range(1, len(one.is_anchor)) if one.is_anchor[i] and not one.is_anchor[i - 1]]
        assert len(starts) > 1
        assert starts[0] >= 0.3 * SEQ_LEN
        for start in starts:
            end = start + one.is_anchor[start:].index(False) + 1  # the answer's last token is no anchor
            params = SamplingParams(temperature=0.0, max_tokens=end - start, ignore_eos=True)
            assert generate(TARGET, None, one.token_ids[:start], params).token_ids == one.token_ids[start:end]


def test_rows_are_kept_and_join_the_others(recipe: Any, made: list[Any], tmp_path: Path) -> None:
    conversations, data = recipe
    conversations.save_conversations(made, SEQ_LEN, tmp_path)
    rows, is_sampled = conversations.saved_conversations(tmp_path, SEQ_LEN)
    assert is_sampled.tolist() == [one.temperature > 0 for one in made]
    for row, one in enumerate(made):
        length = len(one.token_ids)
        assert length <= SEQ_LEN
        assert rows.token_ids[row, :length].tolist() == one.token_ids
        assert rows.is_anchor[row].tolist() == one.is_anchor + [False] * (SEQ_LEN - length)
        assert rows.doc_start[row].tolist() == [0] * length + [length] * (SEQ_LEN - length)
    first, flags = rows.rows(slice(0, 2)), torch.zeros(2, SEQ_LEN, dtype=torch.bool)
    joined = data.Data(first, flags, {}, {}).with_more(rows, is_sampled, 2)
    assert len(joined.rows) == len(joined.is_sampled) == 2 + 2 * len(made)
    assert torch.equal(joined.rows.token_ids[2 + len(made) :], rows.token_ids)
    assert torch.equal(joined.is_sampled[2 + len(made) :].any(1), is_sampled)
    assert not joined.is_sampled[:2].any()


def test_rows_of_another_length_are_refused_and_none_are_none(recipe: Any, tmp_path: Path) -> None:
    rows, is_sampled = recipe[0].saved_conversations(tmp_path, 64)
    assert (len(rows), len(is_sampled)) == (0, 0)
    np.savez(tmp_path / "conversations.npz", token_ids=np.zeros((2, 64), dtype=np.uint16))
    with pytest.raises(ValueError, match="rows of 64 tokens; expected 128: make them with --seq-len 128"):
        recipe[0].saved_conversations(tmp_path, 128)
