"""Prompts beside who decodes: how long their steps take, who comes first, and how many steps rollouts need.

Seconds are a device's that is made up, so that nothing here depends on the machine; tokens are a real engine's.
"""

from collections.abc import Callable
from itertools import pairwise

import pytest

import flashdraft.engine.engine as engine_module
from flashdraft.data.engine_answers import rollout_config
from flashdraft.engine.engine import Engine
from flashdraft.engine.prompt_pace import PromptPace
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.errors import UsageError
from flashdraft.generate import generate
from flashdraft.sampling_params import SamplingParams
from toys import toy_target

QUIET_S, LAUNCH_S, TOKEN_S = (
    0.014,
    0.004,
    0.0001,
)  # of a step's blocks; of prompts beside them, and of each token


def prompts_s(num_tokens: int) -> float:
    return LAUNCH_S + TOKEN_S * num_tokens if num_tokens else 0.0


class Device:
    """Steps of blocks take ``quiet_s``, prompts what ``seconds`` says; the pace hears of them one after another."""

    def __init__(self, slowdown: float | None, seconds: Callable[[int], float] = prompts_s) -> None:
        self.pace = PromptPace(8192, slowdown)
        self.seconds, self.quiet_s, self.now = seconds, QUIET_S, 0.0

    def step(self, has_prompts: bool = True) -> tuple[int, float]:
        """One step beside which prompts wait: their tokens, and how long it took."""
        num_tokens = self.pace.tokens if has_prompts else 0
        seconds = self.quiet_s + self.seconds(num_tokens)
        self.pace.prompts_ran(num_tokens > 0, num_tokens)
        self.now += seconds
        self.pace.blocks_ran(self.now)
        return num_tokens, seconds


@pytest.mark.parametrize("slowdown", [1.5, 2.5, 4.0])
def test_steps_with_prompts_take_as_much_longer_as_they_may(slowdown: float) -> None:
    device = Device(slowdown)
    steps = [device.step() for _ in range(300)]
    late = steps[40:]
    assert max(seconds for _, seconds in late) <= 1.05 * slowdown * QUIET_S
    with_prompts = [seconds for tokens, seconds in late if tokens]
    assert min(with_prompts) >= 0.9 * slowdown * QUIET_S
    assert len(with_prompts) >= 0.95 * len(late)  # the others show what a step takes without


def test_nothing_runs_beside_blocks_before_it_is_known_what_they_take_alone() -> None:
    device = Device(2.5)
    tokens = [device.step()[0] for _ in range(6)]
    assert tokens[:3] == [0, 0, 0]
    assert tokens[3] > 0


def test_chunks_have_the_lengths_that_they_would_be_padded_to() -> None:
    """A chunk of 65 tokens costs what 128 do: none but whole ones run, and a step takes what it may, or nearly."""
    lengths = (0, 64, 128, 256, 384, 512)
    device = Device(2.5, lambda tokens: prompts_s(next((n for n in lengths if n >= tokens), tokens)))
    device.pace = PromptPace(8192, 2.5, lengths[1:])
    steps = [device.step() for _ in range(100)][30:]
    whole = {tokens for tokens, _ in steps}
    assert whole == {0, 128}  # which cost 17 ms of the 21 that they may; 256 cost 30
    device.quiet_s = 3 * QUIET_S
    steps = [device.step() for _ in range(140)][90:]
    assert {tokens for tokens, _ in steps} <= {0, 576}  # beyond the recorded ones multiples of 64


def test_a_pace_that_is_not_limited_takes_all() -> None:
    assert Device(None).step() == (8192, QUIET_S + prompts_s(8192))


def test_the_pace_follows_what_prompts_and_blocks_take() -> None:
    device = Device(2.5)
    for _ in range(40):
        device.step()
    before = device.pace.tokens
    device.seconds = lambda num_tokens: 2 * prompts_s(num_tokens)  # a longer context
    for _ in range(10):
        device.step()
    longer = device.pace.tokens
    assert longer < 0.6 * before
    device.quiet_s = 3 * QUIET_S  # more rows
    for _ in range(200):
        device.step()
    assert device.pace.tokens > 2 * longer


def test_where_even_short_chunks_take_too_long_prompts_go_on_at_a_quarter_of_their_speed() -> None:
    launch_s = 4 * QUIET_S
    device = Device(2.5, lambda num_tokens: (launch_s + TOKEN_S * num_tokens) if num_tokens else 0.0)
    alone_s = launch_s + TOKEN_S * 8192
    device.pace.prompts_ran(True, 8192, alone_s)
    device.pace.blocks_ran(None)
    steps = [device.step() for _ in range(100)][40:]
    tokens, seconds = next(step for step in reversed(steps) if step[0])
    assert tokens / (seconds - QUIET_S) == pytest.approx(8192 / alone_s / 4, rel=0.1)


def test_a_short_chunk_that_fits_tells_nothing_of_longer_ones() -> None:
    device = Device(2.5)
    for _ in range(40):
        device.step()
    before = device.pace.tokens
    device.pace.prompts_ran(True, 16)
    device.now += QUIET_S + prompts_s(16)
    device.pace.blocks_ran(device.now)
    assert device.pace.tokens == before


def test_a_slowdown_is_more_than_one() -> None:
    with pytest.raises(UsageError, match=r"max_prefill_slowdown is 1.0; expected more than 1"):
        EngineConfig(max_prefill_slowdown=1.0)


class TimedEngine:
    """A toy's engine whose clock goes by what it computes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slowdown: float | None, **config: int) -> None:
        self.target, self.now = toy_target(max_position_embeddings=2048), 0.0
        sizes = {"page_size": 4, "max_step_tokens": 512, "num_pages": 2000} | config
        self.engine = Engine(
            self.target, None, EngineConfig(max_prefill_slowdown=slowdown, **sizes), (), None, 1
        )
        self.came: dict[str, list[float]] = {}
        self.said: dict[str, list[int]] = {}
        backend = self.engine.runner.backend
        blocks, prompts = backend.block_step, backend.prompt_step

        def block_step(*args):
            self.now += QUIET_S
            return blocks(*args)

        def prompt_step(rows, placed, token_ids):
            self.now += prompts_s(sum(map(len, token_ids)))
            return prompts(rows, placed, token_ids)

        monkeypatch.setattr(backend, "block_step", block_step)
        monkeypatch.setattr(backend, "prompt_step", prompt_step)
        monkeypatch.setattr(engine_module, "perf_counter", lambda: self.now)

    def ask(self, name: str, prompt: list[int], num_tokens: int) -> None:
        self.engine.add_request(name, prompt, params(num_tokens))
        self.came[name], self.said[name] = [], []

    def step(self) -> None:
        for output in self.engine.step():
            self.said[output.request_id] += output.token_ids
            self.came[output.request_id] += [self.now] if output.token_ids else []
        self.engine.check_integrity()


def params(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)


def prompt_of(first: int, length: int) -> list[int]:
    return [(first + idx * idx) % 50 for idx in range(length)]


@pytest.mark.parametrize(("slowdown", "most"), [(None, 5.3), (2.5, 2.7)])
def test_neighbours_wait_for_no_more_than_a_limited_prompt(
    monkeypatch: pytest.MonkeyPatch, slowdown: float | None, most: float
) -> None:
    """Two decode, two prompts of 1,200 tokens come, and then a short one: gaps, the first token, and the answers."""
    timed = TimedEngine(monkeypatch, slowdown)
    for name in ("a", "b"):
        timed.ask(name, prompt_of(ord(name), 8), 150)
    for _ in range(10):
        timed.step()
    for name in ("long", "longer"):
        timed.ask(name, prompt_of(len(name), 1200), 2)
    for _ in range(2):
        timed.step()
    asked = timed.now
    timed.ask("short", prompt_of(3, 6), 2)
    while not timed.came["longer"]:
        timed.step()
    gaps = [later - sooner for sooner, later in pairwise(timed.came["a"])]
    assert max(gaps) <= most * QUIET_S
    assert max(gaps) >= 0.8 * most * QUIET_S
    assert timed.came["short"][0] < min(timed.came["long"][0], timed.came["longer"][0])
    assert timed.came["short"][0] - asked <= 3 * max(gaps)
    while timed.engine.has_unfinished:
        timed.step()
    lengths = {"a": 8, "b": 8, "short": 6}
    for name, said in timed.said.items():
        first = {"a": ord("a"), "b": ord("b"), "short": 3}.get(name, len(name))
        prompt = prompt_of(first, lengths.get(name, 1200))
        assert said == generate(timed.target, None, prompt, params(len(said))).token_ids


def test_a_short_prompt_that_waits_passes_long_ones_that_run_and_the_first_come_goes_on() -> None:
    """Nobody decodes: 32 tokens a step, two prompts of 320 run, one of 320 and one of 6 wait."""
    engine = Engine(
        toy_target(), None, EngineConfig(max_step_tokens=32, page_size=4, num_pages=400), (), None, 1
    )
    for name in ("one", "two"):
        engine.add_request(name, prompt_of(len(name), 320), params(1))
    engine.step()
    engine.step()
    done = engine.requests["one"].num_committed
    engine.add_request("three", prompt_of(5, 320), params(1))
    engine.add_request("short", prompt_of(4, 6), params(1))
    ended = [output.request_id for _ in range(2) for output in engine.step()]
    assert ended == ["short"]
    assert engine.requests["one"].num_committed == done + 32  # every second step
    order, steps = [], 0
    while engine.has_unfinished:
        order += [output.request_id for output in engine.step() if output.finished]
        steps += 1
    assert order[0] == "one"
    assert sorted(order) == ["one", "three", "two"]
    assert steps <= 1 + -(-(3 * 320 - 4 * 32 + 6) // 32)  # no token of any step was left over


def test_nobody_takes_the_place_or_the_pages_of_who_came_before() -> None:
    """One place is left: the long one that came first has it, though a short one waits behind it."""
    engine = Engine(
        toy_target(),
        None,
        EngineConfig(max_step_tokens=8, page_size=4, num_pages=50, max_running=2),
        (),
        None,
        1,
    )
    for name, length in (("runs", 60), ("long", 60), ("short", 5)):
        engine.add_request(name, prompt_of(len(name), length), params(1))
    for _ in range(3):
        assert not engine.step()  # nor has the short one come and gone
        engine.check_integrity()
    assert [request.request_id for request in engine.scheduler.running] == ["runs", "long"]


def test_a_place_that_is_left_is_taken_in_the_same_step() -> None:
    engine = Engine(toy_target(), None, EngineConfig(max_running=1), (), None, 1)
    for name in ("first", "next"):
        engine.add_request(name, prompt_of(len(name), 6), params(2))
    steps = [[output.request_id for output in engine.step()] for _ in range(3)]
    assert steps == [["first"], ["first", "next"], ["next"]]
    engine.check_integrity()


def test_rollouts_of_many_rows_are_filled_at_once() -> None:
    """600 rows: a prompt is computed as soon as there is a place, and every row decodes in every step."""
    num_rows, length, num_tokens = 600, 12, 5
    engine = Engine(toy_target(), None, rollout_config(num_rows, 32), (), None, 1)
    for idx in range(2 * num_rows):
        engine.add_request(str(idx), prompt_of(idx, length), params(num_tokens))
    steps = tokens = 0
    while engine.has_unfinished:
        tokens += sum(len(output.token_ids) for output in engine.step())
        steps += 1
    assert tokens == 2 * num_rows * num_tokens
    fills = -(-num_rows * length // 600)  # steps of 600 prompts' tokens until all rows decode
    assert steps <= 2 * (fills + num_tokens)


def test_rounds_of_rollouts_are_the_longer_the_more_rows_there_are() -> None:
    configs = [rollout_config(num_rows, 64) for num_rows in (1, 32, 100, 4096)]
    assert [config.num_scheduler_steps for config in configs] == [1, 1, 4, 32]
    assert [config.max_prompt_tokens for config in configs] == [8192, 8192, 8192, 131072]
    assert [config.num_pages for config in configs] == [4, 128, 400, 16384]


def test_tokens_of_a_step_follow_its_rows_and_blocks() -> None:
    plain, blocks = (EngineConfig(4096).on("cpu", size) for size in (1, 16))
    assert (plain.step_tokens, plain.prompt_tokens) == (4096, 4096)
    assert (blocks.step_tokens, blocks.prompt_tokens) == (65536, 4096)
    card = EngineConfig(4096).on("cuda", 1)
    assert (card.step_tokens, card.prompt_tokens, card.free_step_tokens) == (4096, 8192, 4096)
    few = EngineConfig().on("cpu", 8)
    assert (few.step_tokens, few.prompt_tokens) == (512, 512)
    asked = EngineConfig(max_step_tokens=16).on("cpu", 16)
    assert (asked.step_tokens, asked.prompt_tokens) == (16, 16)
