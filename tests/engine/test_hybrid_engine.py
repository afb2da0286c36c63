"""The engine on a target with states: every request gets the tokens that generate.py gives it alone."""

import random

import pytest

from engine.test_engine import SMALL_VOCAB, Case, check_alone, mixed_cases, run_arriving_at_random
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.generate import generate
from flashdraft.models.base import TargetModel
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.build import trained_drafter
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.spec_decode.drafter import Drafter
from flashdraft.spec_decode.ngram import NgramDrafter
from toys import toy_dflash, toy_hybrid, toy_mtp


def drafter_for(kind: str, target: TargetModel) -> Drafter | None:
    kinds = {
        "dflash": lambda: DFlashDrafter(toy_dflash(target), target),
        "mtp": lambda: trained_drafter(toy_mtp(target), target),
        "ngram": lambda: NgramDrafter(8),
        "none": lambda: None,
    }
    drafter: Drafter | None = kinds[kind]()
    return drafter


@pytest.mark.parametrize(
    ("kind", "prefix_caching", "draft_tree"),
    [
        ("dflash", True, None),
        ("dflash", True, 24),
        ("none", False, None),
        ("mtp", True, None),
        ("ngram", True, None),
    ],
)
def test_mixed_requests_with_preemptions_and_aborts_equal_the_oracle(
    kind: str, prefix_caching: bool, draft_tree: int | None
) -> None:
    rng = random.Random(7)
    target = toy_hybrid(vocab_size=SMALL_VOCAB)
    drafter = drafter_for(kind, target)
    config = EngineConfig(
        max_running=10,
        max_step_tokens=96,
        page_size=4,
        num_pages=60,
        prefix_caching=prefix_caching,
        num_checkpoints=9,
        checkpoint_pages=2,
    )
    engine = Engine(target, drafter, config, eos_token_ids=[2], draft_tree=draft_tree)
    cases = mixed_cases(45 if kind == "dflash" else 25, rng)
    if drafter is None:
        cases = [Case(case.prompt, case.params, 1, case.priority) for case in cases]
    tokens, aborted = run_arriving_at_random(engine, cases, rng, abort_share=0.04)
    stats = engine.stats()
    assert stats.num_preemptions >= 3, "the pool is meant to be too small"
    assert (stats.num_cached_tokens > 100) == prefix_caching
    assert aborted
    if drafter:
        assert stats.metrics.num_accepted > 10, "drafts are meant to be right now and then"
        assert (len(stats.metrics.verified_histogram) > 1 + drafter.max_block_size) == bool(draft_tree)
    check_alone(target, cases, tokens, aborted)


def test_the_drafts_do_not_depend_on_the_batch() -> None:
    target = toy_hybrid(vocab_size=SMALL_VOCAB)
    drafter = DFlashDrafter(toy_dflash(target), target)
    engine = Engine(target, drafter, EngineConfig(page_size=4, max_running=16))
    cases = [case for case in mixed_cases(12, random.Random(1), more=()) if case.block_size != 1]
    for idx, case in enumerate(cases):
        engine.add_request(str(idx), case.prompt, case.params, case.block_size)
    metrics = {int(out.request_id): out.metrics for out in engine.run()}
    for idx, case in enumerate(cases):
        alone = generate(target, drafter, case.prompt, case.params, int(case.block_size)).metrics
        assert metrics[idx].accepted_histogram == alone.accepted_histogram


def test_a_prefix_is_found_up_to_the_last_kept_state() -> None:
    target = toy_hybrid(vocab_size=SMALL_VOCAB)
    drafter = DFlashDrafter(toy_dflash(target), target)
    config = EngineConfig(page_size=4, max_running=2, num_checkpoints=16, checkpoint_pages=4)
    engine = Engine(target, drafter, config, block_size=8)
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    prompt = [i * i % SMALL_VOCAB for i in range(50)]

    def answer(token_ids: list[int]) -> tuple[list[int], int]:
        engine.add_request("r", token_ids, params)
        outputs = list(engine.run())
        engine.check_integrity()
        return [token for out in outputs for token in out.token_ids], outputs[-1].num_cached_tokens

    first, cached = answer(prompt)
    assert cached == 0
    assert answer(prompt) == (first, 48), "12 whole pages: the prompt's last border"
    # Where prompts part no state was kept; it is when the first of them comes by, and the next one finds it.
    for other, found in (([*prompt[:40], *reversed(prompt)], 0), ([*prompt[:40], 1, 2, 3], 40)):
        tokens, cached = answer(other)
        assert cached == found
        assert tokens == generate(target, None, other, params).token_ids
    # The next turn of a conversation finds the state that was kept while the answer was decoded, mid-block.
    turn = [*prompt, *first, 3, 1, 4]
    tokens, cached = answer(turn)
    assert cached == 80, "of 89 computed tokens, five times 4 pages"
    assert tokens == generate(target, None, turn, params).token_ids


def test_a_full_store_forgets_the_oldest_state() -> None:
    target = toy_hybrid(vocab_size=SMALL_VOCAB)
    config = EngineConfig(page_size=4, max_running=2, num_checkpoints=2, checkpoint_pages=100)
    engine = Engine(target, None, config)
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    prompts = [[(i * j + j) % SMALL_VOCAB for i in range(30)] for j in range(1, 5)]
    cached = []
    for prompt in [*prompts, *prompts[::-1]]:
        engine.add_request("r", prompt, params)
        outputs = list(engine.run())
        tokens = [token for out in outputs for token in out.token_ids]
        assert tokens == generate(target, None, prompt, params).token_ids
        cached.append(outputs[-1].num_cached_tokens)
        engine.check_integrity()
    assert cached[:4] == [0, 0, 0, 0]
    assert cached[4] == 28, "the latest prompt's state is there"
    assert cached[-1] == 0, "the first prompt's is not, though its pages are"
