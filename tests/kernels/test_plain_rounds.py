"""Rounds of several plain steps, of which the host hears together: each answer is that of the loop of generate.py."""

import threading
from dataclasses import replace

import pytest
import torch

from flashdraft.answer import NO_TOKEN
from flashdraft.cuda.rows import padded_rows
from flashdraft.engine import model_runner
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.generate import generate
from flashdraft.sampler import TokenChooser
from flashdraft.sampling_params import SamplingParams
from toys import toy_hybrid, toy_target

pytest.importorskip("triton")
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
NUM_STEPS = 3
WHOLE = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


def _launched(engine):
    """What :meth:`Rounds.launch` is called with, from now on."""
    launched, launch = [], engine.overlap.runner.rounds.launch

    def told(rows):
        launched.append(list(rows))
        return launch(rows)

    engine.overlap.runner.rounds.launch = told
    return launched


def _run(engine):
    """The answers of all requests, and the most tokens that came of one at a time."""
    found, most = {}, 0
    while engine.has_unfinished:
        for output in engine.step():
            found.setdefault(int(output.request_id), []).extend(output.token_ids)
            most = max(most, len(output.token_ids))
        engine.check_integrity()
    return found, most


@pytest.mark.parametrize("make", [toy_target, toy_hybrid])
def test_answers_of_several_steps(make):
    """One ends by its length within a round, one at a token, one is sampled; a fourth takes the place of the first."""
    changes = {"num_hidden_layers": 2} | ({"full_attention_interval": 2} if make is toy_hybrid else {})
    target = make(**changes).to(DEVICE)
    prompts = [[5, 6, 7], [9, 3], [4, 8, 11, 2, 6], [7]]
    stop = generate(target, None, prompts[1], WHOLE).token_ids[4]
    every = [
        replace(WHOLE, max_tokens=5),
        replace(WHOLE, stop_token_ids=[stop]),
        replace(WHOLE, temperature=0.8, top_p=0.9, seed=3),
        WHOLE,
    ]
    expected = [generate(target, None, *one).token_ids for one in zip(prompts, every, strict=True)]
    config = EngineConfig(max_running=3, page_size=4, num_pages=24, num_scheduler_steps=NUM_STEPS)
    engine = Engine(target, None, config, (), None)
    launched = _launched(engine)
    for idx, one in enumerate(zip(prompts, every, strict=True)):
        engine.add_request(str(idx), *one)
    found, most = _run(engine)
    assert found == dict(enumerate(expected))
    assert most == NUM_STEPS
    assert {row.num_steps for rows in launched for row in rows} == {NUM_STEPS}
    assert max(len(rows) for rows in launched) == 3
    metrics = engine.metrics
    assert metrics.num_drafted == 0
    assert metrics.num_plain_rounds == metrics.num_rounds
    assert metrics.num_rounds >= metrics.num_output_tokens - metrics.num_requests


def test_sampled_first_tokens_are_chosen_together(monkeypatch):
    """The host asks for no answer's own token: it would wait for the device once for each."""
    target = toy_target(num_hidden_layers=1).to(DEVICE)
    prompts = [[5, 6, 7], [9, 3], [4, 8, 11]]
    every = [replace(WHOLE, temperature=0.9, seed=idx) for idx in (1, 2)] + [WHOLE]
    expected = [generate(target, None, *one).token_ids for one in zip(prompts, every, strict=True)]
    engine = Engine(target, None, EngineConfig(page_size=4, num_pages=24, num_scheduler_steps=NUM_STEPS))
    monkeypatch.setattr(TokenChooser, "choose", None)
    for idx, one in enumerate(zip(prompts, every, strict=True)):
        engine.add_request(str(idx), *one)
    assert _run(engine)[0] == dict(enumerate(expected))


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_first_token_of_no_numbers_ends_its_answer(temperature):
    target = toy_target(num_hidden_layers=1).to(DEVICE)
    with torch.no_grad():
        target.head_weight().fill_(float("nan"))
    engine = Engine(target, None, EngineConfig(page_size=4, num_pages=24, num_scheduler_steps=NUM_STEPS))
    engine.add_request("0", [5, 6, 7], replace(WHOLE, temperature=temperature))
    [output] = list(engine.run())
    assert output.error == NO_TOKEN
    assert output.finish_reason == "abort"


def test_pages_for_all_steps_are_there():
    """Two answers that do not fit together: one is preempted, and computed again."""
    target = toy_target(num_hidden_layers=2).to(DEVICE)
    prompts = [[5, 6, 7], [9, 3, 1]]
    expected = {idx: generate(target, None, prompt, WHOLE).token_ids for idx, prompt in enumerate(prompts)}
    config = EngineConfig(max_running=2, page_size=2, num_pages=7, num_scheduler_steps=NUM_STEPS)
    engine = Engine(target, None, config, (), None)
    for idx, prompt in enumerate(prompts):
        engine.add_request(str(idx), prompt, WHOLE)
    assert _run(engine)[0] == expected
    assert engine.scheduler.num_preemptions


def test_rounds_much_longer_than_answers_need_no_pages_behind_their_ends():
    target = toy_target(num_hidden_layers=1).to(DEVICE)
    prompts = [[5, 6, 7], [9, 3]]
    every = [replace(WHOLE, max_tokens=length) for length in (3, 5)]
    expected = [generate(target, None, *one).token_ids for one in zip(prompts, every, strict=True)]
    config = EngineConfig(max_running=2, page_size=4, num_pages=4, num_scheduler_steps=400)
    engine = Engine(target, None, config)
    for idx, one in enumerate(zip(prompts, every, strict=True)):
        engine.add_request(str(idx), *one)
    assert _run(engine)[0] == dict(enumerate(expected))


def test_what_is_recorded_runs_and_nothing_behind_an_answers_end():
    config = EngineConfig(max_running=1, page_size=4, num_pages=8, num_scheduler_steps=NUM_STEPS)
    engine = Engine(toy_target(num_hidden_layers=1).to(DEVICE), None, config)
    launched = _launched(engine)
    engine.overlap.record({1}, 1)
    recorded = {row.num_steps for rows in launched for row in rows}
    launched.clear()
    engine.add_request("0", [5, 6, 7], replace(WHOLE, max_tokens=1 + 2 * NUM_STEPS))
    found, _ = _run(engine)
    assert len(found[0]) == 1 + 2 * NUM_STEPS
    assert {row.num_steps for rows in launched for row in rows} == recorded
    assert len(launched) == 2


def _held_launches(engine, monkeypatch):
    """Rounds are launched once the returned event is set; the list tells what is launched from now on, in order."""
    may, order = threading.Event(), []
    rounds, runner = engine.runner.rounds, engine.runner
    steps, forward = rounds._plain_steps, runner.forward

    def held(*given):
        assert may.wait(60), "nobody lets it go on"
        order.append("round")
        return steps(*given)

    def told(*given, **named):
        order.append("prompt")
        return forward(*given, **named)

    monkeypatch.setattr(rounds, "_plain_steps", held)
    monkeypatch.setattr(runner, "forward", told)
    return may, order


def test_padding_of_thousands_of_rows_is_few():
    assert [padded_rows(one) for one in (1, 3, 1000, 1024)] == [1, 4, 1024, 1024]
    for num_rows in range(1025, 8193):
        assert num_rows <= padded_rows(num_rows) < 1.5 * num_rows
    assert len({padded_rows(one) for one in range(1, 4097)}) == 11 + 4


def _engine(target):
    return Engine(target, None, EngineConfig(page_size=4, num_pages=24, num_scheduler_steps=NUM_STEPS))


def test_the_host_goes_on_while_launches_of_a_prompt_wait(monkeypatch):
    """It reads the round before, and hears of the prompt a step later."""
    target = toy_target(num_hidden_layers=1).to(DEVICE)
    prompts = [[5, 6, 7], [9, 3]]
    expected = [generate(target, None, prompt, WHOLE).token_ids for prompt in prompts]
    engine, found = _engine(target), {0: [], 1: []}

    def step():
        for output in engine.step():
            found[int(output.request_id)] += output.token_ids

    engine.add_request("0", prompts[0], WHOLE)
    step()
    engine.runner.rounds.settle()
    may, order = _held_launches(engine, monkeypatch)
    engine.add_request("1", prompts[1], WHOLE)
    step()
    assert not order
    assert found == {0: expected[0][:1], 1: []}
    may.set()
    while engine.has_unfinished:
        step()
    assert order[:2] == ["round", "prompt"]
    assert found == dict(enumerate(expected))


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_prompts_that_do_not_fit_the_device_together_run_in_parts(temperature, monkeypatch):
    """Each by itself, and one of them in pieces."""
    target = toy_target(num_hidden_layers=1).to(DEVICE)
    prompts = [[5, 6, 7], [9, 3], [4, 8, 11, 2, 9, 6, 1, 3, 3], [7]]
    params = [replace(WHOLE, temperature=temperature, seed=idx) for idx in range(4)]
    expected = [generate(target, None, *one).token_ids for one in zip(prompts, params, strict=True)]
    engine, sizes = _engine(target), []
    forward = engine.runner.forward

    def narrow(rows, placed, token_ids, *given, **named):
        sizes.append(sum(map(len, token_ids)))
        if sizes[-1] > 4:
            raise torch.OutOfMemoryError("no room")
        return forward(rows, placed, token_ids, *given, **named)

    monkeypatch.setattr(engine.runner, "forward", narrow)
    monkeypatch.setattr(model_runner, "_FEWEST_TOKENS", 2)
    for idx, one in enumerate(zip(prompts, params, strict=True)):
        engine.add_request(str(idx), *one)
    assert _run(engine)[0] == dict(enumerate(expected))
    assert max(sizes) > 8


@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_request_without_memory_for_its_prompt_ends_alone(temperature, prefix_caching, monkeypatch):
    """Beside rounds, where launches find it out behind the host's back; nobody finds its pages afterwards."""
    target = toy_target(num_hidden_layers=1).to(DEVICE)
    params = replace(WHOLE, temperature=temperature, seed=1)
    prompts = [[5, 6, 7], [9, 3, 1, 4, 8, 8, 2, 6, 5], [9, 3, 1, 4], [2, 2]]
    expected = {idx: generate(target, None, one, params).token_ids for idx, one in enumerate(prompts)}
    config = EngineConfig(
        page_size=4,
        num_pages=48,
        num_scheduler_steps=NUM_STEPS,
        max_step_tokens=4,
        prefix_caching=prefix_caching,
    )
    engine = Engine(target, None, config)
    monkeypatch.setattr(model_runner, "_FEWEST_TOKENS", 8)
    forward, refused = engine.runner.forward, []

    def narrow(rows, placed, token_ids, *given, **named):
        if [8, 8, 2, 6] in token_ids and "4" not in engine.requests:
            refused.append(len(placed))
            raise torch.OutOfMemoryError("no room\nfor it")
        return forward(rows, placed, token_ids, *given, **named)

    engine.add_request("0", prompts[0], params)
    found = {idx: [] for idx in range(5)}
    errors = {}
    for idx in (1, 2, 3, 4):
        if idx == 1:
            monkeypatch.setattr(engine.runner, "forward", narrow)
        for _ in range(3):
            for output in engine.step():
                found[int(output.request_id)] += output.token_ids
                errors[int(output.request_id)] = output.error
        engine.add_request(str(idx), prompts[1 if idx == 4 else idx], params)
    for output in engine.run():
        found[int(output.request_id)] += output.token_ids
        errors[int(output.request_id)] = output.error
    assert refused
    assert errors.pop(1) == "the device has no memory for it: no room"
    assert set(errors.values()) == {None}
    assert found.pop(1) == []
    assert found == {**{idx: expected[idx] for idx in (0, 2, 3)}, 4: expected[1]}
    engine.check_integrity()


def test_the_host_reads_a_round_while_launches_of_the_next_wait(monkeypatch):
    target = toy_target(num_hidden_layers=1).to(DEVICE)
    expected = generate(target, None, [5, 6, 7], WHOLE).token_ids
    engine = Engine(target, None, EngineConfig(page_size=4, num_pages=24, num_scheduler_steps=NUM_STEPS))
    engine.add_request("0", [5, 6, 7], WHOLE)
    found = [token for _ in range(2) for output in engine.step() for token in output.token_ids]
    assert found == expected[:1]
    engine.runner.rounds.settle()
    may, order = _held_launches(engine, monkeypatch)
    found += [token for output in engine.step() for token in output.token_ids]
    assert found == expected[: 1 + NUM_STEPS]
    assert not order
    may.set()
    found += [token for output in engine.run() for token in output.token_ids]
    assert found == expected


def test_a_prompt_is_launched_behind_the_round_before_it(monkeypatch):
    """Its pages may be those of an answer that the round still writes behind."""
    target = toy_target(num_hidden_layers=1).to(DEVICE)
    prompts = [[5, 6, 7], [9, 3]]
    expected = [generate(target, None, prompt, WHOLE).token_ids for prompt in prompts]
    engine = Engine(target, None, EngineConfig(page_size=4, num_pages=24, num_scheduler_steps=NUM_STEPS))
    engine.add_request("0", prompts[0], WHOLE)
    found = {0: [token for output in engine.step() for token in output.token_ids]}
    may, order = _held_launches(engine, monkeypatch)
    engine.add_request("1", prompts[1], WHOLE)
    later = threading.Timer(0.3, may.set)
    later.start()
    for idx, tokens in _run(engine)[0].items():
        found.setdefault(idx, []).extend(tokens)
    assert order[:2] == ["round", "prompt"]
    assert found == dict(enumerate(expected))


def test_what_a_launch_raises_is_raised_where_its_round_is_read(monkeypatch):
    engine = Engine(
        toy_target(num_hidden_layers=1).to(DEVICE),
        None,
        EngineConfig(page_size=4, num_pages=24, num_scheduler_steps=NUM_STEPS),
    )
    engine.add_request("0", [5, 6, 7], WHOLE)
    engine.step()
    monkeypatch.setattr(engine.runner.rounds, "_plain_step", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        list(engine.run())
    engine.runner.rounds.settle()


def test_no_round_goes_on_from_one_that_failed(monkeypatch):
    """Where its rows stand is not known. Once nobody is left the engine answers again."""
    target = toy_target(num_hidden_layers=1).to(DEVICE)
    engine = Engine(target, None, EngineConfig(page_size=4, num_pages=24, num_scheduler_steps=NUM_STEPS))
    engine.add_request("0", [5, 6, 7], WHOLE)
    engine.step()
    rounds, called = engine.runner.rounds, []
    steps = rounds._plain_steps

    def fails(*_given):
        called.append(1)
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(rounds, "_plain_steps", fails)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        list(engine.run())
    assert engine.overlap.in_flight is not None
    engine.abort("0")
    assert [output.finish_reason for output in engine.run()] == ["abort"]
    assert len(called) == 1
    monkeypatch.setattr(rounds, "_plain_steps", steps)
    engine.add_request("1", [9, 3], WHOLE)
    found = [token for output in engine.run() for token in output.token_ids]
    assert found == generate(target, None, [9, 3], WHOLE).token_ids
