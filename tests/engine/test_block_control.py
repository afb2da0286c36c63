"""The controller within the engine: its choices show in the rounds, never in the tokens."""

from typing import Any

import pytest

from flashdraft.control.step_costs import Curve, ShapeTable, StepCosts
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.errors import UsageError
from flashdraft.generate import generate
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.spec_decode.metrics import RequestMetrics
from flashdraft.spec_decode.simulated import SimulatedAcceptance
from toys import ScriptedDrafter, toy_dflash, toy_target

PROMPT = [5, 3, 8]
PARAMS = SamplingParams(temperature=0.0, max_tokens=120, ignore_eos=True)


def flat_costs(draft_s: float) -> StepCosts:
    """A step of a second whatever its width, and a draft of ``draft_s``."""
    return StepCosts(Curve([1, 512], [1.0, 1.5]), Curve([1, 512], [draft_s, draft_s]))


class SteadyClock(StepCosts):
    """Costs that stay as they were made up."""

    def learn(self, *args: object) -> None:
        """The toy's own times mean nothing here."""


def steady(draft_s: float) -> StepCosts:
    costs = flat_costs(draft_s)
    return SteadyClock(costs.verify, costs.draft)


def run(engine: Engine, params: SamplingParams = PARAMS) -> tuple[list[int], RequestMetrics, list[int]]:
    """Tokens, metrics and the length verified in each round."""
    engine.add_request("r", PROMPT, params)
    outputs = list(engine.run())
    tokens = [token for output in outputs for token in output.token_ids]
    return tokens, outputs[-1].metrics, [1 + output.num_drafted for output in outputs[1:]]


def test_a_drafter_that_knows_the_answer_gets_whole_blocks() -> None:
    target = toy_target()
    answer = PROMPT + generate(target, None, PROMPT, PARAMS).token_ids
    tokens, metrics, lengths = run(
        Engine(target, ScriptedDrafter(answer, lambda _: False), costs=steady(0.1))
    )
    assert tokens == answer[3:]
    assert set(lengths[1:-1]) == {16}
    assert metrics.verified_histogram[16] == lengths.count(16)


def test_plain_rounds_where_a_draft_costs_too_much() -> None:
    target = toy_target()
    answer = PROMPT + generate(target, None, PROMPT, PARAMS).token_ids
    tokens, metrics, lengths = run(
        Engine(target, ScriptedDrafter(answer, lambda _: False), costs=steady(50.0))
    )
    assert tokens == answer[3:]
    assert set(lengths) == {1}
    assert metrics.num_drafted == 0


def test_drafting_stops_and_comes_back_within_one_answer() -> None:
    params = SamplingParams(temperature=0.0, max_tokens=400, ignore_eos=True)
    target = toy_target()
    answer = PROMPT + generate(target, None, PROMPT, params).token_ids
    drafter = ScriptedDrafter(answer, lambda position: 60 <= position < 200)
    tokens, _, lengths = run(Engine(target, drafter, costs=steady(0.5)), params)
    assert tokens == answer[3:]
    assert lengths[1] == 16
    assert lengths.count(1) > 100, "the bad stretch, one token a round"
    assert max(lengths[-8:-1]) == 16


def test_a_request_that_paused_while_the_plan_changed_comes_back_to_the_plan_that_stands() -> None:
    """Recorded steps keep a plan whoever joins: with the block of an earlier one a step would have two lengths."""
    target = toy_target(vocab_size=11)
    drafter = DFlashDrafter(toy_dflash(target), target)

    def recorded(draft_s: float) -> StepCosts:
        return SteadyClock(ShapeTable([2], [1, 16], [[1.0, 1.1]]), ShapeTable([2], [16], [[draft_s]]))

    engine = Engine(target, drafter, EngineConfig(max_running=2), costs=recorded(0.01), block_size="auto")
    params = SamplingParams(temperature=0.0, max_tokens=400, ignore_eos=True)
    for name in "ab":
        engine.add_request(name, PROMPT, params)
    stays, pauses = engine.requests.values()
    while pauses.block_size == 1:
        engine.step()
    engine.set_paused("b", True)
    assert engine.control.controller is not None
    engine.control.controller.costs = recorded(50.0)
    while stays.block_size > 1:
        engine.step()
    engine.set_paused("b", False)
    while pauses.is_prefilling:
        engine.step()
    engine.step()
    assert (stays.block_size, pauses.block_size, pauses.tree_size) == (1, 1, 0)


def test_the_machine_is_measured_in_the_middle_of_answers_and_nothing_is_disturbed() -> None:
    target = toy_target(vocab_size=11)
    drafter = DFlashDrafter(toy_dflash(target), target)
    engine = Engine(target, drafter, EngineConfig(page_size=4, num_pages=80))
    for i in range(3):
        engine.add_request(str(i), [i, *PROMPT], PARAMS, block_size=8)
    tokens: dict[str, list[int]] = {str(i): [] for i in range(3)}
    for _ in range(4):
        for output in engine.step():
            tokens[output.request_id] += output.token_ids
    costs = engine.control.calibrate().costs
    measured = costs.verify.seconds.copy()
    for output in engine.run():
        tokens[output.request_id] += output.token_ids
    engine.check_integrity()
    for i in range(3):
        assert tokens[str(i)] == generate(target, None, [i, *PROMPT], PARAMS).token_ids
    taught = [16, 32, 64, 128, 256, 512, 1024]  # more than were measured
    assert costs.verify.num_tokens.tolist() == [1, 2, 4, 8, *taught]
    assert measured[0] > 0
    assert (measured[1:] >= measured[:-1]).all(), "more tokens never take less"
    assert (costs.verify.seconds != measured).any(), "the steps themselves correct it"
    assert costs.draft.num_tokens.tolist() == [2, 4, 8, *taught]


@pytest.mark.parametrize(("page_size", "num_pages"), [(4, 6), (4, 24), (4, 31), (16, 2)])
def test_the_machine_is_measured_behind_no_more_pages_than_there_are(page_size: int, num_pages: int) -> None:
    target = toy_target(vocab_size=11)
    drafter = DFlashDrafter(toy_dflash(target), target)
    config = EngineConfig(page_size=page_size, num_pages=num_pages, max_running=2)
    engine = Engine(target, drafter, config, block_size="auto")
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    engine.add_request("r", PROMPT, params)
    tokens = [token for output in engine.run() for token in output.token_ids]
    assert tokens == generate(target, None, PROMPT, params).token_ids
    assert engine.control.controller is not None


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_features_of_plain_rounds_wait_and_are_taken_in_few_projections(prefix_caching: bool) -> None:
    target = toy_target(vocab_size=11)
    drafter = DFlashDrafter(toy_dflash(target), target)
    config = EngineConfig(page_size=4, prefix_caching=prefix_caching)
    engine = Engine(target, drafter, config, costs=steady(50.0))
    feature_bytes = len(drafter.feature_layers) * target.config.hidden_size * 4
    assert engine.most_pending == 2**27 // (feature_bytes * config.max_running)
    engine.most_pending = 128
    calls: list[int] = []
    observe = engine.runner.drafter.observe  # type: ignore[union-attr]

    def counted(rows: object, token_ids: list[list[int]], features: object) -> None:
        calls.append(sum(map(len, token_ids)))
        observe(rows, token_ids, features)  # type: ignore[arg-type]

    engine.runner.drafter.observe = counted  # type: ignore[union-attr, method-assign, assignment]
    tokens, _, _ = run(engine, SamplingParams(temperature=0.0, max_tokens=300, ignore_eos=True))
    if not prefix_caching:
        assert calls == [128, 128], "nobody finds a prompt, nor what is left"
        return
    assert calls[0] <= 4, "the prompt's own page is taken as soon as it is full"
    assert calls[1:] == [128, 128, 300 - 1 + len(PROMPT) - 256 - calls[0]]
    engine.add_request("again", PROMPT + tokens, SamplingParams(temperature=0.0, max_tokens=1))
    [output] = engine.run()
    assert output.num_cached_tokens == 300, "the answer's pages can be found"


@pytest.mark.parametrize("block_size", ["auto", None])
def test_without_a_drafter_automatic_is_plain(block_size: str | None) -> None:
    engine = Engine(toy_target(), None, block_size=block_size)  # type: ignore[arg-type]
    assert engine.block_size == 1
    with pytest.raises(UsageError, match="'most'; expected auto or a number"):
        engine.add_request("r", PROMPT, PARAMS, "most")  # type: ignore[arg-type]


def test_choosing_sampled_tokens_is_part_of_what_a_step_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    target = toy_target(vocab_size=11)
    drafter = DFlashDrafter(toy_dflash(target), target)
    engine = Engine(target, drafter, costs=flat_costs(0.1))
    told: list[float] = []
    monkeypatch.setattr(StepCosts, "learn", lambda *args: told.append(args[2]))
    now, follow = [0.0], engine._follow

    def timed_follow(*args: Any) -> Any:
        now[0] += 0.5
        return follow(*args)

    monkeypatch.setattr("flashdraft.engine.engine.perf_counter", lambda: now[0])
    monkeypatch.setattr(engine, "_follow", timed_follow)
    engine.add_request("r", PROMPT, SamplingParams(temperature=1.0, top_k=5, seed=1, max_tokens=40))
    list(engine.run())
    assert told
    assert set(told) == {0.5}


def test_acceptance_by_dice_has_the_length_that_was_asked_for() -> None:
    target = toy_target(vocab_size=11)
    drafter = DFlashDrafter(toy_dflash(target), target)
    simulated = SimulatedAcceptance.of_length(3.5, 8)
    engine = Engine(target, drafter, block_size=8, simulated=simulated)
    for i in range(8):
        engine.add_request(str(i), [i], SamplingParams(temperature=0.0, max_tokens=400, ignore_eos=True))
    list(engine.run())
    assert engine.metrics.acceptance_length == pytest.approx(3.5, rel=0.06)
    later = [simulated.draw(7) for _ in range(20)]
    simulated.restart()
    first = [simulated.draw(7) for _ in range(20)]
    simulated.restart()
    assert first == [simulated.draw(7) for _ in range(20)] != later
    for wrong in (0.5, 9):
        with pytest.raises(UsageError, match="expected 1 to 8"):
            SimulatedAcceptance.of_length(wrong, 8)
    with pytest.raises(UsageError, match="from 0 to 1"):
        SimulatedAcceptance([0.5, 2.0])
