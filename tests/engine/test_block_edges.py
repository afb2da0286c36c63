"""Where a block of drafts meets an edge: the context's end, a drafter's own, one token over and over, an end token."""

import pytest

from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.generate import generate
from flashdraft.models.base import TargetModel
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.spec_decode.drafter import Drafter
from toys import ScriptedDrafter, toy_dflash, toy_target

CONTEXT = 96


@pytest.fixture(scope="module")
def target() -> TargetModel:
    return toy_target(max_position_embeddings=CONTEXT)


def by_engine(
    target: TargetModel, drafter: Drafter, prompt: list[int], params: SamplingParams, eos: list[int]
) -> tuple[list[int], list[float], str | None]:
    engine = Engine(target, drafter, EngineConfig(page_size=4), eos, block_size=8)
    engine.add_request("r", prompt, params)
    news = list(engine.run())
    engine.check_integrity()
    logprobs = [one.logprob for output in news for one in output.logprobs or []]
    return [token for output in news for token in output.token_ids], logprobs, news[-1].finish_reason


@pytest.mark.parametrize("left", [1, 2, 3, 5, 7, 8, 9, 15, 17])
def test_a_block_that_crosses_the_contexts_end_fills_it(target: TargetModel, left: int) -> None:
    prompt = [token * 7 % 90 for token in range(CONTEXT - left)]
    params = SamplingParams(temperature=0, max_tokens=9999, logprobs=0)
    alone = generate(target, None, prompt, params)
    drafter = ScriptedDrafter(prompt + alone.token_ids, lambda place: place % 5 == 4)
    for one in (drafter, DFlashDrafter(toy_dflash(target), target)):
        tokens, logprobs, reason = by_engine(target, one, prompt, params, [])
        assert (tokens, len(tokens), reason) == (alone.token_ids, left, "length")
        assert logprobs == pytest.approx([one.logprob for one in alone.logprobs or []], abs=1e-5)
        assert 0.0 not in logprobs


@pytest.mark.parametrize("prompt", [[5] * 48, [5, 6] * 20, [7] * 3])
def test_one_token_over_and_over_changes_nothing(target: TargetModel, prompt: list[int]) -> None:
    params = SamplingParams(temperature=0, max_tokens=40)
    alone = generate(target, None, prompt, params).token_ids
    drafter = DFlashDrafter(toy_dflash(target), target)
    assert by_engine(target, drafter, prompt, params, [])[0] == alone


def test_a_drafter_whose_own_context_is_shorter_drafts_on(target: TargetModel) -> None:
    short = DFlashDrafter(toy_dflash(target, max_position_embeddings=16), target)
    params = SamplingParams(temperature=0, max_tokens=60)
    prompt = list(range(30))
    assert by_engine(target, short, prompt, params, [])[0] == generate(target, None, prompt, params).token_ids


@pytest.mark.parametrize("place", range(8))
def test_nothing_comes_or_counts_behind_an_end_token_within_a_block(target: TargetModel, place: int) -> None:
    params = SamplingParams(temperature=0, max_tokens=40)
    prompt = [1, 2, 3]
    free = generate(target, None, prompt, params).token_ids
    end = free[place]
    engine = Engine(
        target,
        ScriptedDrafter(prompt + free, lambda _: False),
        EngineConfig(page_size=4),
        [end],
        block_size=8,
    )
    engine.add_request("r", prompt, params)
    news = list(engine.run())
    tokens = [token for output in news for token in output.token_ids]
    assert tokens == free[: free.index(end) + 1]
    assert news[-1].finish_reason == "stop"
    metrics = news[-1].metrics
    assert metrics.num_output_tokens == len(tokens)
    assert metrics.num_accepted <= len(tokens) - 1
