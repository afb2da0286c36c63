"""Prices of recorded steps: what is measured is what is charged, padding and all; the steps teach the host's part."""

import random
from math import log

import numpy as np
import pytest

from flashdraft.control.acceptance import Acceptance, Drafted
from flashdraft.control.block_search import Candidate, Others
from flashdraft.control.config import DEFAULTS
from flashdraft.control.controller import Controller
from flashdraft.control.recorded_costs import RecordedCosts, ShapeTable
from flashdraft.spec_decode.tree import DraftTree

ROWS, WIDTHS, BLOCKS, KEYS = (1, 2, 4), (1, 2, 4, 8), (2, 4, 8), (256, 1024)


def random_seconds(rng: random.Random, *shape: int) -> np.ndarray:
    """Any, but with more rows and more keys no less."""
    cells = [rng.random() for _ in range(int(np.prod(shape)))]
    return np.array(cells).reshape(shape).cumsum(axis=0).cumsum(axis=1)


def costs_of(verify: object, draft: object) -> RecordedCosts:
    tables = ShapeTable(KEYS, ROWS, WIDTHS, verify), ShapeTable(KEYS, ROWS, BLOCKS, draft)  # type: ignore[arg-type]
    curves = [table.curve() for table in tables]
    return RecordedCosts(*curves, verify_table=tables[0], draft_table=tables[1], measured_context=128)


def padded(number: int) -> int:
    return next(power for power in (1, 2, 4, 8, 16, 32) if power >= number)


@pytest.mark.parametrize("seed", range(3))
def test_a_step_costs_what_its_padded_shape_was_measured_to(seed: int) -> None:
    rng = random.Random(seed)
    verify, draft = random_seconds(rng, 2, 3, 4), random_seconds(rng, 2, 3, 3)
    costs = costs_of(verify, draft)
    costs.verify_row_s = costs.draft_row_s = costs.observe_row_s = 0.0
    for context, share in ((0, 0.0), (100, 0.0), (300, 256 / 768), (800, 1.0), (1500, 1792 / 768)):
        costs.context = context
        for rows in (1, 2, 3, 4):
            at = padded(rows).bit_length() - 1
            for table, widths, found in (
                (verify, range(1, 9), costs.verify_seconds(rows, np.arange(1, 9)).tolist()),
                (draft, BLOCKS, [float(costs.draft_seconds(rows, block)) for block in BLOCKS]),
            ):
                for width, seconds in zip(widths, found, strict=True):
                    few, many = table[:, at, padded(width).bit_length() - (1 if table is verify else 2)]
                    assert seconds == pytest.approx(few + share * (many - few)), (context, rows, width)
    assert costs.draft_seconds([0, 2], 4).tolist() == [0.0, float(costs.draft_seconds(2, 4))]


def test_more_rows_than_were_measured_cost_in_proportion_and_wider_forwards_by_their_tokens() -> None:
    verify = np.array([[[1.0, 1, 1, 2], [2, 2, 2, 4], [3, 3, 3, 8]]] * 2)
    costs = costs_of(verify, verify[:, :, 1:])
    costs.verify_row_s = costs.draft_row_s = costs.observe_row_s = 0.0
    assert costs.verify_seconds(8, [1, 8]).tolist() == [3 + 2 * 1, 8 + 2 * 4]
    assert costs.draft_seconds([4, 6, 8], 8).tolist() == [8, 12, 16]
    assert float(costs.verify_seconds(1, 64)) == 16, "a line through 16 tokens at 4 and 32 at 8"


def test_within_a_recorded_width_every_token_is_verified() -> None:
    flat = np.array([[[1.0, 1.1, 1.2, 3.0]] * 3] * 2)
    controller = Controller(8, costs_of(flat, np.full((2, 3, 3), 0.1)))
    states = [Acceptance() for _ in range(3)]
    drafts = [
        Drafted(state, 8, DraftTree.chain([0] * 7, [log(rate)] * 7), 7)
        for state, rate in zip(states, (0.7, 0.5, 0.2), strict=True)
    ]
    controller.acceptance.foresee(drafts)
    plan = controller.plan([Candidate(states[0], 2), *(Candidate(state, 99) for state in states[1:])])
    assert plan.lengths == [2, 4, 4], "what a width of 4 holds; the next one would cost twice as much"
    assert controller.select([draft._replace(num_tokens=3) for draft in drafts], Others()) == [3] * 3, (
        "as planned"
    )


def test_a_recorded_plan_stands_for_who_joins_and_its_last_step_teaches() -> None:
    flat = np.array([[[1.0, 1.1, 1.2, 1.3]] * 3] * 2)
    controller = Controller(8, costs_of(flat, np.full((2, 3, 3), 0.1)))
    first, second = Acceptance(), Acceptance()
    num_drafts = []
    for _ in range(DEFAULTS.plan_steps):
        plan = controller.plan([Candidate(first, 99), Candidate(second, 3)])
        assert plan.lengths == [8, 3]
        controller.observe([Drafted(first, 8, DraftTree.chain([0] * 7, [log(0.9)] * 7), 7, 7, range(3))])
        num_drafts.append(len(first.news))
        second = Acceptance()
    assert num_drafts == [0] * (DEFAULTS.plan_steps - 1) + [1]


def test_steps_teach_what_the_host_adds() -> None:
    """Now and then a step pays for a recording: that is no news of what steps take."""
    rng = random.Random(0)
    costs = costs_of(np.full((2, 3, 4), 1.0), np.full((2, 3, 3), 0.1))
    for _ in range(400):
        rare_s = 5.0 * (rng.random() < 0.15)
        costs.learn((4, 32, 32), 1.5 + rare_s, (2, 4), 0.3 + rare_s)
        costs.learn_observe(rng.randrange(2, 9), 0.1 + rare_s)
        costs.learn((9, 270, 9), 1.0, (0, 0), 0.0)  # wider than any: nothing is learned
    assert float(costs.verify_seconds(4, 8)) == pytest.approx(1.5, rel=0.15)
    assert float(costs.verify_seconds(4, 1)) == pytest.approx(1.5, rel=0.15), (
        "the host adds to every shape alike"
    )
    assert float(costs.verify_seconds(1, 1)) < float(costs.verify_seconds(4, 1)), (
        "but less where rows are few"
    )
    assert float(costs.draft_seconds(2, 8)) == pytest.approx(0.4, rel=0.2)
