"""The controller with made-up costs and acceptance: what it chooses is known, or found by trying everything."""

import random
from itertools import product

import numpy as np
import pytest

from flashdraft.spec_decode.acceptance import Acceptance, log_odds
from flashdraft.spec_decode.block_search import Candidate, Others, PaddedSearch, Plan, RaggedSearch
from flashdraft.spec_decode.controller import Controller
from flashdraft.spec_decode.step_costs import Curve, StepCosts

BLOCK = 16
FREE, STEEP = 1e-4, 1.0  # seconds that one more token takes


def made_up_costs(token_s: float, draft_s: float = 0.1, fixed_s: float = 1.0) -> StepCosts:
    """A step of 1 second and ``token_s`` for each token after the first."""
    return StepCosts(
        Curve([1, 1000], [fixed_s, fixed_s + 999 * token_s]),
        Curve([1, 1000], [draft_s, draft_s + 999 * token_s / 10]),
    )


def request(controller: Controller, *rates: float) -> Acceptance:
    """One whose draft token i is accepted at ``rates[i]``; the last rate goes on. A curve is everybody's."""
    model, state = controller.acceptance, Acceptance()
    if len(rates) > 1:
        model.log_odds = [log_odds(rates[min(i, len(rates) - 1)]) for i in range(len(model.log_odds))]
    else:
        model.log_odds = [0.0] * len(model.log_odds)
        state.lead = log_odds(rates[0])
    return state


def planned(controller: Controller, *states: Acceptance, most: int = 99) -> list[int]:
    return controller.plan([Candidate(state, most) for state in states]).lengths


def live(controller: Controller, rates: list[float], num_rounds: int, rng: random.Random) -> list[Plan]:
    """Rounds of requests whose draft tokens are accepted at ``rates``, each from a fresh start."""
    states = [Acceptance() for _ in rates]
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


@pytest.mark.parametrize("is_ragged", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_nothing_beats_the_plan(seed: int, is_ragged: bool) -> None:
    """All lengths of three requests and all blocks, tried one by one."""
    rng = random.Random(seed)
    costs = StepCosts(
        Curve([1, 4, 12], np.cumsum([rng.uniform(0.5, 2), rng.random(), rng.random()]).tolist()),
        Curve([2, 12], np.cumsum([rng.random(), rng.random()]).tolist()),
        verify_row_s=rng.random() / 5,
        draft_row_s=rng.random() / 5,
        logits_s=rng.random() / 20,
        host_s=rng.random(),
        is_ragged=is_ragged,
        observe_token_s=rng.random() / 20,
    )
    controller = Controller(4, costs)
    request(controller, *(rng.uniform(0.1, 0.9) for _ in range(3)))  # everybody's curve
    states = [Acceptance(lead=rng.uniform(-2, 2)) for _ in range(3)]
    candidates = [Candidate(state, rng.choice([1, 2, 3, 9]), rng.choice([1, 9])) for state in states]
    others = Others((3,) if seed % 3 == 0 else ())
    search = (RaggedSearch if is_ragged else PaddedSearch)(
        controller.acceptance, costs, candidates, others, controller.blocks
    )
    every = [
        search.evaluate(lengths, block)
        for lengths in product(*(range(1, min(c.most, 4) + 1) for c in candidates))
        for block in controller.blocks
        if block >= max(lengths)
    ]
    best = max(plan.num_tokens / plan.seconds for plan in every)
    found = controller.plan(candidates, others)
    assert found.num_tokens / found.seconds == pytest.approx(best, rel=1e-9)


def test_a_plan_outlasts_the_requests_that_end_but_not_one_that_joins() -> None:
    controller = Controller(BLOCK, made_up_costs(0.02))
    states = [request(controller, 0.8) for _ in range(4)]
    first = controller.plan([Candidate(state, 99) for state in states])
    assert len(set(first.lengths)) == 1
    left = controller.plan([Candidate(states[0], 2), Candidate(states[2], 99)])
    assert left.lengths == [2, first.lengths[2]], "as long as the answer has room for"
    assert left.seconds == first.seconds, "nothing was planned"
    joined = controller.plan([Candidate(state, 99) for state in (states[2], Acceptance())])
    assert joined.seconds < first.seconds, "of two requests"


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
    states = [Acceptance()]
    for _ in range(150):
        plan = one_round(controller, states, [0.0], rng)
    assert plan.lengths == [1]
    lengths = [one_round(controller, states, [0.95], rng).lengths[0] for _ in range(300)]
    assert max(lengths[-20:]) == min(lengths[-20:]) == BLOCK


def test_what_all_requests_accept_is_what_a_new_one_starts_from() -> None:
    controller = Controller(BLOCK, made_up_costs(0.02))
    rng = random.Random(2)
    for _ in range(40):
        live(controller, [0.95, 0.95], 10, rng)
    assert controller.acceptance.rates[0] > 0.9
    assert planned(controller, Acceptance()) == [BLOCK]


def test_odds_are_learned_by_position() -> None:
    controller, rng = Controller(4, made_up_costs(FREE)), random.Random(3)
    wanted = [0.9, 0.3, 0.8]
    sums = np.zeros(3)
    for round_idx in range(3000):
        accepted = next((i for i, rate in enumerate(wanted) if rng.random() >= rate), 3)
        controller.observe(Acceptance(), 4, 3, accepted)
        sums += np.array(controller.acceptance.rates) if round_idx >= 500 else 0
    assert sums / 2500 == pytest.approx(wanted, abs=0.05)


def test_a_request_that_is_easier_to_draft_is_known_by_its_rounds() -> None:
    """Two of each kind; what is said of the next token against what it does, in the long run, drawn to the middle."""
    controller, rng = Controller(4, made_up_costs(FREE)), random.Random(5)
    states = [Acceptance() for _ in range(4)]
    rates = [0.9, 0.9, 0.4, 0.4]
    sums = np.zeros(4)
    for round_idx in range(1500):
        for state, rate in zip(states, rates, strict=True):
            accepted = next((i for i in range(3) if rng.random() >= rate), 3)
            controller.observe(state, 4, 3, accepted)
        if round_idx >= 200:
            sums += controller.acceptance.survival(states, [4])[0, :, 0]
    assert sums / 1300 == pytest.approx(rates, abs=0.08)
    assert states[0].variance < 1, "what is known of it is less uncertain than of a new one"


def test_what_was_seen_long_ago_counts_for_little() -> None:
    controller = Controller(4, made_up_costs(FREE))
    state = request(controller, 0.95)
    [[now]] = controller.acceptance.survival([state], [4])[:, :, 0]
    state.num_plain = 100
    [[later]] = controller.acceptance.survival([state], [4])[:, :, 0]
    assert now == pytest.approx(0.95)
    assert later == pytest.approx(controller.acceptance.rates[0], abs=0.05)


def test_what_a_shorter_block_is_known_to_lose_is_no_news_of_the_request() -> None:
    controller = Controller(BLOCK, made_up_costs(FREE), short_log_odds=-2.0)
    rng, state = random.Random(4), Acceptance()
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
        costs.learn((1, 1, 1), 3 * plain_s, (0, 0), 0.0)
        costs.learn((1, 8, 8), 3 * whole_s, (1, 8), 3 * draft_s)
    assert costs.pace == pytest.approx(3, rel=0.2)
    assert float(costs.verify(8)) / float(costs.verify(1)) == pytest.approx(whole_s / plain_s, rel=0.05)

    curve = Curve([1, 8], [1.0, 1.1])
    costs = StepCosts(curve, Curve([1, 16], [0.1, 0.1]))
    for _ in range(500):
        costs.learn((1, 1, 1), 1.0, (0, 0), 0.0)
        costs.learn((1, 8, 8), 2.2, (0, 0), 0.0)
    assert curve.seconds[1] / curve.seconds[0] == pytest.approx(2.2, rel=0.1)


def test_steps_that_cost_more_than_measured_do_not_make_others_look_dear() -> None:
    """Blocks of many requests are dearer than measured; plain decoding is what it was, though nobody does it now."""
    costs = StepCosts(
        Curve([1, 8, 32, 128], [7.0, 9.0, 30.0, 100.0]), Curve([2, 8, 32, 128], [2.0, 2.5, 7.0, 23.0])
    )
    plain_s, whole_s, draft_s = 30.0, 100.0, 23.0
    for _ in range(50):
        costs.learn((32, 32, 32), plain_s, (0, 0), 0.0)
    for _ in range(50):
        costs.learn((32, 128, 128), 1.4 * whole_s, (32, 4), 1.4 * draft_s)
    assert costs.pace * float(costs.forward_seconds(32, 32)) == pytest.approx(plain_s, rel=0.1)
    assert costs.pace * float(costs.forward_seconds(32, 128)) == pytest.approx(1.4 * whole_s, rel=0.05)
    assert costs.pace * float(costs.draft_seconds(32, 4)) == pytest.approx(1.4 * draft_s, rel=0.1)


def test_what_the_drafter_has_to_catch_up_with_counts() -> None:
    for is_ragged in (False, True):
        costs = made_up_costs(0.02)
        costs.observe_token_s, costs.is_ragged = 0.1, is_ragged

        def length(num_pending: int, costs: StepCosts = costs) -> int:
            controller = Controller(BLOCK, costs)
            return controller.plan([Candidate(request(controller, 0.9), 99, num_pending)]).lengths[0]

        assert length(3) > 4
        assert length(300) == 1
        for _ in range(30):
            costs.learn_observe(300, 0.3)
        assert length(300) > 4, "it was quicker than was thought"


def test_rows_without_padding_are_paid_by_their_tokens() -> None:
    """One request of sixteen is easy: with padding it would cost fifteen others its width."""
    lengths = []
    for is_ragged in (False, True):
        controller = Controller(BLOCK, made_up_costs(0.02, draft_s=0.01))
        controller.costs.is_ragged = is_ragged
        states = [request(controller, rate) for rate in (0.98, *[0.05] * 15)]
        lengths.append(planned(controller, *states))
    padded, ragged = lengths
    assert padded == [1] * 16
    assert ragged[0] > 8
    assert ragged[1:] == [1] * 15


def test_a_drafter_that_was_measured_too_slow_is_not_shunned_for_ever() -> None:
    """Only blocks of 8 are drafted, and what is seen of them tells of 4 too."""
    costs = StepCosts(Curve([1, 16], [1.0, 1.1]), Curve([2, 4, 8, 16], [0.8, 0.8, 0.8, 0.8]))
    for _ in range(150):
        costs.learn((1, 8, 8), float(Curve([1, 16], [1.0, 1.1])(8)), (1, 8), 0.3)
    assert float(costs.draft(4)) / float(costs.verify(8)) == pytest.approx(0.3 / 1.05, rel=0.25)


def test_curves() -> None:
    curve = Curve([1, 4, 8], [1.0, 2.0, 4.0])
    assert curve([1, 2.5, 8, 16]).tolist() == [1.0, 1.5, 4.0, 8.0]
    longer = curve.reaching(20)
    assert longer.num_tokens.tolist() == [1, 4, 8, 16, 32]
    assert longer.seconds.tolist() == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert curve.terms(6).tolist() == [0.0, 1.0, 2.0]
    assert [float(curve.terms(tokens).sum()) for tokens in (0.5, 1, 2.5, 8, 16)] == [1.0, 1.0, 1.5, 4.0, 8.0]


def test_what_many_tokens_cost_does_not_bend_the_price_of_few() -> None:
    costs = made_up_costs(0.02)
    costs.verify = Curve([1, 8, 128], [7.0, 9.0, 100.0]).reaching(1024)
    for _ in range(60):
        costs.learn((32, 512, 512), 600.0, (0, 0), 0.0)  # 391 was expected
        costs.learn((32, 32, 32), float(Curve([8, 128], [9.0, 100.0])(32)), (0, 0), 0.0)
    assert costs.pace * float(costs.forward_seconds(32, 512)) == pytest.approx(600.0, rel=0.1)
    assert costs.pace * float(costs.forward_seconds(32, 32)) == pytest.approx(27.2, rel=0.05)
