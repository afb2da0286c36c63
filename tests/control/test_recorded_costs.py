"""Prices of recorded steps: what is measured is what is charged, padding and all; the steps teach the rest."""

import random
from math import exp, log

import numpy as np
import pytest

from flashdraft.control.acceptance import Acceptance, Drafted
from flashdraft.control.config import DEFAULTS
from flashdraft.control.controller import Controller
from flashdraft.control.step_costs import ShapeTable, StepCosts
from flashdraft.spec_decode.tree import DraftTree

ROWS, WIDTHS, BLOCKS = (1, 2, 4), (1, 2, 4, 8), (2, 4, 8)


def costs_of(verify: object, draft: object) -> StepCosts:
    return StepCosts(ShapeTable(ROWS, WIDTHS, verify), ShapeTable(ROWS, BLOCKS, draft))  # type: ignore[arg-type]


def padded(number: int) -> int:
    return next(power for power in (1, 2, 4, 8, 16, 32) if power >= number)


@pytest.mark.parametrize("seed", range(3))
def test_a_step_costs_what_its_padded_shape_was_measured_to(seed: int) -> None:
    rng = np.random.default_rng(seed)
    seconds = rng.random((3, 4))
    table = ShapeTable(ROWS, WIDTHS, seconds)
    for rows in (1, 2, 3, 4):
        for width in range(1, 9):
            at = padded(rows).bit_length() - 1, padded(width).bit_length() - 1
            assert float(table(rows, rows * width)) == pytest.approx(seconds[at]), (rows, width)
    costs = costs_of(seconds, seconds[:, 1:])
    assert costs.draft_seconds([0, 2], 4).tolist() == [0.0, seconds[1, 2]]


def test_more_than_was_measured_costs_in_proportion() -> None:
    table = ShapeTable(ROWS, WIDTHS, [[1.0, 1, 1, 2], [2, 2, 2, 4], [3, 3, 3, 8]])
    assert table(8, [8, 64]).tolist() == [2 * 3, 2 * 8]
    assert float(table(1, 32)) == 4 * 2


def test_all_draft_the_block_whose_width_pays() -> None:
    flat = np.array([[1.0, 1.1, 1.2, 3.0]] * 3)
    controller = Controller(8, costs_of(flat, np.full((3, 3), 0.1)))
    states = [Acceptance() for _ in range(3)]
    drafts = [
        Drafted(state, 8, DraftTree.chain([0] * 7, [log(rate)] * 7), 7)
        for state, rate in zip(states, (0.7, 0.5, 0.2), strict=True)
    ]
    controller.acceptance.foresee(drafts)
    plan = controller.plan({states[0]: 1, states[1]: 99, states[2]: 99})
    assert [plan.length(state) for state in states] == [1, 4, 4], (
        "a width of 8 would cost more than twice as much"
    )
    assert controller.select([draft._replace(num_tokens=3) for draft in drafts], ()) == [3] * 3, "as planned"


def test_a_recorded_plan_stands_for_who_joins_and_its_last_step_teaches() -> None:
    flat = np.array([[1.0, 1.1, 1.2, 1.3]] * 3)
    controller = Controller(8, costs_of(flat, np.full((3, 3), 0.1)))
    first = Acceptance()
    drafted = Drafted(first, 8, DraftTree.chain([0] * 7, [log(0.9)] * 7), 7, 7, range(3))
    plan = controller.plan({first: 99, Acceptance(): 99})
    for _ in range(DEFAULTS.recorded_plan_steps - 1):
        controller.observe([drafted])
        assert first.chances is None
        newcomer = Acceptance()
        assert controller.plan({first: 99, newcomer: 99}) is plan
        assert plan.length(newcomer) == plan.length(first) == 8
    controller.observe([drafted])
    assert first.chances is not None
    second = controller.plan({first: 99})
    assert second is not plan, "it is spent"
    assert controller.plan({first: 99}, others=(4,)) is not second


@pytest.mark.parametrize("tells", [True, False])
def test_longer_blocks_come_back_when_all_of_shorter_ones_is_accepted(tells: bool) -> None:
    """An answer that begins to loop: nothing but blocks of 4 tells that blocks of 8 would be accepted."""
    controller = Controller(8, costs_of([[1.0, 1.2, 1.5, 2.4]] * 3, np.full((3, 3), 0.1)))
    states = [Acceptance() for _ in range(4)]
    blocks = []
    for step in range(60 * DEFAULTS.recorded_plan_steps):
        block = controller.plan(dict.fromkeys(states, 99)).block
        blocks.append(block)
        rate = 0.6 if step < 30 * DEFAULTS.recorded_plan_steps else 0.995
        num_tokens = min(block - 1, 1 if rate == 0.6 else 7)
        for state in states if block > 1 else ():
            draft = DraftTree.chain([0] * (block - 1), [log(rate)] * (block - 1) if tells else [])
            controller.observe([Drafted(state, block, draft, block - 1, block - 1, range(1 + num_tokens))])
    assert blocks[29 * DEFAULTS.recorded_plan_steps] < 8
    assert blocks[-1] == 8


def test_drafting_comes_back_after_a_bad_stretch_of_recorded_steps() -> None:
    """What came of a step is told after the next one is planned; a probe has to teach all the same."""
    controller = Controller(8, costs_of([[1.0, 1.2, 1.5, 2.4]] * 3, np.full((3, 3), 0.1)))
    states, untold, blocks = [Acceptance() for _ in range(4)], list[Drafted](), list[int]()
    for step in range(9000):
        block = controller.plan(dict.fromkeys(states, 99)).block
        controller.observe(untold)
        blocks.append(block)
        drafts = [0] * (block - 1), [log(0.7 if step < 3000 else 0.95)] * (block - 1)
        drafted = 0 if step < 3000 else block - 1
        every = states if block > 1 else []
        untold = [
            Drafted(state, block, DraftTree.chain(*drafts), block - 1, block - 1, range(1 + drafted))
            for state in every
        ]
    assert set(blocks[2900:2950]) == {1}
    assert blocks[-1] == 8


def test_each_shape_is_corrected_by_its_own_steps() -> None:
    """Now and then a step pays for a recording: that is no news of what steps take."""
    rng = random.Random(0)
    costs = costs_of(np.full((3, 4), 1.0), np.full((3, 3), 0.1))
    for _ in range(400):
        rare_s = 5.0 * (rng.random() < 0.05)
        costs.learn((4, 32), 1.5 + rare_s, (4, 32), 0.3 + rare_s)
        costs.learn((4, 4), 1.0, (0, 0), 0.0)
    assert costs.pace * float(costs.verify(4, 32)) == pytest.approx(1.5, rel=0.2)
    assert costs.pace * float(costs.verify(4, 4)) == pytest.approx(1.0, rel=0.2)
    assert costs.pace * float(costs.draft_seconds(4, 8)) == pytest.approx(0.3, rel=0.3)


def test_a_shape_that_is_rarely_tried_keeps_its_price_beside_one_that_is_disturbed_now_and_then() -> None:
    """By single steps the price of what is seldom run went its own way: 1.08 where the steps had 1.26."""
    for seed in range(8):
        rng = random.Random(seed)
        costs = costs_of(np.full((3, 4), 1.0), np.full((3, 3), 0.1))
        for step in range(3000):
            num_tokens, seconds = (16, 1.7) if step % 84 < 2 else (32, 2.2)
            disturbed = rng.uniform(1.2, 2.0) if rng.random() < 0.1 else 1.0
            costs.learn((4, num_tokens), seconds * disturbed * exp(rng.gauss(0.0, 0.02)), (0, 0), 0.0)
        found = float(costs.verify(4, 32) / costs.verify(4, 16))
        assert found == pytest.approx(2.2 / 1.7, rel=0.04)
