"""A drafter's layers that see a window keep no more than it: the same drafts, less memory, prefixes nearly as long."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from engine.test_engine import SMALL_VOCAB, check_alone, mixed_cases, run_arriving_at_random
from flashdraft.cache.paged_kv_cache import CacheRow
from flashdraft.engine.engine import Engine
from flashdraft.engine.memory_plan import MemoryPlan
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashBatch, DFlashDrafter
from flashdraft.spec_decode.tree import DraftTree
from toys import toy_dflash, toy_sliding, toy_target

WINDOW = 12
KINDS = {
    "one layer of two": {"layer_types": ("sliding_attention", "full_attention"), "sliding_window": WINDOW},
    "both": {"layer_types": ("sliding_attention",) * 2, "sliding_window": WINDOW},
    "from the anchor": {
        "layer_types": ("sliding_attention",) * 2,
        "sliding_window": WINDOW,
        "is_causal": False,
        "window_from_anchor": True,
    },
}
ROOM = {"max_running": 4, "max_step_tokens": 48, "max_prompt_tokens": 24, "page_size": 4}
PARAMS = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)


class SharedPages(DFlashDrafter):
    """The same drafts from pages in common."""

    @property
    def windows(self) -> Sequence[int]:
        """None."""
        return ()


def answered(engine: Engine, prompts: list[list[int]]) -> tuple[list[list[int]], dict[Any, list[int]]]:
    """Tokens of each of ``prompts``, together; and what was drafted of each request behind so many tokens."""
    tokens: list[list[int]] = [[] for _ in prompts]
    drafts: dict[Any, list[int]] = {}
    assert engine.runner.drafter
    propose = engine.runner.drafter.propose

    def seen(rows: Sequence[CacheRow], *asked: Any) -> list[DraftTree]:
        found = propose(rows, *asked)
        drafts.update({(row.key, row.start): draft.token_ids for row, draft in zip(rows, found, strict=True)})
        return found

    engine.runner.drafter.propose = seen  # type: ignore[method-assign]
    for idx, prompt in enumerate(prompts):
        engine.add_request(str(idx), prompt, PARAMS, 8)
    while engine.has_unfinished:
        for out in engine.step():
            tokens[int(out.request_id)] += out.token_ids
        engine.check_integrity()
    engine.runner.drafter.propose = propose  # type: ignore[method-assign]
    return tokens, drafts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", ["full", "sliding"])
def test_drafts_are_those_of_pages_in_common_in_less_memory(kind: str, targets: str) -> None:
    target = (toy_target if targets == "full" else toy_sliding)(vocab_size=SMALL_VOCAB)
    network = toy_dflash(target, **KINDS[kind])  # type: ignore[arg-type]
    rng, found, sizes = random.Random(3), [], []
    prompts = [[rng.randrange(SMALL_VOCAB) for _ in range(length)] for length in (5, 90, 33, 150, 64, 12)]
    for form in (DFlashDrafter, SharedPages):
        engine = Engine(target, form(network, target), EngineConfig(num_pages=400, **ROOM))
        assert isinstance(engine.runner.drafter, DFlashBatch)
        found.append(answered(engine, prompts))
        sizes.append(engine.runner.drafter.cache.nbytes)
    assert found[0] == found[1]
    assert len(found[0][1]) > 100
    assert engine.runner.window_room or targets == "full"
    num_kept = 4 * (-(-WINDOW // 4) + 2) + -(-(48 + 4 + 24) // 4)  # pages: windows and one step
    spare = 4 * (8 + 4) // 4 + 1
    share = KINDS[kind]["layer_types"].count("sliding_attention") / 2  # type: ignore[attr-defined]
    expected = (1 - share) + share * (num_kept + spare) / (400 + spare)
    assert sizes[0] == pytest.approx(expected * sizes[1], rel=0.02)


@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_mixed_requests_equal_the_oracle(kind: str, prefix_caching: bool) -> None:
    rng = random.Random(7)
    target = toy_target(vocab_size=SMALL_VOCAB)
    drafter = DFlashDrafter(toy_dflash(target, **KINDS[kind]), target)  # type: ignore[arg-type]
    config = EngineConfig(
        max_running=6, max_step_tokens=48, page_size=4, num_pages=60, prefix_caching=prefix_caching
    )
    engine = Engine(target, drafter, config, eos_token_ids=[2])
    assert engine.scheduler.windows, "windows are meant to have pages of their own"
    cases = mixed_cases(25, rng)
    tokens, aborted = run_arriving_at_random(engine, cases, rng, abort_share=0.04)
    assert engine.stats().num_preemptions >= 2, "the pool is meant to be too small"
    check_alone(target, cases, tokens, aborted)


def test_behind_a_prefix_without_its_window_a_window_is_computed_again_and_drafts_are_the_same() -> None:
    target = toy_target(vocab_size=SMALL_VOCAB)
    drafter = DFlashDrafter(toy_dflash(target, **KINDS["both"]), target)  # type: ignore[arg-type]
    config = EngineConfig(num_pages=400, **{**ROOM, "max_running": 1})
    engine, rng = Engine(target, drafter, config), random.Random(5)
    shared = [rng.randrange(SMALL_VOCAB) for _ in range(120)]

    def asked(prompt: list[int]) -> int:
        before = engine.stats().num_cached_tokens
        tokens, drafts = answered(engine, [prompt])
        alone = answered(Engine(target, drafter, replace(config, prefix_caching=False)), [prompt])
        assert (tokens, [*drafts.values()]) == (alone[0], [*alone[1].values()])
        return engine.stats().num_cached_tokens - before

    assert asked([*shared, 5]) == 0
    assert asked([*shared, 6]) == 120
    for other in range(3):  # others take all pages of windows, but not all pages
        asked([other] * 60)
    assert asked([*shared, 7]) == (121 - WINDOW + 1) // 4 * 4, "the drafter sees no further back"


def test_memory_is_what_was_planned() -> None:
    target = toy_target()
    network = toy_dflash(target, **KINDS["one layer of two"])  # type: ignore[arg-type]
    config = EngineConfig(num_pages=1000, **ROOM)
    engine = Engine(target, DFlashDrafter(network, target), config)
    assert isinstance(engine.runner.drafter, DFlashBatch)
    assert engine.runner.window_room
    held = engine.runner.cache.nbytes + engine.runner.drafter.cache.nbytes
    kv_bytes, draft_bytes = (c.bytes_per_token for c in (engine.runner.cache, engine.runner.drafter.cache))
    window_tokens = engine.runner.window_room.num_pages * 4
    plan = MemoryPlan(
        4, 8, 0, 0, kv_bytes, draft_bytes, 0, 0, 0, 0, 1, 4, 48,
        draft_window_bytes=draft_bytes // 2, window_tokens=window_tokens,
    )  # fmt: skip
    assert held == pytest.approx(plan.storage_bytes(4000), rel=0.05)
    assert held < 0.9 * 4000 * (kv_bytes + draft_bytes)
