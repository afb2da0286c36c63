"""The engine's steps as CUDA graphs: every request gets the tokens that it gets alone, launch by launch."""

import gc
import random

import pytest
import torch

from flashdraft.engine.engine import Engine
from flashdraft.engine.model_runner import ModelRunner
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.generate import generate
from flashdraft.ops.recorded import Recorded
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.build import trained_drafter
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.spec_decode.drafter import Drafter
from toys import toy_dflash, toy_mtp, toy_target

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
VOCAB = 11  # random drafts are right now and then


def recordings(runner: ModelRunner) -> list[object]:
    """Of the target's steps: those that the host looks at, and rounds where the backend has them."""
    held = [runner.block_rows.recorded]
    if runner.rounds:
        held.append(runner.rounds._recorded)
    return [one for each in held for one in each._found.values() if one is not None]


@pytest.mark.parametrize("backend", ["cuda", "graphs"])
@pytest.mark.parametrize("kind", ["none", "dflash", "window", "mtp", "trees"])
def test_replayed_steps_give_every_request_the_tokens_it_gets_alone(kind: str, backend: str) -> None:
    rng = random.Random(5)
    target = toy_target(vocab_size=VOCAB, head_dim=16).cuda()
    windowed = toy_dflash(target).cuda()
    windowed.config = windowed.config.with_window(24)
    drafters: dict[str, Drafter | None] = {
        "none": None,
        "dflash": DFlashDrafter(toy_dflash(target).cuda(), target),
        "window": DFlashDrafter(windowed, target),
        "mtp": trained_drafter(toy_mtp(target).cuda(), target),
    }
    drafter = drafters["dflash" if kind == "trees" else kind]
    config = EngineConfig(max_running=6, page_size=4, num_pages=200, attention_backend=backend)
    engine = Engine(target, drafter, config)
    prompts = [[rng.randrange(VOCAB) for _ in range(rng.choice([1, 7, 40, 130]))] for _ in range(24)]
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    for idx, prompt in enumerate(prompts):
        tree = rng.choice([None, 5, 12]) if kind == "trees" else None
        size = rng.choice([1, 3, 8, "auto"]) if drafter else 1
        engine.add_request(str(idx), prompt, params, size, draft_tree=tree if size != 1 else None)
    found: dict[str, list[int]] = {}
    for out in engine.run():
        found.setdefault(out.request_id, []).extend(out.token_ids)
    same = [found[str(i)] == generate(target, None, ids, params).token_ids for i, ids in enumerate(prompts)]
    assert recordings(engine.runner), "nothing was recorded"
    # Kernels of other shapes sum otherwise and may turn a near-tie; an error of a graph turns nearly all.
    assert sum(same) >= 20
    if drafter:
        assert engine.metrics.num_accepted > 20


def test_a_recording_is_made_while_another_one_is_garbage() -> None:
    one = torch.ones(4, device="cuda")

    def work(given: torch.Tensor) -> torch.Tensor:
        _ = [[] for _ in range(100)]  # containers enough for a collection, with the threshold below
        return given + one

    def recorded() -> Recorded:
        made = Recorded()
        for _ in range(3):
            assert made("sum", work, [one]).tolist() == [2, 2, 2, 2]
        return made

    thresholds = gc.get_threshold()
    try:
        for _ in range(10):
            gc.set_threshold(0)
            cycle: list[object] = [recorded()]
            cycle.append(cycle)  # nothing but a collection frees it
            del cycle
            gc.set_threshold(1, 1, 1)
            recorded()
    finally:
        gc.set_threshold(*thresholds)
