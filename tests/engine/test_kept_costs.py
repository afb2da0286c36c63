"""Step costs that outlive the process: read where they are whole and of the same machine and pair, else measured."""

import json
from pathlib import Path

import pytest

from flashdraft.control.step_costs import Curve, StepCosts
from flashdraft.engine import kept_costs
from flashdraft.engine.engine import Engine
from flashdraft.engine.model_runner import ModelRunner
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from toys import toy_dflash, toy_target

CURVE = {"num_tokens": [1, 2], "seconds": [0.1, 0.1], "row_s": 0, "context_row_s": 0, "context_token_s": 0}
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
    assert measured == [1]
    assert isinstance(first.verify, Curve)
    assert isinstance(second.verify, Curve)
    assert second.verify.num_tokens.tolist() == first.verify.num_tokens.tolist()
    assert second.draft.seconds.tolist() == first.draft.seconds.tolist()
    assert second.verify.context_row_s == first.verify.context_row_s
    assert (second.logits_s, second.is_ragged) == (first.logits_s, first.is_ragged)


def test_other_networks_rows_and_threads_are_measured_for_themselves(
    measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened().control.calibrate(1)
    opened().control.calibrate(2)
    opened(hidden_size=64).control.calibrate(1)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    opened().control.calibrate(1)
    assert measured == [1, 2, 1, 1]


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
        {"draft": {**CURVE, "seconds": [0.1, "0.1"]}},
        {"draft": {"num_tokens": [1], "seconds": [1.0]}},
        {"logits_s": float("nan")},
        {"host_s": float("inf")},
        {"host_s": "0.1"},
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
    assert measured == [1, 1]
    assert json.loads(file.read_text()).keys() == whole.keys()


def test_steps_refresh_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashdraft.engine.block_control._KEEP_EVERY", 4)
    engine = opened()
    engine.control.calibrate(1)
    before = only_file(tmp_path).read_text()
    engine.add_request("r", [5, 3, 8], PARAMS)
    list(engine.run())
    after = json.loads(only_file(tmp_path).read_text())
    assert json.loads(before) != after
    costs = engine.control.calibrate(1).costs
    assert isinstance(costs.verify, Curve)
    assert after["verify"]["num_tokens"] == costs.verify.num_tokens.tolist()


def test_where_nothing_can_be_written_the_engine_goes_on(
    measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_costs, "cache_folder", lambda: Path("/dev/null"))
    opened().control.calibrate(1)
    opened().control.calibrate(1)
    assert measured == [1, 1]
