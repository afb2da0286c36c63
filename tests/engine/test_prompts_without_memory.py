"""Prompts that the device has no memory for: shorter chunks, fewer rows, and an error for what fits by no means."""

from collections.abc import Callable

import pytest
import torch

from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.generate import generate
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from toys import toy_dflash, toy_hybrid, toy_target

SMALL_VOCAB = 11


def _has_memory_for(fits: Callable[[list[list[int]]], bool], engine: Engine) -> None:
    """The device holds prompts' steps of token ids that fit."""
    run = engine.runner.backend.prompt_step

    def prompt_step(rows, placed, token_ids):
        if not fits(token_ids):
            raise torch.OutOfMemoryError("out of memory")
        return run(rows, placed, token_ids)

    engine.runner.backend.prompt_step = prompt_step  # type: ignore[method-assign]


def test_prompts_that_do_not_fit_the_device_are_computed_in_shorter_chunks() -> None:
    target = toy_target(vocab_size=SMALL_VOCAB)
    drafter = DFlashDrafter(toy_dflash(target), target)
    engine = Engine(target, drafter, EngineConfig(page_size=4, num_pages=200))
    _has_memory_for(lambda rows: sum(map(len, rows)) <= 100, engine)
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    prompts = [[(i + k) % SMALL_VOCAB for k in range(60 * i + 7)] for i in range(1, 4)]
    found: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, params, 8)
    for out in engine.run():
        assert out.error is None
        found.setdefault(out.request_id, []).extend(out.token_ids)
    assert found == {str(i): generate(target, None, one, params).token_ids for i, one in enumerate(prompts)}
    assert engine.stats().num_preemptions
    engine.check_integrity()


def test_without_memory_for_a_prompt_its_request_ends_and_the_others_go_on() -> None:
    target = toy_target(vocab_size=SMALL_VOCAB)
    drafter = DFlashDrafter(toy_dflash(target), target)
    engine = Engine(target, drafter, EngineConfig(page_size=4))
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    engine.add_request("runs", [1, 2, 3], params, 8)
    found = [token for _ in range(2) for out in engine.step() for token in out.token_ids]
    _has_memory_for(lambda _: False, engine)
    engine.add_request("new", [4, 5, 6], params, 8)
    last = {}
    for out in engine.run():
        last[out.request_id] = out
        found += out.token_ids if out.request_id == "runs" else []
    assert last["new"].finish_reason == "abort"
    assert "no memory" in str(last["new"].error)
    assert found == generate(target, None, [1, 2, 3], params).token_ids
    engine.check_integrity()


@pytest.mark.parametrize("is_hybrid", [False, True])
@pytest.mark.parametrize("most_rows", [1, 3])
def test_short_prompts_that_do_not_fit_together_run_in_fewer_rows(most_rows: int, is_hybrid: bool) -> None:
    """What fits by no means ends alone; a step without prompts lifts the bound."""
    target = (toy_hybrid if is_hybrid else toy_target)(vocab_size=SMALL_VOCAB)
    engine = Engine(target, None, EngineConfig(page_size=4, num_pages=200))
    _has_memory_for(lambda rows: len(rows) <= most_rows and max(map(len, rows)) < 15, engine)
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    prompts = [[(7 * i + k) % SMALL_VOCAB for k in range(8 + i % 4)] for i in range(5)]
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, params)
    engine.add_request("large", [5] * 15, params)
    found: dict[str, list[int]] = {}
    errors = {}
    for out in engine.run():
        errors[out.request_id] = out.error
        found.setdefault(out.request_id, []).extend(out.token_ids)
    assert "no memory" in str(errors.pop("large"))
    assert not found.pop("large")
    assert set(errors.values()) == {None}
    assert found == {str(i): generate(target, None, one, params).token_ids for i, one in enumerate(prompts)}
    assert engine.scheduler.pace.most_prompts is None
    engine.check_integrity()
