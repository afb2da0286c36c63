"""Steps as they are recorded on CUDA, without CUDA: padded to powers of two, the recorded work run again and again."""

import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from flashdraft.backends.graphs import GraphBackend, why_unrecordable
from flashdraft.batch import ForwardBatch
from flashdraft.cache import paged_rows
from flashdraft.cache.dense_source import block_masks
from flashdraft.cache.paged_kv_cache import CacheRow
from flashdraft.cache.paged_rows import PagedRows
from flashdraft.control.step_costs import Curve, ShapeTable, StepCosts
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.engine.step_timing import measure_costs
from flashdraft.generate import generate
from flashdraft.models.base import TargetModel, TargetOutput
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.build import trained_drafter
from flashdraft.spec_decode.candidates import Candidates
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.spec_decode.drafter import Drafter
from toys import toy_dflash, toy_dflash2, toy_hybrid, toy_mtp, toy_sliding, toy_target

VOCAB = 11  # random drafts are right now and then


class Rerun:
    """The work of a key's first call on that call's own tensors, whatever work comes with a later one."""

    num_replays = 0

    def __init__(self) -> None:
        self.known: dict[Hashable, tuple[Callable[..., Any], list[Tensor]]] = {}
        self.last: Any = None

    def __call__(self, key: Hashable, work: Callable[..., Any], inputs: Sequence[Tensor]) -> Any:
        for tensor in tensors_in(self.last):  # as a replay overwrites what the last one gave
            tensor.fill_(-1)
        Rerun.num_replays += key in self.known
        first_work, own = self.known.setdefault(key, (work, [one.clone() for one in inputs]))
        for mine, given in zip(own, inputs, strict=True):
            assert mine.shape == given.shape
            mine.copy_(given)
        self.last = first_work(*own)
        return self.last


def tensors_in(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, TargetOutput):
        yield from tensors_in((result.hidden, result.features))
    elif isinstance(result, Candidates):
        yield from tensors_in((result.token_ids, result.log_probs))
    elif isinstance(result, tuple):
        for part in result:
            yield from tensors_in(part)


@pytest.fixture(autouse=True)
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def why_not(_cls: type[GraphBackend], target: TargetModel) -> str | None:
        return why_unrecordable(target)

    Rerun.num_replays = 0
    monkeypatch.setattr(GraphBackend, "why_not", classmethod(why_not))
    monkeypatch.setattr(PagedRows, "records", True)
    monkeypatch.setattr(paged_rows, "Recorded", Rerun)


@pytest.mark.parametrize("kind", ["dflash", "window", "target's windows", "mtp", "trees", "dflash2 trees"])
def test_recorded_steps_give_every_request_the_tokens_it_gets_alone(kind: str) -> None:
    rng = random.Random(5)
    target = (toy_sliding if kind == "target's windows" else toy_target)(vocab_size=VOCAB)
    network = toy_dflash(target)
    if kind == "dflash2 trees":
        network = toy_dflash2(target)
    if kind == "window":
        network.config = network.config.with_window(24)
    drafter: Drafter = DFlashDrafter(network, target)
    if kind == "mtp":
        drafter = trained_drafter(toy_mtp(target), target)
    config = EngineConfig(max_running=6, max_step_tokens=96, page_size=4, num_pages=120)
    # Costs that are given: what "auto" drafts, and so what is accepted, does not hang on the machine's mood.
    costs = StepCosts(Curve([1, 512], [1.0, 1.5]), Curve([1, 512], [0.05, 0.05]))
    engine = Engine(target, drafter, config, costs=costs)
    measured = measure_costs(engine.runner, 8, 4)
    for table, widths in ((measured.verify, [1, 2, 4, 8]), (measured.draft, [2, 4, 8])):
        assert isinstance(table, ShapeTable), "every shape is recorded while it is timed"
        assert (table.num_rows.tolist(), table.widths.tolist()) == ([1, 2, 4], widths)
        assert table.seconds.min() > 0
    prompts = [[rng.randrange(VOCAB) for _ in range(rng.choice([1, 7, 40, 130]))] for _ in range(24)]
    params = [
        SamplingParams(temperature=0.0, max_tokens=rng.randrange(1, 50), ignore_eos=True) for _ in prompts
    ]
    params[3] = SamplingParams(temperature=0.8, seed=3, max_tokens=20)
    tokens: dict[str, list[int]] = {}
    waiting = list(range(len(prompts)))
    while waiting or engine.has_unfinished:
        for idx in [waiting.pop(0) for _ in range(min(rng.choice([0, 0, 1, 3]), len(waiting)))]:
            tree = rng.choice([None, 5, 12]) if kind.endswith("trees") else None
            engine.add_request(
                str(idx), prompts[idx], params[idx], rng.choice([1, 3, 8, "auto"]), draft_tree=tree
            )
        for out in engine.step():
            tokens.setdefault(out.request_id, []).extend(out.token_ids)
    for idx, (prompt, one) in enumerate(zip(prompts, params, strict=True)):
        assert tokens[str(idx)] == generate(target, None, prompt, one).token_ids
    assert engine.metrics.num_accepted > 10, "drafts are meant to be right now and then"
    assert Rerun.num_replays > 50


@torch.inference_mode()
def test_features_that_wait_for_a_draft_stay_what_they_were() -> None:
    """Plain rounds between drafts, prompts that come meanwhile: the drafter is given the target's own features."""
    rng = random.Random(5)
    target = toy_target(vocab_size=VOCAB)
    drafter = DFlashDrafter(toy_dflash(target), target)
    engine = Engine(target, drafter, EngineConfig(max_running=6, max_step_tokens=96, page_size=4))
    assert engine.runner.drafter
    observe = engine.runner.drafter.observe
    given: dict[Hashable, tuple[list[int], list[Tensor]]] = {}

    def heard(
        rows: Sequence[CacheRow], token_ids: Sequence[list[int]], features: Sequence[Tensor | None]
    ) -> None:
        for row, ids, some in zip(rows, token_ids, features, strict=True):
            assert some is not None
            all_ids, parts = given.setdefault(row.key, ([], []))
            all_ids += ids
            parts.append(some.clone())
        observe(rows, token_ids, features)

    engine.runner.drafter.observe = heard  # type: ignore[method-assign]
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    for idx in range(12):
        prompt = [rng.randrange(VOCAB) for _ in range(rng.choice([1, 7, 40]))]
        engine.add_request(str(idx), [idx % VOCAB, *prompt], params, 8)
    while engine.has_unfinished:
        for request in engine.requests.values():
            request.block_size = rng.choice([1, 1, 8])
        engine.step()
    for ids, parts in given.values():
        batch = ForwardBatch(torch.tensor([ids]), torch.arange(len(ids)).unsqueeze(0), len(ids))
        wanted = target.forward(batch, target.new_cache(1, len(ids)), drafter.feature_layers).features
        assert wanted is not None
        torch.testing.assert_close(torch.cat(parts), wanted[0], atol=1e-4, rtol=1e-4)
    assert len(given) == 12


SLIDING = ("sliding_attention", "full_attention")  # counted from the slot, causal: a key set for each


@pytest.mark.parametrize("kind", ["dflash", "window", "sliding", "mtp"])
def test_a_recorded_draft_is_the_one_of_a_request_alone(kind: str) -> None:
    target = toy_target(vocab_size=VOCAB)
    layers = {"layer_types": SLIDING, "sliding_window": 6} if kind == "sliding" else {}
    network = toy_dflash(target, **layers)
    if kind == "window":
        network.config = network.config.with_window(8)
    drafter: Drafter = DFlashDrafter(network, target)
    if kind == "mtp":
        drafter = trained_drafter(toy_mtp(target), target)
    engine = Engine(target, drafter, EngineConfig(page_size=4, max_running=5))
    prompts = [[i, *(k % VOCAB for k in range(3 * i)), 5] for i in range(1, 6)]
    params = SamplingParams(temperature=0.0, max_tokens=30)
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, params, 8 - i % 3)
    last = {out.request_id: out for out in engine.run()}
    for i, prompt in enumerate(prompts):
        alone = generate(target, drafter, prompt, params, 8 - i % 3)
        assert last[str(i)].metrics.accepted_histogram == alone.metrics.accepted_histogram


def test_a_recording_asks_the_device_for_no_value_to_make_a_windows_mask() -> None:
    network = toy_dflash(toy_target(), layer_types=SLIDING, sliding_window=6)
    positions = torch.empty(4, 8, dtype=torch.long, device="meta")
    ends = torch.empty(4, dtype=torch.long, device="meta")
    masks = block_masks(network.config.rules, positions, 128, ends)
    assert [mask.shape for mask in masks if mask is not None] == [(4, 8, 128)] * 2


def test_a_target_of_experts_is_not_recorded() -> None:
    assert why_unrecordable(toy_target()) is None
    assert why_unrecordable(toy_hybrid()) == "it has layers that keep states, which ask for lengths"
    torch.manual_seed(0)
    from transformers import Qwen3MoeConfig

    from flashdraft.models.qwen3 import Qwen3Model

    config = Qwen3MoeConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    assert why_unrecordable(Qwen3Model(config)) == "its experts are chosen on the host"
