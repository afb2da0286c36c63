"""Layers that see a window keep no more than it: the same tokens, less memory, prefixes found where they can be."""

import random
from dataclasses import replace

import pytest
import torch
from transformers import Gemma3ForCausalLM

from engine.test_engine import SMALL_VOCAB, check_alone, mixed_cases, run_arriving_at_random
from flashdraft.engine.engine import Engine
from flashdraft.engine.memory_plan import plan_memory
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.generate import generate
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from toys import toy_dflash, toy_sliding

WINDOW = 12
SMALL = {"max_running": 4, "max_step_tokens": 24, "max_prompt_tokens": 24, "page_size": 4}
GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)


def answers_of(engine: Engine, prompts: list[list[int]], draft_tree: int | None = None) -> list[list[int]]:
    tokens: list[list[int]] = [[] for _ in prompts]
    for idx, prompt in enumerate(prompts):
        engine.add_request(str(idx), prompt, GREEDY, draft_tree=draft_tree)
    while engine.has_unfinished:
        for out in engine.step():
            tokens[int(out.request_id)] += out.token_ids
        engine.check_integrity()
    return tokens


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_mixed_requests_with_preemptions_and_aborts_equal_the_oracle(prefix_caching: bool) -> None:
    rng = random.Random(7)
    target = toy_sliding(vocab_size=SMALL_VOCAB)
    drafter = DFlashDrafter(toy_dflash(target), target)
    config = EngineConfig(
        max_running=6, max_step_tokens=48, page_size=4, num_pages=60, prefix_caching=prefix_caching
    )
    engine = Engine(target, drafter, config, eos_token_ids=[2])
    assert engine.scheduler.windows, "windows are meant to have pages of their own"
    cases = mixed_cases(40, rng)
    tokens, aborted = run_arriving_at_random(engine, cases, rng, abort_share=0.04)
    stats = engine.stats()
    assert stats.num_preemptions >= 3, "the pool is meant to be too small"
    assert (stats.num_cached_tokens > 100) == prefix_caching
    assert stats.metrics.num_accepted > 10, "drafts are meant to be right now and then"
    check_alone(target, cases, tokens, aborted)


@pytest.mark.parametrize("draft_tree", [None, 12])
def test_texts_much_longer_than_the_window_equal_transformers(draft_tree: int | None) -> None:
    target = toy_sliding()
    theirs = Gemma3ForCausalLM(target.config).eval()
    theirs.load_state_dict(target.state_dict(), strict=False)
    theirs.tie_weights()
    drafter = DFlashDrafter(toy_dflash(target), target)
    engine = Engine(target, drafter, EngineConfig(num_pages=400, **SMALL), block_size=8)
    rng = random.Random(3)
    prompts = [[rng.randrange(3, 90) for _ in range(length)] for length in (5, 90, 33, 150, 64, 12)]
    found = answers_of(engine, prompts, draft_tree)
    for prompt, answer in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        told = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False, eos_token_id=None
        )
        assert answer == told[0, len(prompt) :].tolist()


def test_a_request_holds_its_window_and_its_step() -> None:
    target = toy_sliding()
    engine = Engine(target, None, EngineConfig(num_pages=100, **SMALL))
    engine.add_request("long", [5] * 200, SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True))
    held = []
    while engine.has_unfinished:
        for request in engine.scheduler.running:
            held.append(len(request.window.held))
        engine.step()
    assert max(held) <= (WINDOW - 1 + 24) // 4 + 2
    assert held[-1] <= (WINDOW - 1 + 1) // 4 + 2, "a step of one token"


def test_a_prefix_is_found_where_its_window_is() -> None:
    """As long as nobody else needed the pages; without them it is computed again, with the same answer."""
    target = toy_sliding()
    config = EngineConfig(max_running=1, max_step_tokens=16, max_prompt_tokens=16, page_size=4, num_pages=200)
    engine = Engine(target, None, config)
    shared = [(7 * idx) % 90 + 3 for idx in range(80)]

    def asked(prompt: list[int]) -> int:
        before = engine.stats().num_cached_tokens
        assert answers_of(engine, [prompt]) == [generate(target, None, prompt, GREEDY).token_ids]
        return engine.stats().num_cached_tokens - before

    assert asked(shared) == 0
    assert asked([*shared, 5]) == 80, "all of it is there"
    assert asked([*shared[:40], 6]) < 40, "what lies before the window was given back, and used again"
    for other in range(3):  # others take all pages of windows, but not all pages
        asked([other + 3] * 60)
    assert engine.scheduler.pool.find_prefix(engine.scheduler.pool._page_of)  # the long pages are there
    assert asked([*shared, 7]) == 0


def test_memory_is_what_was_planned(tmp_path: pytest.TempPathFactory) -> None:
    target = toy_sliding(max_position_embeddings=8192)
    target.config.architectures = ["Gemma3ForCausalLM"]
    theirs = Gemma3ForCausalLM(target.config)
    theirs.save_pretrained(tmp_path)
    config = EngineConfig(num_pages=1000, **SMALL)
    engine = Engine(target, None, config)
    plan = plan_memory(str(tmp_path), None, "float32", config, None)
    assert plan.window_bytes == plan.kv_bytes * 2 // 3
    assert engine.runner.cache.nbytes == pytest.approx(plan.storage_bytes(4000), rel=0.05)
    assert engine.runner.cache.nbytes < 0.5 * 4000 * plan.kv_bytes
    assert f"for {plan.window_tokens:,} tokens at most" in plan.to_text()
    few, many = plan.context_tokens(1, 80), plan.context_tokens(1, 160)
    full_bytes = plan.kv_bytes - plan.window_bytes
    assert many - few == pytest.approx(80e9 * 0.9 / full_bytes, rel=1e-6), "more context is full layers alone"


def test_plain_steps_that_no_round_runs_take_no_pages_ahead() -> None:
    """Rounds of several plain steps are a GPU's: where there are none, one of them takes one token's room."""
    target = toy_sliding()
    config = EngineConfig(**SMALL, num_pages=200, num_scheduler_steps=64)
    engine = Engine(target, None, config)
    assert engine.scheduler.windows, "windows are meant to have pages of their own"
    prompts = [[5, 6, 7 + idx] for idx in range(SMALL["max_running"])]
    params = replace(GREEDY, max_tokens=80)
    for idx, prompt in enumerate(prompts):
        engine.add_request(str(idx), prompt, params)
    for _ in range(6):
        engine.step()
        engine.check_integrity()
    assert all(len(request.pages) <= 3 for request in engine.scheduler.running)
