"""Step costs that outlive the process: read where they are whole and of the same machine and pair, else measured."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flashdraft.control.step_costs import Curve, StepCosts
from flashdraft.engine import kept_costs
from flashdraft.engine.engine import Engine
from flashdraft.engine.model_runner import ModelRunner
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.generate import generate
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from toys import ScriptedDrafter, toy_dflash, toy_target

CURVE = {"num_tokens": [1, 2], "seconds": [0.1, 0.1], "row_s": 0}
PARAMS = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True)


@pytest.fixture(autouse=True)
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An empty cache, and of each measurement the number of rows."""
    monkeypatch.setattr(kept_costs, "cache_folder", lambda: tmp_path)
    found: list[int] = []
    measure = kept_costs.measure_costs

    def counted(runner: ModelRunner, max_block: int, num_rows: int) -> StepCosts:
        found.append(num_rows)
        return measure(runner, max_block, num_rows)

    monkeypatch.setattr(kept_costs, "measure_costs", counted)
    return found


def opened(hidden_size: int = 32) -> Engine:
    target = toy_target(hidden_size=hidden_size)
    return Engine(target, DFlashDrafter(toy_dflash(target), target), config=EngineConfig(page_size=4))


def only_file(folder: Path) -> Path:
    [file] = (folder / "step-costs").iterdir()
    return file


def test_a_second_engine_starts_from_what_the_first_measured(measured: list[int]) -> None:
    first, second = (opened().control.calibrate(1).costs for _ in range(2))
    assert measured == [8]
    assert isinstance(first.verify, Curve)
    assert isinstance(second.verify, Curve)
    assert second.verify.num_tokens.tolist() == first.verify.num_tokens.tolist()
    assert second.draft.seconds.tolist() == first.draft.seconds.tolist()
    assert second.verify.row_s == first.verify.row_s
    assert second.is_ragged == first.is_ragged


def test_other_networks_and_threads_are_measured_for_themselves(
    measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened().control.calibrate(1)
    opened().control.calibrate(2)  # of eight rows too
    opened(hidden_size=64).control.calibrate(1)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    opened().control.calibrate(1)
    assert measured == [8, 8, 8]


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"{}",
        b"\xff",
        b'{"verify": 3}',
        b"[" * 60_000,
        b"[" * 100_000,
        {"verify": {**CURVE, "seconds": [0.1]}},
        {"verify": {**CURVE, "num_tokens": [2, 1]}},
        {"verify": {**CURVE, "row_s": None}},
        {"draft": {**CURVE, "seconds": [-1.0, 1.0]}},
        {"verify": {**CURVE, "seconds": [0.0, 0.0]}},
        {"verify": {**CURVE, "num_tokens": [0, 1]}},
        {"draft": {**CURVE, "seconds": [0.1, "0.1"]}},
        {"draft": {"num_tokens": [1], "seconds": [1.0]}},
        {"draft": {**CURVE, "row_s": float("nan")}},
        {"draft": {**CURVE, "seconds": [0.1, float("inf")]}},
    ],
)
def test_a_file_that_is_not_as_written_is_measured_again(
    bad: bytes | dict[str, object], measured: list[int], tmp_path: Path
) -> None:
    opened().control.calibrate(1)
    file = only_file(tmp_path)
    whole = json.loads(file.read_text())
    file.write_bytes(bad if isinstance(bad, bytes) else json.dumps({**whole, **bad}).encode())
    opened().control.calibrate(1)
    assert measured == [8, 8]
    assert json.loads(file.read_text()).keys() == whole.keys()


def test_where_nothing_can_be_written_the_engine_goes_on(
    measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_costs, "cache_folder", lambda: Path("/dev/null"))
    opened().control.calibrate(1)
    opened().control.calibrate(1)
    assert measured == [8, 8]


class Clock:
    """Time passes in the target's forwards and in drafts alone."""

    def __init__(self, draft_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.draft_s = 0.0, draft_s
        for module in ("engine.engine", "engine.step_timing"):
            monkeypatch.setattr(f"flashdraft.{module}.perf_counter", lambda: self.now)

    def runs(self, engine: Engine) -> None:
        """Forwards of ``engine`` take a second and 20 ms a token, its drafts as long as was said."""
        assert engine.runner.drafter
        forward, propose = engine.runner.forward, engine.runner.drafter.propose

        def timed_forward(rows: Any, placed: Any, token_ids: list[list[int]], *others: Any) -> Any:
            self.now += 1.0 + 0.02 * sum(map(len, token_ids))
            return forward(rows, placed, token_ids, *others)

        def timed_propose(*asked: Any) -> Any:
            self.now += self.draft_s
            return propose(*asked)

        engine.runner.forward = timed_forward  # type: ignore[method-assign]
        engine.runner.drafter.propose = timed_propose  # type: ignore[method-assign]


@pytest.mark.parametrize("draft_s", [0.2, 30.0])
@pytest.mark.parametrize(
    "wrong", [{}, {"draft": 10}, {"verify": 10}, {"draft": 0.1}, {"draft": 10, "verify": 10}]
)
def test_what_was_kept_of_a_busy_moment_is_soon_outlived(
    draft_s: float, wrong: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drafter that is always right and quick, or always right and too slow: within a few rounds it is known which."""
    target, prompt, params = toy_target(), [5, 3, 8], replace(PARAMS, max_tokens=300)
    clock = Clock(draft_s, monkeypatch)
    answer = prompt + generate(target, None, prompt, params).token_ids

    def answered() -> tuple[list[int], StepCosts]:
        """Of a new process, tokens verified in each round, and what steps are then known to cost."""
        engine = Engine(target, ScriptedDrafter(answer, lambda _: False, max_block_size=8))
        clock.runs(engine)
        engine.add_request("r", prompt, params)
        outputs = list(engine.run())
        assert [token for output in outputs for token in output.token_ids] == answer[len(prompt) :]
        return [1 + output.num_drafted for output in outputs[1:]], engine.control.calibrate().costs

    answered()
    file = only_file(tmp_path)
    kept = json.loads(file.read_text())
    for name, factor in wrong.items():
        for part in ("seconds", "row_s"):
            value = kept[name][part]
            kept[name][part] = [factor * one for one in value] if part == "seconds" else factor * value
    file.write_text(json.dumps(kept))
    lengths, costs = answered()
    if draft_s > 1:
        assert len(lengths) > 150
        assert sum(length > 1 for length in lengths[12:]) <= 1, "a probe may be due"
        return
    assert lengths[12:-1] == [8] * (len(lengths) - 13)
    assert float(costs.draft(1, 8) / costs.verify(1, 1)) == pytest.approx(draft_s, rel=0.5)
