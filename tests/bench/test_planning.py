"""The cost model against sums done by hand, the roofline against known shapes, and predictions beside rows."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bench.test_page import measurement
from command_line import run_command
from flashdraft.bench.cost_model import AcceptanceProfile, Job, predict_seconds, predict_tokens_per_s
from flashdraft.bench.planning import check_rows, gpu_costs, median_error, plan_rows, published_checks
from flashdraft.bench.published import TARGETS, pair_configs
from flashdraft.bench.roofline import (
    GPUS,
    IDEAL,
    Cell,
    Efficiency,
    RooflineCosts,
    drafter_shape,
    fit_efficiency,
    target_shape,
)
from flashdraft.errors import UsageError
from tiny_pair import save_tiny_pair


@dataclass(frozen=True)
class RoundCosts:
    """Costs that are easy to add up: 1 s a forward and 0.1 s a token in it, drafts half, host 0.01 s."""

    def verify_s(self, num_requests: int, block_size: int) -> float:
        return 1 + 0.1 * num_requests * block_size

    def draft_s(self, num_requests: int, block_size: int) -> float:
        return 0.5 * self.verify_s(num_requests, block_size) if block_size > 1 else 0.0

    def prefill_s(self, num_tokens: int) -> float:
        return 0.02 * num_tokens

    def host_s(self) -> float:
        return 0.01


COSTS = RoundCosts()


def test_one_request_is_a_prefill_and_its_rounds() -> None:
    plain = predict_seconds(COSTS, [Job(10, 5)], 1, 1, 1.0)
    assert plain == pytest.approx((0.2 + 0.01) + 4 * (1.1 + 0.01))
    drafted = predict_seconds(COSTS, [Job(10, 5)], 1, 4, 2.0)
    assert drafted == pytest.approx((0.2 + 0.01) + 2 * (1.4 + 0.7 + 0.01))
    assert predict_seconds(COSTS, [Job(10, 1)], 1, 4, 2.0) == pytest.approx(0.21)


def test_the_closed_loop_is_replayed_with_its_end() -> None:
    # Two at a time: 2 rounds together, then the third alone with the longer one gone.
    seconds = predict_seconds(COSTS, [Job(10, 3), Job(10, 3), Job(10, 2)], 2, 1, 1.0)
    assert seconds == pytest.approx((0.4 + 0.01) + 2 * (1.2 + 0.01) + 0.2 + (1.1 + 0.01))
    rate = predict_tokens_per_s(COSTS, [Job(10, 3)] * 2, 2, 1, 1.0)
    assert rate == pytest.approx(6 / (0.41 + 2 * 1.21))


def test_a_profile_goes_on_from_what_is_known() -> None:
    profile = AcceptanceProfile({16: 4.0, 8: 3.5})
    assert [profile.length(size) for size in (1, 8, 16)] == [1.0, 3.5, 4.0]
    same_rate = AcceptanceProfile({4: 1 + 0.5 + 0.25 + 0.125})
    assert same_rate.length(2) == pytest.approx(1.5)
    assert same_rate.length(6) == pytest.approx(sum(0.5**i for i in range(6)))
    assert 3.5 > profile.length(4) > profile.length(2) > 1
    assert AcceptanceProfile({8: 8.0}).length(16) == pytest.approx(16.0)
    for wrong in ({8: 9.0}, {8: 0.5}, {0: 1.0}):
        with pytest.raises(UsageError, match="expected 1 to"):
            AcceptanceProfile(wrong)


def test_a_plan_has_plain_decodings_speed_as_its_measure() -> None:
    rows = plan_rows(COSTS, AcceptanceProfile({4: 3.0}), Job(10, 50), [1, 4], [1, 4])
    assert [(row.concurrency, row.block_size) for row in rows] == [(1, 1), (1, 4), (4, 1), (4, 4)]
    assert rows[0].speedup == rows[2].speedup == 1.0
    assert rows[1].speedup == pytest.approx(rows[1].output_tokens_per_s / rows[0].output_tokens_per_s)


def test_shapes_are_those_of_the_models() -> None:
    config, draft = pair_configs("qwen3-8b")
    target = target_shape(config)
    # 8.19 B parameters less the embedding's 0.62 B; two bytes each; 36 layers of 2 x 8 x 128 values.
    assert target.weight_bytes == pytest.approx(2 * (8.19e9 - 0.62e9), rel=0.005)
    assert (target.num_layers, target.kv_bytes_per_token, target.state_bytes) == (36, 36 * 2 * 8 * 128 * 2, 0)
    drafter = drafter_shape(draft, config)
    assert drafter.weight_bytes - 2 * 151936 * 4096 == pytest.approx(
        2.1e9, rel=0.05
    )  # the published file's size
    tied = target_shape(pair_configs("qwen3-4b")[0])
    assert tied.weight_bytes == pytest.approx(2 * 4.02e9, rel=0.005)
    hybrid = target_shape(pair_configs("qwen3.5-27b")[0])
    assert hybrid.kv_bytes_per_token == 16 * 2 * 4 * 256 * 2
    assert hybrid.state_bytes == 2 * 4 * 48 * 48 * 128 * 128  # read and written
    with pytest.raises(UsageError, match="expected one of"):
        pair_configs("other")


def test_the_bare_roofline_is_bytes_over_bandwidth_and_operations_over_the_peak() -> None:
    config, draft = pair_configs("qwen3-8b")
    costs = RooflineCosts(GPUS["H100"], target_shape(config), drafter_shape(draft, config), 100)
    weights = costs.target.weight_bytes
    assert costs.verify_s(2, 8) == pytest.approx(
        (weights + 2 * 100 * costs.target.kv_bytes_per_token) / 3.35e12 + 16 * weights / 989e12
    )
    assert costs.draft_s(2, 1) == 0
    slower = replace(costs, reached=Efficiency(0.5, 1.0, 1e-5, 1e-3))
    assert slower.verify_s(1, 1) > 2 * weights / 3.35e12 + 36e-5
    assert slower.draft_s(1, 8) > 1e-3


def test_the_fit_finds_what_was_planted() -> None:
    config, draft = pair_configs("qwen3-8b")
    truth = Efficiency(0.6, 0.4, 3e-5, 1.5e-3)
    bare = RooflineCosts(GPUS["B200"], target_shape(config), drafter_shape(draft, config), 600)
    real = replace(bare, reached=truth)
    cells = []
    for concurrency in (1, 2, 4, 8, 16, 32, 64, 128):
        plain_s = real.verify_s(concurrency, 1)
        step_s = real.verify_s(concurrency, 16) + real.draft_s(concurrency, 16)
        cells.append(Cell(bare, concurrency, 16, 6.0, 6.0 * plain_s / step_s, concurrency / plain_s))
    found = fit_efficiency(cells)
    assert max(abs(error) for cell in cells for error in cell.log_errors(found)) < 0.02
    assert max(abs(error) for cell in cells for error in cell.log_errors(IDEAL)) > 0.3
    assert found.peak_share == pytest.approx(0.4, rel=0.1)


def test_published_rows_are_met_where_fitted_and_told_apart_where_not() -> None:
    rows = published_checks(Job(128, 256))
    fitted = [row for row in rows if row.source == "table 3, fitted"]
    assert {row.method for row in fitted} == {"qwen3-4b", "qwen3-8b"}
    error = median_error([row.speedup_error for row in fitted])
    assert error is not None
    assert error < 0.1
    others = [row for row in rows if row not in fitted]
    assert {(row.method, row.source) for row in others} == {("qwen3.5-27b", "table 11, not fitted")}
    assert all(row.speedup_error is not None for row in others)
    for pair in TARGETS:
        speeds = [gpu_costs(pair, gpu, Job(128, 256)).verify_s(1, 1) for gpu in ("H100", "H200", "B200")]
        assert speeds == sorted(speeds, reverse=True)


def test_rows_made_by_the_model_are_predicted_without_error() -> None:
    rows = []
    for method, size, concurrency in (("AR", 1, 1), ("DFlash", 4, 1), ("AR", 1, 2), ("DFlash", 4, 2)):
        one = measurement(method, size, "t", "a", concurrency, 1.0)
        own = [replace(one, prompt_id=name) for name in "abcd"]
        jobs = [Job(m.num_prompt_tokens, m.metrics.num_output_tokens) for m in own]
        seconds = predict_seconds(COSTS, jobs, concurrency, size, one.metrics.acceptance_length)
        rows += [replace(m, wall_s=seconds / len(own)) for m in own]
    rows += [replace(m, method="n-gram") for m in rows if m.method == "DFlash"]
    found = check_rows(COSTS, rows)
    assert [(row.method, row.concurrency) for row in found] == [
        ("AR", 1),
        ("DFlash", 1),
        ("AR", 2),
        ("DFlash", 2),
    ]
    for row in found:
        assert row.error == pytest.approx(0, abs=1e-9)
        assert row.speedup_error == pytest.approx(0, abs=1e-9)
    doubled = check_rows(COSTS, [replace(m, wall_s=2 * m.wall_s) for m in rows])
    assert [row.error for row in doubled] == pytest.approx([1.0] * 4)
    assert median_error([None, -0.5, 0.1]) == pytest.approx(0.3)


def test_the_command_plans_this_machine_and_checks_its_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, drafter = save_tiny_pair(tmp_path)
    pair = ("--model", target, "--draft", drafter, "--dtype", "float32")
    small = (
        "--tasks",
        "gsm8k",
        "--limit",
        "4",
        "--max-tokens",
        "12",
        "--block-sizes",
        "8",
        "--out",
        str(tmp_path),
    )
    assert run_command(("bench", *small, *pair), capsys).exit_code == 0
    sizes = ("--concurrency", "1,2", "--block-sizes", "8,4", "--output-len", "20")
    asked = ("plan", "--acceptance", "8=2.5", *sizes, "--check", str(tmp_path / "rows.jsonl"), *pair)
    done = run_command((*asked, "--json"), capsys)
    document = json.loads(done.stdout.splitlines()[-1])
    assert [(row["concurrency"], row["block_size"]) for row in document["rows"]] == [
        (1, 8),
        (1, 4),
        (2, 8),
        (2, 4),
    ]
    assert all(row["output_tokens_per_s"] > 0 for row in document["rows"])
    assert [row["method"] for row in document["checks"]] == ["AR", "DFlash"]
    assert document["median_error"]["rows"]["tokens_per_s"] is not None
    assert document["provenance"]["git_sha"]
    assert "| gsm8k | DFlash | 8 | 1 |" in run_command(asked, capsys).stdout


@pytest.mark.parametrize(
    ("extra", "said"), [((), "--acceptance is missing"), (("--acceptance", "8:2"), "expected BLOCK=LENGTH")]
)
def test_a_plan_needs_to_know_what_a_round_gains(
    extra: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_command(("plan", *extra), capsys)
    assert (result.exit_code, said in result.stderr) == (2, True)
