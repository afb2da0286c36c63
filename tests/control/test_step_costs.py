"""What steps cost, measured or made up, and what the steps themselves teach of it."""

import pytest

from flashdraft.control.step_costs import Curve, StepCosts


def made_up_costs(token_s: float, draft_s: float = 0.1, fixed_s: float = 1.0) -> StepCosts:
    """A step of 1 second and ``token_s`` for each token after the first."""
    return StepCosts(
        Curve([1, 1000], [fixed_s, fixed_s + 999 * token_s]),
        Curve([1, 1000], [draft_s, draft_s + 999 * token_s / 10]),
    )


def test_a_slower_machine_changes_no_choice_but_a_slower_shape_does() -> None:
    costs = made_up_costs(0.02)
    plain_s, whole_s, draft_s = (
        float(s) for s in (costs.verify(1, 1), costs.verify(1, 8), costs.draft(1, 8))
    )
    for _ in range(300):
        costs.learn((1, 1), 3 * plain_s, (0, 0), 0.0)
        costs.learn((1, 8), 3 * whole_s, (1, 8), 3 * draft_s)
    assert costs.pace == pytest.approx(3, rel=0.2)
    assert float(costs.verify(1, 8)) / float(costs.verify(1, 1)) == pytest.approx(whole_s / plain_s, rel=0.05)

    curve = Curve([1, 8], [1.0, 1.1])
    costs = StepCosts(curve, Curve([1, 16], [0.1, 0.1]))
    for _ in range(500):
        costs.learn((1, 1), 1.0, (0, 0), 0.0)
        costs.learn((1, 8), 2.2, (0, 0), 0.0)
    assert curve.seconds[1] / curve.seconds[0] == pytest.approx(2.2, rel=0.1)


def test_steps_that_cost_more_than_measured_do_not_make_others_look_dear() -> None:
    """Blocks of many requests are dearer than measured; plain decoding is what it was, though nobody does it now."""
    costs = StepCosts(
        Curve([1, 8, 32, 128], [7.0, 9.0, 30.0, 100.0]), Curve([2, 8, 32, 128], [2.0, 2.5, 7.0, 23.0])
    )
    plain_s, whole_s, draft_s = 30.0, 100.0, 23.0
    for _ in range(50):
        costs.learn((32, 32), plain_s, (0, 0), 0.0)
    for _ in range(50):
        costs.learn((32, 128), 1.4 * whole_s, (32, 128), 1.4 * draft_s)
    assert costs.pace * float(costs.verify(32, 32)) == pytest.approx(plain_s, rel=0.1)
    assert costs.pace * float(costs.verify(32, 128)) == pytest.approx(1.4 * whole_s, rel=0.05)
    assert costs.pace * float(costs.draft_seconds(32, 4)) == pytest.approx(1.4 * draft_s, rel=0.1)


def test_a_drafter_that_was_measured_too_slow_is_not_shunned_for_ever() -> None:
    """Only blocks of 8 are drafted, and what is seen of them tells of 4 too."""
    costs = StepCosts(Curve([1, 16], [1.0, 1.1]), Curve([2, 4, 8, 16], [0.8, 0.8, 0.8, 0.8]))
    for _ in range(150):
        costs.learn((1, 8), float(Curve([1, 16], [1.0, 1.1])(1, 8)), (1, 8), 0.3)
    assert float(costs.draft(1, 4)) / float(costs.verify(1, 8)) == pytest.approx(0.3 / 1.05, rel=0.25)


def test_curves() -> None:
    curve = Curve([1, 4, 8], [1.0, 2.0, 4.0])
    assert curve(1, [1, 2.5, 8, 16]).tolist() == [1.0, 1.5, 4.0, 8.0]
    assert [curve.shares(1, tokens).tolist() for tokens in (1, 4, 6, 8, 16)] == [
        [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0],
    ]  # fmt: skip
    curve.row_s = 0.5
    assert curve.shares(3, 4).tolist() == pytest.approx([0.0, 2 / 3, 0.0, 1 / 3]), (
        "two of three seconds are the point's"
    )
    assert float(curve(3, 8)) == pytest.approx(4.0 + 2 * 0.5)


def test_what_many_tokens_cost_does_not_bend_the_price_of_few() -> None:
    costs = made_up_costs(0.02)
    costs.verify = Curve([1, 8, 128, 256, 512, 1024], [7.0, 9.0, 100.0, 197.1, 391.2, 779.5])
    for _ in range(60):
        costs.learn((32, 512), 600.0, (0, 0), 0.0)  # 391 was expected
        costs.learn((32, 32), float(Curve([8, 128], [9.0, 100.0])(1, 32)), (0, 0), 0.0)
    assert costs.pace * float(costs.verify(32, 512)) == pytest.approx(600.0, rel=0.1)
    assert costs.pace * float(costs.verify(32, 32)) == pytest.approx(27.2, rel=0.05)


def test_what_steps_teach_never_makes_more_tokens_cheaper() -> None:
    """Five tokens are quick, and one is what it was measured to: nobody has done it since."""
    costs = StepCosts(Curve([1, 2, 5, 8], [8.9, 9.0, 9.2, 9.5]), Curve([2, 16], [2.0, 3.0]))
    for _ in range(40):
        costs.learn((1, 8), 9.5, (1, 16), 3.0)
        costs.learn((1, 5), 6.5, (1, 16), 3.0)
    learned = costs.verify.seconds.tolist()
    assert learned == sorted(learned)
    assert costs.pace * learned[2] == pytest.approx(6.5, rel=0.1)


def test_rows_that_were_measured_too_slow_are_corrected_apart_from_tokens() -> None:
    """Each row after the first was measured ten times as slow as it is; one row is what it was measured to be."""
    costs, true = (
        StepCosts(Curve([1, 8, 16], [7.0, 9.0, 12.0]), Curve([2, 16], [2.0, 3.0])) for _ in range(2)
    )
    costs.verify.row_s, true.verify.row_s = 5.0, 0.5
    for _ in range(30):
        for rows, tokens in ((1, 1), (8, 8), (1, 8), (8, 16)):
            costs.learn((rows, tokens), float(true.verify(rows, tokens)), (0, 0), 0.0)
    for rows, tokens in ((1, 1), (8, 8), (1, 8), (8, 16)):
        expected = pytest.approx(float(true.verify(rows, tokens)), rel=0.1)
        assert costs.pace * float(costs.verify(rows, tokens)) == expected


def test_a_step_that_is_faster_than_expected_is_believed_and_a_slower_one_only_in_part() -> None:
    for seen, expected in ((0.1, 0.1), (10.0, 2.0)):
        costs = made_up_costs(0.0)
        for _ in range(3):
            costs.learn((1, 1), 1.0, (0, 0), 0.0)
        before = costs.pace * float(costs.draft(1, 8))
        costs.learn((1, 1), 1.0, (1, 8), seen * before)
        assert costs.pace * float(costs.draft(1, 8)) / before == pytest.approx(expected, rel=0.2)
