"""The engine against generate.py: whatever shares the batch, every request gets the tokens it gets alone."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from flashdraft.admission import BlockSize
from flashdraft.batch import ForwardBatch
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.errors import UsageError
from flashdraft.generate import generate
from flashdraft.models.base import TargetModel
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.spec_decode.drafter import Drafter, DraftShape
from flashdraft.spec_decode.ngram import NgramDrafter
from toys import Alone, toy_dflash, toy_target

SMALL_VOCAB = 11  # random drafts are right now and then


def pair() -> tuple[TargetModel, DFlashDrafter]:
    target = toy_target(vocab_size=SMALL_VOCAB)
    return target, DFlashDrafter(toy_dflash(target), target)


def test_a_prompt_answered_by_one_token_can_be_found_whole() -> None:
    target, drafter = pair()
    engine = Engine(target, drafter, EngineConfig(page_size=4, max_step_tokens=16))
    for name in ("first", "second"):
        engine.add_request(name, list(range(10)) * 5, SamplingParams(temperature=0.0, max_tokens=1))
        outputs = list(engine.run())
    assert outputs[-1].num_cached_tokens == 48


def test_a_sliding_drafter_drafts_in_a_batch_what_it_drafts_alone() -> None:
    target = toy_target(vocab_size=SMALL_VOCAB)
    network = toy_dflash(target, layer_types=("sliding_attention", "full_attention"), sliding_window=6)
    drafter = DFlashDrafter(network, target)
    engine = Engine(target, drafter, EngineConfig(page_size=4))
    prompts = [[i, *range(3 * i), 5] for i in range(1, 4)]
    params = SamplingParams(temperature=0.0, max_tokens=30)
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, params, 8)
    last = {out.request_id: out for out in engine.run()}
    for i, prompt in enumerate(prompts):
        alone = generate(target, drafter, prompt, params)
        assert last[str(i)].metrics.accepted_histogram == alone.metrics.accepted_histogram


@dataclass
class Case:
    prompt: list[int]
    params: SamplingParams
    block_size: BlockSize
    priority: int = 0


def mixed_cases(
    count: int, rng: random.Random, max_block: int = 8, more: Sequence[BlockSize] = ("auto",)
) -> list[Case]:
    prefixes = [[rng.randrange(SMALL_VOCAB) for _ in range(rng.choice([9, 24, 33]))] for _ in range(4)]
    cases = []
    for _ in range(count):
        shared = rng.choice([[], *prefixes])
        prompt = shared + [rng.randrange(SMALL_VOCAB) for _ in range(rng.randrange(1, 30))]
        params = SamplingParams(
            temperature=0.0, max_tokens=rng.randrange(1, 40), ignore_eos=rng.random() < 0.5
        )
        cases.append(Case(prompt, params, rng.choice([1, 2, 5, max_block, *more]), rng.randrange(2)))
    return cases


def check_alone(target: TargetModel, cases: list[Case], said: dict[int, list[int]], cut: set[int]) -> None:
    """Assert that each answer is plain decoding's alone; of one that was cut, the part that was said."""
    for idx, case in enumerate(cases):
        alone = generate(target, None, case.prompt, case.params, eos_token_ids=[2]).token_ids
        assert said[idx] == (alone[: len(said[idx])] if idx in cut else alone), f"request {idx}"


def run_arriving_at_random(
    engine: Engine, cases: list[Case], rng: random.Random, abort_share: float = 0.0
) -> tuple[dict[int, list[int]], set[int]]:
    """Tokens by case, and which were aborted. Integrity is checked at every step."""
    tokens: dict[int, list[int]] = {idx: [] for idx in range(len(cases))}
    aborted: set[int] = set()
    ended: set[int] = set()
    arriving = list(range(len(cases)))
    while arriving or engine.has_unfinished:
        for _ in range(min(rng.choice([0, 0, 1, 4, 9]), len(arriving))):
            idx = arriving.pop(0)
            case = cases[idx]
            engine.add_request(str(idx), case.prompt, case.params, case.block_size, case.priority)
        if engine.requests and rng.random() < abort_share:
            victim = rng.choice(list(engine.requests))
            assert engine.abort(victim)
            aborted.add(int(victim))
        for output in engine.step():
            idx = int(output.request_id)
            assert idx not in ended, "news after the end"
            tokens[idx] += output.token_ids
            if output.finished:
                ended.add(idx)
                assert (output.finish_reason == "abort") == (idx in aborted)
                assert output.metrics.num_output_tokens == len(tokens[idx])
        engine.check_integrity()
    assert ended == set(tokens)
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_pages
    return tokens, aborted


@pytest.mark.slow
@pytest.mark.parametrize("prefix_caching", [True, False])
def test_200_mixed_requests_with_preemptions_and_aborts_equal_the_oracle(prefix_caching: bool) -> None:
    rng = random.Random(7)
    target, drafter = pair()
    config = EngineConfig(
        max_running=12, max_step_tokens=96, page_size=4, num_pages=70, prefix_caching=prefix_caching
    )
    engine = Engine(target, drafter, config, eos_token_ids=[2])
    cases = mixed_cases(200, rng)
    tokens, aborted = run_arriving_at_random(engine, cases, rng, abort_share=0.04)
    stats = engine.stats()
    assert stats.num_preemptions >= 10, "the pool is meant to be too small"
    assert (stats.num_cached_tokens > 500) == prefix_caching
    assert len(aborted) >= 5
    assert stats.metrics.num_accepted > 100, "drafts are meant to be right now and then"
    check_alone(target, cases, tokens, aborted)


def test_what_was_preempted_is_computed_again_in_chunks_that_end_within_its_answer() -> None:
    target, _ = pair()
    config = EngineConfig(max_running=2, max_step_tokens=8, page_size=4, num_pages=14, prefix_caching=False)
    engine = Engine(target, None, config)
    params = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)
    prompts = [[1, 2, 3, 4, 5, 6, 7, 8, first] for first in (3, 9)]
    for idx, prompt in enumerate(prompts):
        engine.add_request(str(idx), prompt, params)
    tokens: dict[str, list[int]] = {"0": [], "1": []}
    for output in engine.run():
        tokens[output.request_id] += output.token_ids
    assert engine.stats().num_preemptions > 0
    alone = [generate(target, None, prompt, params).token_ids for prompt in prompts]
    assert list(tokens.values()) == alone


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ngram", "none"])
def test_other_drafters_equal_the_oracle(kind: str) -> None:
    rng = random.Random(3)
    target, _ = pair()
    drafter: Drafter | None = NgramDrafter(8) if kind == "ngram" else None
    config = EngineConfig(max_running=6, max_step_tokens=64, page_size=4, num_pages=50)
    engine = Engine(target, drafter, config)
    cases = mixed_cases(40, rng, 8)
    if drafter is None:
        cases = [Case(case.prompt, case.params, 1) for case in cases]
    tokens, _ = run_arriving_at_random(engine, cases, rng)
    for idx, case in enumerate(cases):
        assert tokens[idx] == generate(target, None, case.prompt, case.params).token_ids
    if drafter:
        assert engine.metrics.acceptance_length > 1.1


@pytest.mark.slow
def test_the_drafts_themselves_do_not_depend_on_the_batch() -> None:
    """Block 3 beside block 8 drafts what it drafts alone: accepted and drafted counts equal generate.py's."""
    rng = random.Random(1)
    target, drafter = pair()
    engine = Engine(target, drafter, EngineConfig(page_size=4, max_running=16))
    cases = [case for case in mixed_cases(12, rng, more=()) if case.block_size != 1]
    for idx, case in enumerate(cases):
        engine.add_request(str(idx), case.prompt, case.params, case.block_size)
    metrics = {int(out.request_id): out.metrics for out in engine.run()}
    for idx, case in enumerate(cases):
        alone = generate(target, drafter, case.prompt, case.params, int(case.block_size)).metrics
        assert metrics[idx].accepted_histogram == alone.accepted_histogram
        assert (metrics[idx].num_rounds, metrics[idx].num_drafted) == (alone.num_rounds, alone.num_drafted)


def test_a_prefix_hit_reuses_both_caches_and_drafts_the_same() -> None:
    target, drafter = pair()
    engine = Engine(target, drafter, EngineConfig(page_size=4), block_size=8)
    prompt = [i * i % SMALL_VOCAB for i in range(50)]
    params = SamplingParams(temperature=0.0, max_tokens=20)
    runs = []
    for name in ("first", "second"):
        engine.add_request(name, prompt, params)
        outputs = list(engine.run())
        runs.append(([t for o in outputs for t in o.token_ids], outputs[-1].metrics.accepted_histogram))
        cached = outputs[-1].num_cached_tokens
    assert runs[0] == runs[1]
    assert cached == 48, "12 whole pages; the last prompt token has to run"


def test_drafting_can_come_back_after_plain_decoding() -> None:
    """A draft cache that catches up in one projection equals one that was kept at every step."""
    target, drafter = pair()
    engine = Engine(target, drafter, EngineConfig(page_size=16))
    params = SamplingParams(temperature=0.0, max_tokens=40)
    engine.add_request("r", [1, 2, 3], params, block_size=1)
    tokens: list[int] = []
    for _ in range(10):
        tokens += [token for out in engine.step() for token in out.token_ids]
    request = engine.requests["r"]
    assert request.num_observed < request.num_committed, "features wait"
    request.block_size = 8
    for out in engine.step():
        tokens += out.token_ids
    state = Alone(drafter, 64)
    with torch.inference_mode():
        known = [1, 2, 3, *tokens[:9]]
        forward = target.forward(
            ForwardBatch.of_row(known, 0), target.new_cache(1, 64), drafter.feature_layers
        )
        state.observe(known, forward.features)
        expected = state.chain(tokens[9], 7)
        engine.runner.catch_up([request])
        # The same place, asked again: the committed part of the draft cache is what matters.
        request.num_observed = len(known)
        [draft] = engine.runner.drafter.propose([request.draft_row], [tokens[9]], [DraftShape(7)])  # type: ignore[union-attr]
        positions = torch.arange(12, 20).unsqueeze(0)
        hidden = drafter.hidden(drafter.blocks([tokens[9]], 8), positions, 20, state.context(8))
        by_slot = target.logits(hidden)[0].log_softmax(-1)
    assert draft.token_ids == expected
    assert draft.log_probs == pytest.approx(by_slot.max(-1).values.tolist(), abs=1e-5)


def test_who_comes_first_and_priorities() -> None:
    target, _ = pair()
    engine = Engine(target, None, EngineConfig(max_running=1))
    params = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
    for name, priority in (("a", 1), ("b", 1), ("urgent", 0)):
        engine.add_request(name, [1], params, priority=priority)
    ended = [out.request_id for out in engine.run() if out.finished]
    assert ended == ["urgent", "a", "b"]


def test_a_later_priority_that_runs_makes_room_and_loses_no_token() -> None:
    target, drafter = pair()
    engine = Engine(target, drafter, EngineConfig(max_running=2, page_size=4))
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    for name, priority in (("a", 1), ("b", 1)):
        engine.add_request(name, [ord(name) % 11] * 9, params, priority=priority)
    outputs = engine.step() + engine.step()
    engine.add_request("urgent", [3], SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True))
    for out in engine.run():
        outputs.append(out)
        engine.check_integrity()
    assert [out.request_id for out in outputs if out.finished] == ["urgent", "a", "b"]
    assert engine.scheduler.num_preemptions == 1
    for name in "ab":
        tokens = [token for out in outputs if out.request_id == name for token in out.token_ids]
        assert tokens == generate(target, None, [ord(name) % 11] * 9, params).token_ids


def test_prefill_goes_on_where_blocks_would_take_the_whole_budget() -> None:
    target, drafter = pair()
    engine = Engine(target, drafter, EngineConfig(max_step_tokens=16, page_size=4))
    params = SamplingParams(temperature=0.0, max_tokens=400, ignore_eos=True)
    for name in "ab":
        engine.add_request(name, [1, 2], params)
    engine.step()
    engine.add_request("c", [3] * 40, SamplingParams(temperature=0.0, max_tokens=1))
    heard = [out.request_id for _ in range(10) for out in engine.step()]
    assert heard.count("a") == heard.count("b") == 10
    assert heard.count("c") == 1
    engine.check_integrity()


def test_what_cannot_be_served_is_refused_at_once() -> None:
    target, drafter = pair()
    engine = Engine(target, drafter, EngineConfig(page_size=4, num_pages=5))
    params = SamplingParams(max_tokens=4)
    for prompt, given, size, words in (
        ([], params, None, "empty"),
        ([1], params, 9, "block_size is 9"),
        ([1] * 30, params, None, "the cache holds 20"),
        ([1], SamplingParams(n=2), None, "split"),
        ([1], SamplingParams(stop="x"), None, "no tokenizer"),
        ([1], SamplingParams(logit_bias={99: 1.0}), None, "token id 99"),
    ):
        with pytest.raises(UsageError, match=words):
            engine.add_request("r", prompt, given, size)
    engine.add_request("r", [1], params)
    with pytest.raises(UsageError, match="taken"):
        engine.add_request("r", [1], params)
    assert not engine.abort("nobody")
    with pytest.raises(UsageError, match="max_running is 0"):
        EngineConfig(max_running=0)


@pytest.mark.slow
def test_many_requests_leave_nothing_behind() -> None:
    target, drafter = pair()
    engine = Engine(target, drafter, EngineConfig(page_size=4, num_pages=40, max_running=8))
    rng = random.Random(5)
    cases = [Case([rng.randrange(SMALL_VOCAB)], SamplingParams(max_tokens=2), 2) for _ in range(300)]
    run_arriving_at_random(engine, cases, rng)
    pool = engine.scheduler.pool
    assert not engine.requests
    assert not engine.scheduler.waiting
    assert len(pool._hash_of) <= pool.num_pages


def test_a_short_prompt_does_not_wait_for_a_long_one():
    """Half of a step's tokens are for the first come; a short prompt that comes later ends first."""
    target = toy_target()
    engine = Engine(target, None, EngineConfig(max_step_tokens=16, page_size=4, num_pages=200))
    params = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
    engine.add_request("long", [5] * 300, params)
    engine.step()
    engine.add_request("short", [7] * 6, params)
    ended = []
    while engine.has_unfinished:
        ended += [output.request_id for output in engine.step() if output.finished]
    assert ended == ["short", "long"]


def test_nothing_of_a_steps_tokens_is_left_over():
    """A long prompt takes what nobody else does, also where another cannot be admitted."""
    target = toy_target()
    engine = Engine(target, None, EngineConfig(max_step_tokens=16, page_size=4, num_pages=200, max_running=1))
    params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    for name in ("first", "second"):
        engine.add_request(name, [5] * 64, params)
    steps = 0
    while "first" in engine.requests:
        engine.step()
        steps += 1
    assert steps == 4


def test_prompts_that_wait_are_looked_up_when_they_come_and_when_they_start() -> None:
    """One starts a step; 20 wait, and none of them is looked for in the pages at every step."""
    target = toy_target()
    config = EngineConfig(max_running=24, max_prompt_tokens=8, page_size=4, num_pages=400)
    engine, prompt, looked_up = Engine(target, None, config), [i % 90 for i in range(41)], []
    params = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)
    engine.add_request("first", prompt, params)
    list(engine.run())
    find = engine.scheduler.pool.find_prefix
    engine.scheduler.pool.find_prefix = lambda hashes: looked_up.append(0) or find(hashes)  # type: ignore
    for idx in range(20):
        engine.add_request(str(idx), [idx, *prompt] if idx % 2 else [*prompt, idx], params)
    outputs = list(engine.run())
    assert {out.num_cached_tokens for out in outputs} == {0, 40}
    assert 40 <= len(looked_up) <= 150, "20 come, 20 start"
