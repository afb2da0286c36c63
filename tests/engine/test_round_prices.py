"""What the controller hears of rounds' seconds, on a device whose clock is made up."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from flashdraft.cache.rounds import Round, RoundEnd, RoundRow
from flashdraft.control.step_costs import ShapeTable, StepCosts
from flashdraft.engine.engine import Engine
from flashdraft.engine.recorded_trees import NO_TREES
from flashdraft.engine.request import Request
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.engine.step_timing import measure_costs
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from toys import toy_dflash, toy_target

HOST_S, RECORD_S, OBSERVE_S = 0.1, 50.0, 20.0
SECONDS = {1: 1.0, 4: 2.0, 8: 2.2, 16: 3.0}  # of the device, by a round's width
ROWS = 4


@dataclass
class _Round:
    device: "_Device"
    rows: Sequence[RoundRow]
    until: float
    is_new: bool
    features: Tensor | None

    def ends(self) -> list[RoundEnd]:
        self.device.now = max(self.device.now, self.until) + HOST_S
        ends = []
        for row in self.rows:
            num = row.block - 1
            accepted = min(num // 2, row.length - 1)
            ends.append(RoundEnd([*range(1 + accepted)], 5, [5] * num, [*range(num)], [-0.1] * num))
        return ends


@dataclass
class _Device:
    """Runs one thing after the other, and its host has a clock."""

    feature_size: int
    now: float = 0.0
    until: float = 0.0  # busy
    known: set[int] = field(default_factory=set)
    widths: list[int] = field(default_factory=list)
    can_draft = True

    def launch(self, rows: Sequence[RoundRow]) -> Round:
        width = max(row.block for row in rows)
        is_new = width not in self.known
        self.known.add(width)
        self.widths.append(width)
        self.now += HOST_S + RECORD_S * is_new
        self.until = max(self.now, self.until) + SECONDS[width]
        features = torch.zeros(len(rows), 1, self.feature_size) if width == 1 else None
        return _Round(self, rows, self.until, is_new, features)

    def settle(self) -> None:
        """Nothing waits."""


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> tuple[Engine, _Device, list[tuple[int, float]]]:
    """An engine with such a device, and (width, seconds) of rounds as its controller hears them."""
    target = toy_target(num_hidden_layers=2, max_position_embeddings=4096)
    drafter = DFlashDrafter(toy_dflash(target, num_hidden_layers=1), target)
    table = ShapeTable([1, ROWS], list(SECONDS), [list(SECONDS.values())] * 2)
    costs = StepCosts(table, ShapeTable([1], [1], [[0.0]]))
    config = EngineConfig(max_running=ROWS, prefix_caching=False, num_pages=1024)
    engine = Engine(target, drafter, config, costs=costs, block_size="auto")
    device = _Device(len(engine.runner.feature_layers) * target.config.hidden_size)
    engine.runner.rounds = device
    engine.control.trees = NO_TREES
    monkeypatch.setattr("flashdraft.engine.overlap.perf_counter", lambda: device.now)
    heard: list[tuple[int, float]] = []
    learn, catch_up = costs.learn, engine.runner.catch_up

    def told(verified: tuple[int, int], seconds: float, *rest: object) -> None:
        heard.append((verified[1] // verified[0], seconds))
        learn(verified, seconds, *rest)  # type: ignore[arg-type]

    def caught(requests: Sequence[Request]) -> bool:
        found = catch_up(requests)
        device.until = max(device.now, device.until) + OBSERVE_S * bool(found)
        return found

    monkeypatch.setattr(costs, "learn", told)
    monkeypatch.setattr(engine.runner, "catch_up", caught)
    return engine, device, heard


def _answer(engine: Engine, num_tokens: int) -> None:
    """So many tokens of some answers; then they are given up, for the device knows nothing of their ends."""
    params = SamplingParams(temperature=0.0, max_tokens=3900, ignore_eos=True)
    for idx in range(ROWS):
        engine.add_request(str(idx), [3, 4, 5], params)
    while min(request.num_said for request in engine.requests.values()) < num_tokens:
        engine.step()
    for name in list(engine.requests):
        engine.abort(name)
    engine.step()


def test_what_the_drafter_takes_late_and_what_is_recorded_is_no_price_of_a_round(
    made_up: tuple[Engine, _Device, list[tuple[int, float]]],
) -> None:
    """Or a drafter that pays would be given up for plain decoding, whose every trial of it looks as dear."""
    engine, device, heard = made_up
    for _ in range(3):  # prompts come, whose features are taken with the first draft
        _answer(engine, 400)
    assert heard
    for width, seconds in heard:
        assert seconds == pytest.approx(SECONDS[width], abs=0.01), width
    assert device.widths.count(1) < len(device.widths) / 4


def test_a_round_is_timed_from_end_to_end_as_it_runs_behind_another(
    made_up: tuple[Engine, _Device, list[tuple[int, float]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its launch runs meanwhile: counted, long rounds would seem less dear beside short ones than they are."""
    engine, device, _ = made_up
    monkeypatch.setattr("flashdraft.engine.step_timing.perf_counter", lambda: device.now)
    costs = measure_costs(engine.runner, max(SECONDS), ROWS)
    for seconds in costs.verify.seconds:
        assert seconds.tolist() == pytest.approx(list(SECONDS.values()))


def test_drafting_comes_back_where_a_draft_was_measured_too_dear(
    made_up: tuple[Engine, _Device, list[tuple[int, float]]],
) -> None:
    engine, device, heard = made_up
    assert engine.control.controller is not None
    verify = engine.control.controller.costs.verify
    assert isinstance(verify, ShapeTable)
    verify.seconds[:, 1:] *= 2
    _answer(engine, 3000)
    assert max(device.widths[:200]) == 1, "by its price it does not pay"
    assert device.widths[-50:].count(1) < 25
    assert {width for width, _ in heard} > {1}
