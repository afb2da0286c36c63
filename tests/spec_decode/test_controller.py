"""The controller with made-up costs and acceptance: what it chooses is known, or found by trying everything."""

import random
from itertools import product

import numpy as np
import pytest

from flashdraft.spec_decode.acceptance import Acceptance
from flashdraft.spec_decode.controller import Candidate, Controller, Others, Plan, _Search
from flashdraft.spec_decode.step_costs import Curve, StepCosts

BLOCK = 16
FREE, STEEP = 1e-4, 1.0  # seconds that one more token takes


def made_up_costs(token_s: float, draft_s: float = 0.1, fixed_s: float = 1.0) -> StepCosts:
    """A step of 1 second and ``token_s`` for each token after the first."""
    return StepCosts(
        Curve([1, 1000], [fixed_s, fixed_s + 999 * token_s]),
        Curve([1, 1000], [draft_s, draft_s + 999 * token_s / 10]),
    )


def request(controller: Controller, *rates: float, weight: float = 12.0) -> Acceptance:
    """One whose draft token i is accepted at ``rates[i]``; the last rate goes on."""
    state = controller.acceptance.new_request()
    state.rates[:] = [rates[min(i, len(rates) - 1)] for i in range(len(state.rates))]
    state.weights[:] = [weight] * len(state.weights)
    return state


def planned(controller: Controller, *states: Acceptance, most: int = 99) -> list[int]:
    return controller.plan([Candidate(state, most) for state in states]).lengths


def live(controller: Controller, rates: list[float], num_rounds: int, rng: random.Random) -> list[Plan]:
    """Rounds of requests whose draft tokens are accepted at ``rates``, each from a fresh start."""
    states = [controller.acceptance.new_request() for _ in rates]
    return [one_round(controller, states, rates, rng) for _ in range(num_rounds)]


def one_round(
    controller: Controller, states: list[Acceptance], rates: list[float], rng: random.Random
) -> Plan:
    plan = controller.plan([Candidate(state, 99) for state in states])
    for state, rate, length in zip(states, rates, plan.lengths, strict=True):
        if length > 1:
            accepted = 0
            while accepted < length - 1 and rng.random() < rate:
                accepted += 1
            controller.observe(state, plan.block, length - 1, accepted)
    return plan


def test_plain_decoding_where_drafting_does_not_pay() -> None:
    dear = Controller(BLOCK, made_up_costs(FREE, draft_s=5.0))
    assert planned(dear, request(dear, 0.6)) == [1]
    hopeless = Controller(BLOCK, made_up_costs(FREE, draft_s=0.1))
    assert planned(hopeless, request(hopeless, 0.01)) == [1]


def test_the_whole_block_where_all_is_accepted() -> None:
    controller = Controller(BLOCK, made_up_costs(FREE))
    assert planned(controller, request(controller, 0.99)) == [BLOCK]
    assert planned(controller, request(controller, 0.99), most=5) == [5], "the answer has no room for more"


def test_drafts_at_all_only_as_far_as_tokens_are_worth_it() -> None:
    controller = Controller(BLOCK, made_up_costs(0.05))
    assert planned(controller, request(controller, 0.9, 0.9, 0.02)) == [3]


def test_blocks_shorten_with_load() -> None:
    controller = Controller(BLOCK, made_up_costs(0.02))
    widths = [max(planned(controller, *[request(controller, 0.7) for _ in range(n)])) for n in (1, 4, 16, 64)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] >= 5
    assert widths[-1] <= 3


def test_blocks_shorten_with_context_where_context_is_dear() -> None:
    controller = Controller(BLOCK, made_up_costs(0.02))
    controller.costs.context_row_s, controller.costs.context_token_s = 1e-4, 1e-4
    lengths = []
    for context in (0, 2000, 100000):
        controller.costs.context = context
        lengths += planned(controller, request(controller, 0.7))
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[1] > lengths[2]
    controller.costs.context_token_s = 0.0
    assert planned(controller, request(controller, 0.7))[0] > lengths[0], "all it costs is for the row"


def test_the_length_drafted_is_a_choice_of_its_own() -> None:
    """Long drafts are better ones: worth it where they cost no more than short ones."""
    flat = Controller(BLOCK, made_up_costs(0.05), short_log_odds=-0.45)
    flat.costs.draft = Curve([1, 1000], [0.1, 0.1])
    plan = flat.plan([Candidate(request(flat, 0.9, 0.9, 0.02), 99)])
    assert (plan.block, plan.lengths) == (16, [3])
    steep = Controller(BLOCK, made_up_costs(0.05), short_log_odds=-0.45)
    steep.costs.draft = Curve([1, 1000], [0.1, 0.1 + 999 * 0.1])
    plan = steep.plan([Candidate(request(steep, 0.9, 0.9, 0.02), 99)])
    assert (plan.block, plan.lengths) == (4, [3])


def test_one_request_may_draft_and_its_neighbour_not() -> None:
    costs = made_up_costs(FREE)
    costs.draft_row_s, costs.logits_s = 0.3, 0.01
    controller = Controller(BLOCK, costs)
    good, bad = planned(controller, request(controller, 0.9), request(controller, 0.1))
    assert good > 8
    assert bad == 1


def test_dear_sampling_makes_that_request_verify_less() -> None:
    controller = Controller(BLOCK, made_up_costs(FREE))
    cheap, dear = request(controller, 0.8), request(controller, 0.8)
    dear.choose_s = 0.15
    lengths = planned(controller, cheap, dear)
    assert lengths[0] > lengths[1] > 1


@pytest.mark.parametrize("seed", range(30))
def test_nothing_beats_the_plan(seed: int) -> None:
    """All lengths of three requests and all blocks, tried one by one."""
    rng = random.Random(seed)
    costs = StepCosts(
        Curve([1, 4, 12], np.cumsum([rng.uniform(0.5, 2), rng.random(), rng.random()]).tolist()),
        Curve([2, 12], np.cumsum([rng.random(), rng.random()]).tolist()),
        verify_row_s=rng.random() / 5,
        draft_row_s=rng.random() / 5,
        logits_s=rng.random() / 20,
        host_s=rng.random(),
    )
    controller = Controller(4, costs)
    states = [request(controller, *(rng.random() for _ in range(3))) for _ in range(3)]
    candidates = [Candidate(state, rng.choice([1, 2, 3, 9])) for state in states]
    others = Others((3,) if seed % 3 == 0 else ())
    search = _Search(controller.acceptance, costs, candidates, others, controller.blocks)
    every = [
        search.evaluate(lengths, block)
        for lengths in product(*(range(1, min(c.most, 4) + 1) for c in candidates))
        for block in controller.blocks
        if block >= max(lengths)
    ]
    best = max(plan.num_tokens / plan.seconds for plan in every)
    found = controller.plan(candidates, others)
    assert found.num_tokens / found.seconds == pytest.approx(best, rel=1e-9)


def test_a_request_that_never_accepts_costs_little_more_than_plain_decoding() -> None:
    controller = Controller(BLOCK, made_up_costs(0.02, draft_s=0.5))
    rng = random.Random(0)
    live(controller, [0.0], 200, rng)  # the drafter is known by now
    plans = live(controller, [0.0], 400, rng)
    plain_s = float(controller.costs.verify_seconds(1, 1))
    assert sum(plan.seconds for plan in plans[20:]) < 1.02 * plain_s * len(plans[20:])
    assert sum(max(plan.lengths) > 1 for plan in plans[20:]) >= 2, "it is still asked now and then"


def test_drafting_comes_back_after_a_bad_stretch() -> None:
    controller = Controller(BLOCK, made_up_costs(0.02, draft_s=0.5))
    rng = random.Random(1)
    states = [controller.acceptance.new_request()]
    for _ in range(150):
        plan = one_round(controller, states, [0.0], rng)
    assert plan.lengths == [1]
    lengths = [one_round(controller, states, [0.95], rng).lengths[0] for _ in range(300)]
    assert max(lengths[-20:]) == min(lengths[-20:]) == BLOCK


def test_what_all_requests_accept_is_what_a_new_one_starts_from() -> None:
    controller = Controller(BLOCK, made_up_costs(0.02))
    live(controller, [0.95, 0.95], 80, random.Random(2))
    assert controller.acceptance.new_request().rates[0] > 0.9
    assert planned(controller, controller.acceptance.new_request()) == [BLOCK]


def test_rates_are_learned_by_position() -> None:
    controller = Controller(4, made_up_costs(FREE))
    state, rng = controller.acceptance.new_request(), random.Random(3)
    wanted = [0.9, 0.3, 0.8]
    sums = np.zeros(3)
    for round_idx in range(3000):
        accepted = next((i for i, rate in enumerate(wanted) if rng.random() >= rate), 3)
        controller.observe(state, 4, 3, accepted)
        sums += np.array(state.rates) if round_idx >= 500 else 0
    assert sums / 2500 == pytest.approx(wanted, abs=0.05)
    assert controller.acceptance.rates == pytest.approx(wanted, abs=0.1)


def test_what_a_shorter_block_is_known_to_lose_is_no_news_of_the_request() -> None:
    controller = Controller(BLOCK, made_up_costs(FREE), short_log_odds=-2.0)
    rng, state = random.Random(4), controller.acceptance.new_request()
    sums = np.zeros(2)
    for round_idx in range(2500):
        controller.observe(state, 4, 1, int(rng.random() < 0.5))
        if round_idx >= 500:
            sums += controller.acceptance.survival([state], (4, BLOCK))[:, 0, 0]
    short, whole = sums / 2000
    assert short == pytest.approx(0.5, abs=0.05)
    assert whole == pytest.approx(1 / (1 + np.exp(-2 * 3 / 4)), abs=0.05), (
        "odds of 1 at 4, of exp(2 x 3/4) at 16"
    )


def test_the_block_does_not_wander_where_nothing_changes() -> None:
    """Tiles of 8 tokens as on a CPU: 8 is best, though 16 accepts more; new requests come all the time."""
    tiles = Curve([1, 8, 9, 16], [9.0, 9.2, 12.4, 13.8])
    controller = Controller(BLOCK, StepCosts(tiles, Curve([2, 4, 8, 16], [2.0, 2.2, 2.7, 4.1])), -0.25)
    rng = random.Random(6)
    plans = [plan for _ in range(30) for plan in live(controller, [0.78], 40, rng)][200:]
    assert sum(plan.block == 8 and plan.lengths == [8] for plan in plans) >= 0.9 * len(plans)


def test_a_slower_machine_changes_no_choice_but_a_slower_shape_does() -> None:
    costs = made_up_costs(0.02)
    plain_s, whole_s, draft_s = (float(s) for s in (costs.verify(1), costs.verify(8), costs.draft(8)))
    for _ in range(300):
        costs.learn((1, 1, 0), 3 * plain_s, (0, 0), 0.0)
        costs.learn((1, 8, 7), 3 * whole_s, (1, 8), 3 * draft_s)
    assert costs.pace == pytest.approx(3, rel=0.2)
    assert float(costs.verify(8)) / float(costs.verify(1)) == pytest.approx(whole_s / plain_s, rel=0.05)

    curve = Curve([1, 8], [1.0, 1.1])
    costs = StepCosts(curve, Curve([1, 16], [0.1, 0.1]))
    for _ in range(500):
        costs.learn((1, 1, 0), 1.0, (0, 0), 0.0)
        costs.learn((1, 8, 7), 2.2, (0, 0), 0.0)
    assert curve.seconds[1] / curve.seconds[0] == pytest.approx(2.2, rel=0.1)


def test_a_drafter_that_was_measured_too_slow_is_not_shunned_for_ever() -> None:
    """Only blocks of 8 are drafted, and what is seen of them tells of 4 too."""
    costs = StepCosts(Curve([1, 16], [1.0, 1.1]), Curve([2, 4, 8, 16], [0.8, 0.8, 0.8, 0.8]))
    for _ in range(150):
        costs.learn((1, 8, 7), float(Curve([1, 16], [1.0, 1.1])(8)), (1, 8), 0.3)
    assert float(costs.draft(4)) / float(costs.verify(8)) == pytest.approx(0.3 / 1.05, rel=0.25)


def test_curves() -> None:
    curve = Curve([1, 4, 8], [1.0, 2.0, 4.0])
    assert curve([1, 2.5, 8, 16]).tolist() == [1.0, 1.5, 4.0, 8.0]
