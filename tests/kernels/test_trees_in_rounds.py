"""Rounds of trees on a GPU: those that requests ask for, and those that the controller chooses for few of them.

A vocabulary of few tokens, of which random drafts are right now and then.
"""

import pytest
import torch

from flashdraft.control.step_costs import ShapeTable, StepCosts
from flashdraft.engine import step_timing
from flashdraft.engine.block_control import BlockControl
from flashdraft.engine.engine import Engine
from flashdraft.engine.recorded_trees import FewTrees
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.generate import generate
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from toys import toy_dflash, toy_dflash2, toy_target

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROMPTS = [[8, 7, 5, 5], [8], [10, 4, 8, 3, 9], [10, 9]]


class _Steady(StepCosts):
    """Rounds that take a second whatever their shape, and stay so."""

    def learn(self, *told):
        """The interpreter's seconds mean nothing."""


def _launched(engine):
    """What rounds are launched with from now on: of each the (tokens of the block, of the tree) of its rows."""
    launch, seen = engine.runner.rounds.launch, []
    engine.runner.rounds.launch = lambda rows: (
        seen.append([(row.block, row.tree_size) for row in rows]) or launch(rows)
    )
    return seen


def test_trees_beside_chains_in_rounds():
    """Of two sizes, greedy and sampled, beside a chain and a plain row; each answer is the loop's."""
    target = toy_target(vocab_size=11, eos_token_id=None, num_hidden_layers=2).to(DEVICE)
    drafter = DFlashDrafter(toy_dflash2(target, num_hidden_layers=1).to(DEVICE), target)
    whole = {"max_tokens": 8, "ignore_eos": True}
    greedy, sampled = (
        SamplingParams(temperature=0.0, **whole),
        SamplingParams(temperature=0.8, seed=4, **whole),
    )
    asked = [(greedy, 4, 7), (sampled, 4, 12), (greedy, 4, None), (sampled, 1, None)]
    prompts = PROMPTS[: len(asked)]
    expected = [
        generate(target, None, prompt, one[0]).token_ids for prompt, one in zip(prompts, asked, strict=True)
    ]
    engine = Engine(target, drafter, EngineConfig(max_running=4, page_size=4, num_pages=96))
    launched, found, rounds, kept = _launched(engine), {}, engine.runner.rounds, []
    work = rounds._round
    rounds._round = lambda numbers, shape: kept.append((shape.width, work(numbers, shape))) or kept[-1][1]
    for idx, (prompt, (params, block, tree)) in enumerate(zip(prompts, asked, strict=True)):
        engine.add_request(str(idx), prompt, params, block, draft_tree=tree)
    for output in engine.run():
        found.setdefault(int(output.request_id), []).extend(output.token_ids)
    engine.check_integrity()
    assert {0, 7, 12} in [{tree_size for _, tree_size in rows} for rows in launched]
    assert [found[idx] for idx in range(len(asked))] == expected
    assert engine.metrics.num_accepted > 3, "choose another seed: no path is kept"
    assert max(width for width, _ in kept) > 1
    assert all(features is None for width, (_, features) in kept if width > 1), "a recording would keep them"


def test_auto_verifies_trees_of_few_requests_in_rounds():
    """The controller's choice: trees of one and of two requests, chains of three; each answer is plain decoding's.

    Greedy and sampled, until the last token of an answer.
    """
    target = toy_target(vocab_size=11, eos_token_id=None, num_hidden_layers=2).to(DEVICE)
    drafter = DFlashDrafter(toy_dflash(target, num_hidden_layers=1, block_size=4).to(DEVICE), target)
    flat = ShapeTable([1, 2, 4], [1, 2, 4], torch.ones(3, 3).numpy())
    costs = _Steady(flat, ShapeTable([1], [1], [[0.0]]))
    engine = Engine(target, drafter, EngineConfig(max_running=3, page_size=4, num_pages=96))
    engine.control = BlockControl(engine.runner, drafter, costs)
    engine.control.trees = FewTrees(2, 2)
    launched, found, teaches = _launched(engine), {}, []
    lengths = {"one": 26, "two": 12, "three": 5}
    prompts = dict(zip(lengths, PROMPTS, strict=False))
    whole = {
        name: SamplingParams(temperature=0.8 * (name == "two"), seed=4, max_tokens=length, ignore_eos=True)
        for name, length in lengths.items()
    }
    for name, at in (("one", 0), ("two", 2), ("three", 4)):
        while len(launched) < at:
            for output in engine.step():
                found.setdefault(output.request_id, []).extend(output.token_ids)
            teaches.append(engine.overlap.in_flight and engine.overlap.in_flight.is_usual)
        engine.add_request(name, prompts[name], whole[name])
    for output in engine.run():
        found.setdefault(output.request_id, []).extend(output.token_ids)
    engine.check_integrity()
    shapes = {(len(rows), rows[0]) for rows in launched}
    assert {(1, (4, 8)), (2, (4, 8)), (3, (4, 0))} <= shapes
    assert (3, (4, 8)) not in shapes
    assert any(teaches), "rounds of trees tell what they take"
    for name, prompt in prompts.items():
        assert found[name] == generate(target, None, prompt, whole[name]).token_ids, name
    assert engine.metrics.num_accepted > 3, "choose another seed: no path is kept"


def test_auto_verifies_trees_of_two_blocks_in_rounds_of_few_requests_and_of_one_block_of_some():
    """The default."""
    target = toy_target(vocab_size=11, eos_token_id=None, num_hidden_layers=1).to(DEVICE)
    drafter = DFlashDrafter(toy_dflash(target, num_hidden_layers=1, block_size=4).to(DEVICE), target)
    engine = Engine(target, drafter, EngineConfig(max_running=1, page_size=4, num_pages=96))
    sizes = [engine.control.trees.size(num_rows, 4) for num_rows in (1, 4, 5, 8, 9)]
    assert sizes == [8, 8, 4, 4, 0]


def test_prices_of_rounds_are_those_of_what_they_verify(monkeypatch):
    """Trees of one request, chains of two."""
    monkeypatch.setattr(step_timing, "_RECORDED_TURNS", 1)
    monkeypatch.setattr(step_timing, "_ROUNDS", 1)
    target = toy_target(vocab_size=11, num_hidden_layers=1).to(DEVICE)
    drafter = DFlashDrafter(toy_dflash(target, num_hidden_layers=1, block_size=4).to(DEVICE), target)
    engine = Engine(target, drafter, EngineConfig(max_running=2, page_size=4, num_pages=4))
    launched = _launched(engine)
    costs = step_timing.measure_costs(engine.runner, 4, 2, trees=FewTrees(1, 2))
    assert (costs.verify.num_rows.tolist(), costs.verify.widths.tolist()) == ([1, 2], [1, 2, 4])
    found = {(len(rows), *rows[0]) for rows in launched}
    assert found == {(1, 1, 0), (1, 2, 4), (1, 4, 8), (2, 1, 0), (2, 2, 0), (2, 4, 0)}
