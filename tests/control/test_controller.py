"""The controller with made-up costs and acceptance: what it chooses is known, or found by trying everything."""

import random
from itertools import product
from math import exp, log

import numpy as np
import pytest

from flashdraft.control.acceptance import Acceptance, Drafted
from flashdraft.control.config import DEFAULTS
from flashdraft.control.controller import Controller, Plan
from flashdraft.control.step_costs import Curve, StepCosts
from flashdraft.spec_decode.tree import DraftTree

BLOCK = 16
FREE, STEEP = 1e-4, 1.0  # seconds that one more token takes


def made_up_costs(token_s: float, draft_s: float = 0.1, is_ragged: bool = False) -> StepCosts:
    """A step of 1 second and ``token_s`` for each token after the first."""
    return StepCosts(
        Curve([1, 1000], [1.0, 1.0 + 999 * token_s]),
        Curve([1, 1000], [draft_s, draft_s + 999 * token_s / 10]),
        is_ragged=is_ragged,
    )


def chain(log_probs: list[float], num_tokens: int = 0) -> DraftTree:
    """One of ``num_tokens`` where its drafter does not tell how sure it is."""
    return DraftTree.chain([0] * (len(log_probs) or num_tokens), log_probs)


def log_odds(chance: float) -> float:
    return log(chance / (1 - chance))


def request(controller: Controller, *rates: float) -> Acceptance:
    """One whose draft token i is known to be accepted at ``rates[i]``; the last rate goes on."""
    num_tokens = controller.acceptance.max_block - 1
    own = [rates[min(i, len(rates) - 1)] for i in range(num_tokens)]
    fits = np.arange(1, num_tokens + 1) < np.array(controller.acceptance.blocks)[:, None]
    return Acceptance(np.where(fits, np.cumprod(own), 0.0))


def cut(controller: Controller, plan: Plan, states: list[Acceptance], most: int = 99) -> list[int]:
    """Tokens verified of each, by a drafter that does not tell how sure it is."""
    planned = [min(plan.length(state), most) for state in states]
    drafts = [
        Drafted(state, plan.block, chain([], length - 1), length - 1)
        for state, length in zip(states, planned, strict=True)
        if length > 1
    ]
    if not drafts:
        return planned
    lengths = iter(controller.select(drafts, [1] * planned.count(1)))
    return [1 + next(lengths) if length > 1 else 1 for length in planned]


def planned(controller: Controller, *states: Acceptance, most: int = 99) -> list[int]:
    plan = controller.plan(dict.fromkeys(states, most))
    return cut(controller, plan, list(states), most)


def live(controller: Controller, rates: list[float], num_rounds: int, rng: random.Random) -> list[list[int]]:
    """Rounds of requests whose draft tokens are accepted at ``rates``, each from a fresh start: tokens verified."""
    states = [Acceptance() for _ in rates]
    return [one_round(controller, states, rates, rng)[1] for _ in range(num_rounds)]


def one_round(
    controller: Controller, states: list[Acceptance], rates: list[float], rng: random.Random
) -> tuple[Plan, list[int]]:
    plan = controller.plan(dict.fromkeys(states, 99))
    lengths = cut(controller, plan, states)
    drafts = []
    for state, rate, length in zip(states, rates, lengths, strict=True):
        most = plan.length(state)
        if most > 1:
            draft = Drafted(state, plan.block, chain([], most - 1), most - 1, length - 1)
            drafts.append(draft._replace(path=range(1 + accepted(rate, length - 1, rng))))
    if drafts:
        controller.observe(drafts)
    return plan, lengths


def accepted(rate: float, num_tokens: int, rng: random.Random) -> int:
    return next((i for i in range(num_tokens) if rng.random() >= rate), num_tokens)


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


def test_the_length_drafted_is_a_choice_of_its_own() -> None:
    """Long drafts are worth it where they cost no more than short ones."""
    for token_s, block in ((0.0, 16), (0.1, 4)):
        controller = Controller(BLOCK, made_up_costs(0.05))
        controller.costs.draft = Curve([1, 1000], [0.1, 0.1 + 999 * token_s])
        state = request(controller, 0.9, 0.9, 0.02)
        plan = controller.plan({state: 99})
        assert plan.block == block
        assert cut(controller, plan, [state]) == [3]


@pytest.mark.parametrize("is_ragged", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_nothing_beats_the_plan(seed: int, is_ragged: bool) -> None:
    """Three requests: who drafts, how long a block, and all lengths (or all prices of a token), tried one by one."""
    rng = random.Random(seed)
    verify = Curve([1, 4, 12], np.cumsum([rng.uniform(0.5, 2), rng.random(), rng.random()]).tolist())
    draft = Curve([2, 12], np.cumsum([rng.random(), rng.random()]).tolist())
    costs = StepCosts(verify, draft, is_ragged=is_ragged)
    controller = Controller(4, costs)
    rates = [sorted((rng.uniform(0.1, 0.9) for _ in range(3)), reverse=True) for _ in range(3)]
    chances = np.cumprod(rates, axis=1).tolist()
    most = {request(controller, *own): rng.choice([1, 2, 3, 9]) for own in rates}
    others = (3,) if seed % 3 == 0 else ()

    def rate(lengths: tuple[int, ...], block: int) -> float:
        """Of a step, by definition; a request with 0 does not draft, one with 1 drafts in vain."""
        verified = [max(length, 1) for length in lengths]
        num_accepted = sum(sum(own[: length - 1]) for own, length in zip(chances, verified, strict=True))
        num_rows, num_drafting = 3 + len(others), sum(length > 0 for length in lengths) + len(others)
        seconds = float(costs.draft_seconds(num_drafting, max(block, *others, 1)))
        every = [*verified, *others]
        num_tokens = sum(every) if is_ragged else num_rows * max(every)
        return (num_rows + num_accepted) / (seconds + float(costs.verify(num_rows, num_tokens)))

    every = [rate((0, 0, 0), 1)]
    for block in controller.acceptance.blocks:
        longest = [min(room, block) for room in most.values()]
        if not is_ragged:  # all draft, and the forward is as wide as is best
            ranges = [range(1, room + 1) if room > 1 else [0] for room in longest]
            every += [rate(lengths, block) for lengths in product(*ranges) if max(lengths) > 1]
        for who in product(*([0, 1] if room > 1 else [0] for room in longest)):
            if is_ragged:
                for price in DEFAULTS.prices:
                    lengths = [
                        drafts * (1 + sum(chance > price for chance in own[: room - 1]))
                        for drafts, own, room in zip(who, chances, longest, strict=True)
                    ]
                    every.append(rate(tuple(lengths), block))
    plan = controller.plan(most, others)
    # Without padding who comes first is a guess: a request that wins more may verify more tokens too.
    assert (0.99 if is_ragged else 1 - 1e-6) * max(every) < plan.rate < (1 + 1e-6) * max(every)


@pytest.mark.parametrize("is_ragged", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_nothing_beats_what_is_verified_of_drafts_that_are_there(seed: int, is_ragged: bool) -> None:
    rng = random.Random(seed)
    seconds = np.cumsum([rng.random() for _ in range(20)]).tolist()
    costs = StepCosts(Curve(range(1, 21), seconds), Curve([2, 20], [rng.random()] * 2), is_ragged=is_ragged)
    controller = Controller(5, costs)
    rates = [[rng.random() for _ in range(4)] for _ in range(3)]
    states, chances = [request(controller, *own) for own in rates], np.cumprod(rates, axis=1).tolist()
    plan = controller.plan(dict.fromkeys(states, 99), others=(2,))
    drafts = [Drafted(state, 5, chain([], 4), 4) for state in states]

    def value(lengths: tuple[int, ...]) -> float:
        gained = sum(sum(own[:length]) for own, length in zip(chances, lengths, strict=True))
        num_tokens = 5 + sum(lengths) if is_ragged else 4 * (1 + max(*lengths, 1))
        return gained - plan.rate * float(costs.verify(4, num_tokens))

    found = tuple(controller.select(drafts, [2]))
    assert value(found) == pytest.approx(max(map(value, product(range(5), repeat=3))))


def test_of_a_draft_that_is_there_what_the_drafter_is_sure_of_is_verified() -> None:
    controller = Controller(BLOCK, made_up_costs(0.05, is_ragged=True))
    sure, unsure = log(0.98), log(0.02)
    states = [Acceptance(), Acceptance()]
    controller.plan(dict.fromkeys(states, 99))
    drafts = [
        Drafted(states[0], BLOCK, chain([sure] * 6 + [unsure] * 9), 15),
        Drafted(states[1], BLOCK, chain([unsure] * 15), 15),
    ]
    assert controller.select(drafts, []) == [6, 0]
    assert controller.select([drafts[0]._replace(num_tokens=3)], []) == [3], "the answer has no room for more"
    controller.costs.verify = Curve([1, 1000], [1.0, 1.0 + 999 * 2.0])
    controller.plan(dict.fromkeys([*states, Acceptance()], 99))
    assert controller.select(drafts, [1]) == [0, 0], "nothing is worth its time"


def test_a_plan_outlasts_the_requests_that_end_but_not_one_that_joins() -> None:
    controller = Controller(BLOCK, made_up_costs(0.02))
    states = [request(controller, 0.8) for _ in range(4)]
    first = controller.plan(dict.fromkeys(states, 99))
    assert [first.length(state) for state in states] == [first.block] * 4
    assert controller.plan(dict.fromkeys([states[0], states[2]], 99)) is first
    served = [controller.plan(dict.fromkeys(states, 99)) is first for _ in range(DEFAULTS.plan_steps - 1)]
    assert served == [True] * (DEFAULTS.plan_steps - 2) + [False], "it is spent"
    second = controller.plan(dict.fromkeys(states, 99))
    assert controller.plan(dict.fromkeys([states[2], Acceptance()], 99)) is not second
    third = controller.plan(dict.fromkeys(states, 99))
    assert controller.plan(dict.fromkeys(states, 99), others=[8]) is not third


def test_a_plan_needs_nothing_of_the_step_before_it() -> None:
    """The host is a step behind: what came of a step is told when the next one is planned. It costs little."""
    rates = []
    for delay in (0, 1):
        controller, rng = (
            Controller(BLOCK, made_up_costs(0.02, draft_s=0.3, is_ragged=True)),
            random.Random(3),
        )
        states, seconds, tokens = [Acceptance() for _ in range(4)], 0.0, 0
        late: list[list[Drafted]] = []
        for turn in range(800):
            sure = 0.95 if turn // 100 % 2 else 0.2
            plan = controller.plan(dict.fromkeys(states, 99))
            drafts = [
                Drafted(state, plan.block, chain([log(sure)] * (plan.block - 1)), plan.block - 1)
                for state in states
                if plan.length(state) > 1
            ]
            verified = controller.select(drafts, [1] * (4 - len(drafts))) if drafts else []
            late.append(
                [
                    draft._replace(num_verified=count, path=range(1 + accepted(sure, count, rng)))
                    for draft, count in zip(drafts, verified, strict=True)
                ]
            )
            tokens += 4 + sum(len(draft.path) - 1 for draft in late[-1])
            seconds += float(controller.costs.verify(4, 4 + sum(verified)))
            seconds += float(controller.costs.draft_seconds(len(drafts), plan.block))
            if len(late) > delay and (told := late.pop(0)):
                controller.observe(told)
        rates.append(tokens / seconds)
    assert rates[1] > 0.9 * rates[0]
    assert rates[1] > 1.2 * 4 / float(controller.costs.verify(4, 4)), "and plain decoding is far behind"


def test_a_request_that_never_accepts_costs_little_more_than_plain_decoding() -> None:
    controller = Controller(BLOCK, made_up_costs(0.02, draft_s=0.5))
    rng = random.Random(0)
    live(controller, [0.0], 200, rng)  # the drafter is known by now
    states = [Acceptance()]
    costs, rounds = controller.costs, [one_round(controller, states, [0.0], rng) for _ in range(400)]
    plain_s = float(costs.verify(1, 1))
    drafting = [(plan.block, length) for plan, [length] in rounds[20:] if plan.block > 1]
    extra_s = sum(
        float(costs.draft_seconds(1, block) + costs.verify(1, n)) - plain_s for block, n in drafting
    )
    assert extra_s < 0.02 * plain_s * len(rounds[20:])
    assert len(drafting) >= 2, "it is still asked now and then"


def test_drafting_comes_back_after_a_bad_stretch() -> None:
    controller = Controller(BLOCK, made_up_costs(0.02, draft_s=0.5))
    rng = random.Random(1)
    states = [Acceptance()]
    for _ in range(150):
        _, lengths = one_round(controller, states, [0.0], rng)
    assert lengths == [1]
    every = [one_round(controller, states, [0.95], rng)[1][0] for _ in range(300)]
    assert max(every[-20:]) == BLOCK
    assert min(every[-20:]) > 8


def test_what_all_requests_accept_is_what_a_new_one_starts_from() -> None:
    controller = Controller(BLOCK, made_up_costs(0.02))
    rng = random.Random(2)
    for _ in range(40):
        live(controller, [0.95, 0.95], 10, rng)
    assert controller.acceptance.usual[0, 0] > 0.9
    assert planned(controller, Acceptance())[0] > 10


def test_the_block_does_not_wander_where_nothing_changes() -> None:
    """Tiles of 8 tokens as on a CPU: 8 is best, though 16 accepts more; new requests come all the time."""
    tiles = Curve([1, 8, 9, 16], [9.0, 9.2, 12.4, 13.8])
    controller = Controller(BLOCK, StepCosts(tiles, Curve([2, 4, 8, 16], [2.0, 2.2, 2.7, 4.1])))
    rng = random.Random(6)
    plans = []
    for _ in range(30):
        states = [Acceptance()]
        for _ in range(40):
            plan = controller.plan({states[0]: 99})
            odds = [rng.gauss(2, 1.5) for _ in range(plan.block - 1)]
            log_probs = [-log(1 + exp(-one)) for one in odds]
            draft = Drafted(states[0], plan.block, chain(log_probs), plan.block - 1)
            [length] = controller.select([draft], [])
            hits = [rng.random() < 1 / (1 + exp(-0.8 * one)) for one in odds]
            count = next((i for i in range(length) if not hits[i]), length)
            controller.observe([draft._replace(num_verified=length, path=range(1 + count))])
            plans.append((plan.block, length))
    assert sum(block == 8 for block, _ in plans[200:]) >= 0.9 * len(plans[200:])
    assert 5 < sum(length for _, length in plans[200:]) / len(plans[200:]) <= 7


def test_rows_without_padding_are_paid_by_their_tokens() -> None:
    """One request of sixteen is easy: with padding it would cost fifteen others its width."""
    lengths = []
    for is_ragged in (False, True):
        controller = Controller(BLOCK, made_up_costs(0.02, 0.01, is_ragged))
        states = [request(controller, rate) for rate in (0.98, *[0.05] * 15)]
        lengths.append(planned(controller, *states))
    padded, ragged = lengths
    assert padded == [1] * 16
    assert ragged[0] > 8
    assert ragged[1:] == [1] * 15
