"""A drafter in C++ whose layers have windows: pages of their own, and the drafts of pages in common."""

import random
from dataclasses import replace

import pytest

from engine.test_draft_windows import SharedPages, answered
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.native.accelerate import accelerate_drafter
from flashdraft.spec_decode.dflash import DFlashBatch, DFlashDrafter
from native_pair import draft_network, make

pytestmark = pytest.mark.usefixtures("cpu_path")


@pytest.mark.parametrize("is_causal", [False, True])
def test_drafts_are_those_of_pages_in_common(is_causal: bool) -> None:
    """Causal blocks run through the modules, over context that C++ has stored."""
    target, _ = make(max_position_embeddings=512)
    network = draft_network(target)
    windowed = {"layer_types": ("sliding_attention",) * 2, "sliding_window": 16, "window_from_anchor": True}
    network.config = replace(network.config, is_causal=is_causal, **windowed)
    fast = accelerate_drafter(network, target.head_weight())
    assert fast
    assert fast.knows_rules != is_causal
    config = EngineConfig(max_running=3, max_step_tokens=48, max_prompt_tokens=32, page_size=4, num_pages=500)
    rng, found, sizes = random.Random(3), [], []
    prompts = [[rng.randrange(97) for _ in range(length)] for length in (5, 90, 33, 150)]
    for form in (DFlashDrafter, SharedPages):
        engine = Engine(target, form(network, target, fast), config)
        assert isinstance(engine.runner.drafter, DFlashBatch)
        found.append(answered(engine, prompts))
        sizes.append(engine.runner.drafter.cache.nbytes)
    assert found[0] == found[1]
    assert sizes[0] < 0.2 * sizes[1]


def test_where_one_layer_sees_all_both_have_pages_in_common() -> None:
    target, _ = make()
    network = draft_network(target)
    kinds = ("full_attention", "sliding_attention")
    network.config = replace(network.config, layer_types=kinds, sliding_window=16)
    fast = accelerate_drafter(network, target.head_weight())
    assert list(DFlashDrafter(network, target, fast).windows) == []
    assert list(DFlashDrafter(network, target).windows) == [16]
