"""What drafts teach of the next ones, on made-up drafters whose luck is known."""

import random
from dataclasses import replace
from math import exp, inf, log, nan

import numpy as np
import pytest

from flashdraft.control.acceptance import Acceptance, AcceptanceModel, Drafted, confidence
from flashdraft.control.config import DEFAULTS
from flashdraft.spec_decode.tree import DraftTree


def chain(log_probs: list[float], num_tokens: int = 0) -> DraftTree:
    """One of ``num_tokens`` where its drafter does not tell how sure it is."""
    return DraftTree.chain([0] * (len(log_probs) or num_tokens), log_probs)


def accepted(rate: float, num_tokens: int, rng: random.Random) -> int:
    return next((i for i in range(num_tokens) if rng.random() >= rate), num_tokens)


def test_what_confidence_is_worth_is_learned() -> None:
    """A drafter that is far too sure of itself."""
    model, rng = AcceptanceModel((4, 2)), random.Random(7)
    state = Acceptance()
    for _ in range(3000):
        odds = [rng.uniform(-1, 6) for _ in range(3)]
        draft = Drafted(state, 4, chain([-log(1 + exp(-one)) for one in odds]), 3, 3)
        hits = [rng.random() < 1 / (1 + exp(1 - 0.5 * one)) for one in odds]
        model.foresee([draft])
        model.observe([draft._replace(path=range(1 + next((i for i in range(3) if not hits[i]), 3)))])
    assert model.weights[0] == pytest.approx(-1, abs=0.3)
    assert model.weights[1] == pytest.approx(0.5, abs=0.1)


def test_the_first_draft_that_fails_after_many_that_never_did_changes_little() -> None:
    config = replace(DEFAULTS, kept_calibration=0.9)  # forgets in 500 steps what takes 100,000 else
    model = AcceptanceModel((4, 2), config)
    draft = Drafted(Acceptance(), 4, chain([-1e-4] * 3), 3, 3, range(4))
    for _ in range(500):
        model.observe([draft])
    before = model.weights
    model.observe([draft._replace(path=range(1))])
    assert np.abs(np.subtract(model.weights, before)).max() < 2
    [chances] = model.foresee([draft])
    assert 0 < chances[2] <= chances[0] < 1


@pytest.mark.parametrize("log_prob", [nan, -inf])
def test_a_draft_of_no_numbers_spoils_nothing(log_prob: float) -> None:
    model = AcceptanceModel((4, 2))
    draft = Drafted(Acceptance(), 4, chain([log_prob] * 3), 3, 3)
    [chances] = model.foresee([draft])
    assert 0 < chances[0] < 0.01
    model.observe([draft])
    assert np.isfinite(model.weights).all()
    assert np.isfinite(model.usual).all()


def test_a_draft_is_foretold_by_the_one_before_it() -> None:
    """Streaks: what counts is what the last drafts were, more than what everybody's first ones were."""
    model = AcceptanceModel((4, 2))
    state, other = Acceptance(), Acceptance()
    for sure in (0.1, 0.1, 0.1, 0.95, 0.95, 0.95):
        model.foresee([Drafted(state, 4, chain([log(sure)] * 3), 3)])
        model.foresee([Drafted(other, 4, chain([log(0.1)] * 3), 3)])
    first = model.expected([state, other, Acceptance()])[0, :, 0]
    assert first[0] > 0.55
    assert first[1] < 0.3
    assert first[1] < first[2] < first[0]


def test_rates_are_learned_by_position() -> None:
    model, rng = AcceptanceModel((4, 2)), random.Random(3)
    wanted = [0.9, 0.3, 0.8]
    sums = np.zeros(3)
    for round_idx in range(3000):
        count = next((i for i, rate in enumerate(wanted) if rng.random() >= rate), 3)
        model.observe([Drafted(Acceptance(), 4, chain([], 3), 3, 3, range(1 + count))])
        sums += model.usual[0] if round_idx >= 500 else 0
    assert sums / 2500 == pytest.approx(np.cumprod(wanted), abs=0.05)


def test_a_request_that_is_easier_to_draft_is_known_by_its_rounds() -> None:
    """Two of each kind; what is said of the next token against what it does, in the long run."""
    model, rng = AcceptanceModel((4, 2)), random.Random(5)
    states = [Acceptance() for _ in range(4)]
    rates = [0.9, 0.9, 0.4, 0.4]
    sums = np.zeros(4)
    for round_idx in range(1500):
        drafts = [
            Drafted(state, 4, chain([], 3), 3, 3, range(1 + accepted(rate, 3, rng)))
            for state, rate in zip(states, rates, strict=True)
        ]
        model.observe(drafts)
        if round_idx >= 200:
            sums += model.expected(states)[0, :, 0]
    assert sums / 1300 == pytest.approx(rates, abs=0.08)


def random_tree(rng: random.Random, num_tokens: int, most_depth: int) -> DraftTree:
    """The first to follow each token of the chain is the chain's next, as of trees that are drawn best first."""
    tree, depths = DraftTree(), [0]
    while len(tree) < num_tokens:
        parent = rng.randrange(len(tree) + 1)
        if depths[parent] < most_depth:
            tree.token_ids.append(len(tree))
            tree.parents.append(parent)
            tree.log_probs.append(log(rng.uniform(0.05, 0.95)))
            depths.append(depths[parent] + 1)
    return tree


def test_a_tree_is_as_likely_as_its_paths() -> None:
    """Of each token the chances along its path, multiplied; a token is never likelier than one before it."""
    rng = random.Random(3)
    for _ in range(50):
        model = AcceptanceModel((8, 4))
        tree = random_tree(rng, 7, 7)
        odds = [model.weights[0] + model.weights[1] * confidence(one) for one in tree.log_probs]
        wanted, least = [1.0], 1.0
        for one, parent in zip(odds, tree.parents, strict=True):
            wanted.append(wanted[parent] / (1 + exp(-one)))
        every = [least := min(least, one) for one in wanted[1:]]
        [found] = model.foresee([Drafted(Acceptance(), 8, tree, 7)])
        assert found == pytest.approx(every, rel=1e-6)


def test_what_a_tree_would_have_been_in_each_block() -> None:
    """Its likeliest tokens, those that the block reaches; what a shorter block lacks goes on as drafts usually do."""
    rng = random.Random(4)
    for turn in range(60):
        model, state, drafted = AcceptanceModel((8, 4)), Acceptance(), (8, 4)[turn % 2]
        tree = random_tree(rng, 7, drafted - 1)
        [found] = model.foresee([Drafted(state, drafted, tree, 7)])
        reached = list(zip(found, tree.depths, strict=False))
        deepest = next((chance for chance, depth in reached if depth == drafted - 1), None)
        if deepest is not None:
            rate = (deepest * DEFAULTS.prior_rate) ** (1 / drafted)
            reached += [(deepest * rate ** (depth - drafted + 1), depth) for depth in range(drafted, 8)]
        usual, kept = AcceptanceModel((8, 4)).usual, DEFAULTS.kept_draft
        for which, block in enumerate((8, 4)):
            every = sorted((one for one, depth in reached if depth < block), reverse=True)[:7]
            every += [0.0] * (7 - len(every))
            found = (model.expected([state])[which, 0] - kept * usual[which]) / (1 - kept)
            assert found == pytest.approx(every, abs=1e-6)


def test_the_fate_of_a_trees_tokens_teaches_what_confidence_is_worth() -> None:
    """A drafter that is too sure of itself, of first choices and of others alike."""
    model, rng = AcceptanceModel((8,)), random.Random(9)
    state = Acceptance()
    for _ in range(3000):
        tree = random_tree(rng, 7, 7)
        hits = [rng.random() < 1 / (1 + exp(1 - 0.5 * confidence(one))) for one in tree.log_probs]
        path = [0]
        for token, parent in enumerate(tree.parents):
            if parent == path[-1] and hits[token]:
                path.append(token + 1)
        draft = Drafted(state, 8, tree, 7, 7, path)
        assert draft.tried() == [
            (token, token + 1 in path) for token, parent in enumerate(tree.parents) if parent in path
        ]
        model.foresee([draft])
        model.observe([draft])
    assert model.weights[0] < -0.6
    assert 0.3 < model.weights[1] < 0.7
