"""A target whose logits are no numbers ends the request that it answers, with an error, and no other one."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nan

from flashdraft.answer import NO_TOKEN
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.errors import UsageError
from flashdraft.generate import generate
from flashdraft.models.base import TargetModel
from flashdraft.native.target import NativeTarget
from flashdraft.ops.greedy import greedy_tokens
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.spec_decode.drafter import Drafter
from native_pair import SHAPE, make
from toys import ScriptedDrafter, toy_dflash, toy_target

PARAMS = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
PROMPT, OTHER = [5, 3, 8], [2, 9]
TARGETS = {
    "pytorch": lambda: toy_target(**SHAPE, tie_word_embeddings=False),
    "native": lambda: make(tie_word_embeddings=False)[0],
}


def spoil(target: TargetModel, token: int) -> None:
    """Whoever has read ``token`` says nothing that is a number from then on."""
    model = target.model if isinstance(target, NativeTarget) else target
    model.model.embed_tokens.weight.data[token] = nan


def run(engine: Engine, prompts: dict[str, list[int]]) -> dict[str, tuple[list[int], str | None]]:
    """Tokens and error of each."""
    found: dict[str, tuple[list[int], str | None]] = {name: ([], None) for name in prompts}
    for name, prompt in prompts.items():
        engine.add_request(name, prompt, PARAMS)
    for output in engine.run():
        found[output.request_id] = found[output.request_id][0] + output.token_ids, output.error
    engine.check_integrity()
    return found


def drafters(target: TargetModel, answer: list[int]) -> dict[str, tuple[Drafter | None, int, int | None]]:
    """With the block's size and the tree's."""
    knows = ScriptedDrafter(answer, lambda _: False)
    dflash = DFlashDrafter(toy_dflash(target).to(target.dtype), target)
    return {
        "plain": (None, 1, None),
        "accepted blocks": (knows, 8, None),
        "blocks": (dflash, 8, None),
        "trees": (dflash, 8, 12),
    }


@pytest.mark.parametrize("kind", ["plain", "accepted blocks", "blocks", "trees"])
@pytest.mark.parametrize("make_target", TARGETS.values(), ids=TARGETS)
def test_an_answer_ends_where_logits_are_no_numbers(
    make_target: Callable[[], TargetModel], kind: str
) -> None:
    target = make_target()
    whole = generate(target, None, PROMPT, PARAMS).token_ids
    beside = generate(target, None, OTHER, PARAMS).token_ids
    at = next(
        at for at, one in enumerate(whole) if at > 3 and one not in (*whole[:at], *PROMPT, *OTHER, *beside)
    )
    drafter, block, tree = drafters(target, PROMPT + whole)[kind]
    config = EngineConfig(page_size=4, num_pages=80)
    engine = Engine(target, drafter, config, block_size=block, draft_tree=tree)
    spoil(target, whole[at])
    asked = {"bad": PROMPT} if kind == "accepted blocks" else {"bad": PROMPT, "good": OTHER}
    found = run(engine, asked)
    tokens, error = found["bad"]
    assert error == NO_TOKEN
    assert tokens == whole[: len(tokens)]
    # What is told with the round that found none is lost with it.
    assert at + 1 - block < len(tokens) <= at + 1
    if "good" in found:
        assert found["good"] == (beside, None)


@pytest.mark.parametrize("make_target", TARGETS.values(), ids=TARGETS)
def test_a_prompt_whose_logits_are_no_numbers_has_no_answer(make_target: Callable[[], TargetModel]) -> None:
    target = make_target()
    beside = generate(target, None, OTHER, PARAMS).token_ids
    bad = next(token for token in range(90) if token not in (*OTHER, *beside))
    spoil(target, bad)
    found = run(Engine(target), {"bad": [bad, 1], "good": OTHER})
    assert found == {"bad": ([], NO_TOKEN), "good": (beside, None)}
    with pytest.raises(UsageError, match="no number"):
        generate(target, None, [bad, 1], replace(PARAMS))


def test_only_the_chosen_logit_decides() -> None:
    logits = torch.randn(2, 3, 40)
    logits[0, 1, 4] = float("-inf")
    assert torch.equal(greedy_tokens(logits), logits.argmax(-1))
    logits[1, 0, 7], logits[1, 1], logits[1, 2, 3] = nan, float("-inf"), float("inf")
    assert greedy_tokens(logits)[1].tolist() == [-1, -1, -1]
    assert greedy_tokens(torch.tensor([[1.0, 2.0, 2.0]])).tolist() == [1]
