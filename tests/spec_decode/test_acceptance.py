"""What drafts teach of the next ones, on made-up drafters whose luck is known."""

import random
from math import exp, log

import numpy as np
import pytest

from flashdraft.spec_decode.acceptance import Acceptance, AcceptanceModel, Drafted


def accepted(rate: float, num_tokens: int, rng: random.Random) -> int:
    return next((i for i in range(num_tokens) if rng.random() >= rate), num_tokens)


def test_what_confidence_is_worth_is_learned() -> None:
    """A drafter that is far too sure of itself."""
    model, rng = AcceptanceModel((4, 2)), random.Random(7)
    state = Acceptance()
    for _ in range(3000):
        odds = [rng.uniform(-1, 6) for _ in range(3)]
        draft = Drafted(state, 4, [-log(1 + exp(-one)) for one in odds], 3, 3)
        hits = [rng.random() < 1 / (1 + exp(1 - 0.5 * one)) for one in odds]
        model.foresee([draft])
        model.observe([draft._replace(num_accepted=next((i for i in range(3) if not hits[i]), 3))])
    assert model.offset == pytest.approx(-1, abs=0.3)
    assert model.slope == pytest.approx(0.5, abs=0.1)


def test_a_draft_is_foretold_by_the_one_before_it() -> None:
    """Streaks: what counts is what the last drafts were, more than what everybody's first ones were."""
    model = AcceptanceModel((4, 2))
    state, other = Acceptance(), Acceptance()
    for sure in (0.1, 0.1, 0.1, 0.95, 0.95):
        model.foresee([Drafted(state, 4, [log(sure)] * 3, 3)])
    model.foresee([Drafted(other, 4, [log(0.1)] * 3, 3)])
    first = model.offers([state, other, Acceptance()])[:, 0, 0, 0, 0]
    assert first[0] > 0.55
    assert first[1] < 0.3
    assert first[1] < first[2] < first[0]


def test_rates_are_learned_by_position() -> None:
    model, rng = AcceptanceModel((4, 2)), random.Random(3)
    wanted = [0.9, 0.3, 0.8]
    sums = np.zeros(3)
    for round_idx in range(3000):
        count = next((i for i, rate in enumerate(wanted) if rng.random() >= rate), 3)
        model.observe([Drafted(Acceptance(), 4, [], 3, 3, count)])
        sums += np.array(model.rates) if round_idx >= 500 else 0
    assert sums / 2500 == pytest.approx(wanted, abs=0.05)


def test_a_request_that_is_easier_to_draft_is_known_by_its_rounds() -> None:
    """Two of each kind; what is said of the next token against what it does, in the long run."""
    model, rng = AcceptanceModel((4, 2)), random.Random(5)
    states = [Acceptance() for _ in range(4)]
    rates = [0.9, 0.9, 0.4, 0.4]
    sums = np.zeros(4)
    for round_idx in range(1500):
        drafts = [
            Drafted(state, 4, [], 3, 3, accepted(rate, 3, rng))
            for state, rate in zip(states, rates, strict=True)
        ]
        model.observe(drafts)
        if round_idx >= 200:
            sums += model.offers(states)[:, 0, 0, 0, 0]
    assert sums / 1300 == pytest.approx(rates, abs=0.08)


def test_what_was_seen_long_ago_counts_for_little() -> None:
    model = AcceptanceModel((4, 2))
    state, new = Acceptance(), Acceptance()
    for _ in range(10):
        model.foresee([Drafted(state, 4, [log(0.98)] * 3, 3)])
    now, usual = model.offers([state, new])[:, 0, 0, 0, 0]
    state.num_plain = 200
    [later] = model.offers([state])[:, 0, 0, 0, 0]
    assert now > usual + 0.05
    assert later == pytest.approx(usual, abs=0.02)


def test_what_a_shorter_block_is_known_to_lose_is_no_news_of_the_request() -> None:
    model = AcceptanceModel((16, 8, 4), short_log_odds=-2.0)
    state = Acceptance()
    for _ in range(30):
        model.foresee([Drafted(state, 4, [log(0.5)] * 3, 3)])
    whole, _, short = model.offers([state])[0, :, 0, 0, 0]
    assert short == pytest.approx(0.5, abs=0.01)
    assert whole == pytest.approx(1 / (1 + exp(-2 * 3 / 4)), abs=0.01), (
        "odds of 1 at 4, of exp(2 x 3/4) at 16"
    )
