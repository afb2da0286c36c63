"""The cost model against sums done by hand, the roofline against known shapes, and predictions beside rows."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import pytest

from bench.test_page import measurement
from command_line import run_command
from flashdraft.bench.cost_model import AcceptanceProfile, Job, predict_seconds, predict_tokens_per_s
from flashdraft.bench.efficiency import Cell, calibrate, fit_efficiency, least_squares, steady_tokens_per_s
from flashdraft.bench.gpu_planning import error_range, forecast, left_out_checks, published_pair
from flashdraft.bench.own_steps import left_out_errors, own_fit, own_steps
from flashdraft.bench.planning import check_rows, median_error, plan_rows
from flashdraft.bench.published import CARD_PAIR, TARGETS, pair_configs
from flashdraft.bench.roofline import (
    Efficiency,
    NetworkShape,
    RooflineCosts,
    dflash_shape,
    drafter_shape,
    target_shape,
)
from flashdraft.errors import UsageError
from flashdraft.gpus import GPUS, Gpu, read_gpu
from flashdraft.models.drafter_network import part_of
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
    drafter = dflash_shape(draft, config)
    assert drafter.weight_bytes - 2 * 151936 * 4096 == pytest.approx(
        2.1e9, rel=0.05
    )  # the published file's size
    tied = target_shape(pair_configs("qwen3-4b")[0])
    assert tied.weight_bytes == pytest.approx(2 * 4.02e9, rel=0.005)
    hybrid = target_shape(pair_configs("qwen3.5-27b")[0])
    assert hybrid.kv_bytes_per_token == 16 * 2 * 4 * 256 * 2
    assert hybrid.state_bytes == 2 * 4 * 48 * 48 * 128 * 128  # read and written
    # One layer of full attention, what joins its two inputs, and the head.
    big = pair_configs("qwen3.5-27b")[0]
    head = drafter_shape(part_of("mtp", "checkpoint").outline_for(big), big)
    width, queries = 5120, 24 * 256
    layer = 3 * width * 17408 + width * (2 * queries + 2 * 4 * 256) + queries * width
    assert head.weight_bytes == pytest.approx(2 * (layer + 2 * width * width + 248320 * width), rel=1e-3)
    with pytest.raises(UsageError, match="expected one of"):
        pair_configs("other")


def test_the_bare_roofline_is_bytes_over_bandwidth_and_operations_over_the_peak() -> None:
    config, draft = pair_configs("qwen3-8b")
    costs = RooflineCosts(GPUS["H100"], target_shape(config), dflash_shape(draft, config), 100)
    weights = costs.target.weight_bytes
    assert costs.verify_s(2, 8) == pytest.approx(
        (weights + 2 * 100 * costs.target.kv_bytes_per_token) / 3.35e12 + 16 * weights / 989e12
    )
    assert costs.draft_s(2, 1) == 0
    slower = replace(costs, reached=Efficiency(0.5, 1.0, 1e-5, 1e-3, 1.0, 1e-4, 1e-5))
    assert slower.verify_s(1, 1) > 2 * weights / 3.35e12 + 36e-5
    assert slower.draft_s(1, 8) > 1e-3
    hybrid = published_pair("qwen3.5-27b")
    moved = RooflineCosts(GPUS["H100"], hybrid.target, hybrid.drafters["mtp"], 100, slower.reached, "mtp")
    states = 8 * hybrid.target.state_bytes / 2 / (3.35e12 * 0.5)  # of eight verified tokens
    unmoved = replace(moved, reached=replace(slower.reached, state_moves=0.0))
    assert moved.verify_s(1, 8) - unmoved.verify_s(1, 8) == pytest.approx(states)
    assert moved.verify_s(1, 1) == unmoved.verify_s(1, 1)
    one, three = (moved.draft_s(4, size) - 1e-3 for size in (2, 4))  # an MTP head drafts token by token
    assert three == pytest.approx(3 * one)
    assert one > 1e-4 + 4e-5


def test_the_fit_finds_what_was_planted() -> None:
    truth = Efficiency(0.6, 0.4, 3e-5, 1.5e-3, 0.8, 2e-4, 2e-5)
    pair, token_s = published_pair("qwen3.5-27b"), {"a": 2e-5, "b": 9e-5}
    cells = []
    for method, shape in pair.drafters.items():
        bare = RooflineCosts(GPUS["B200"], pair.target, shape, 600, method=method)
        for number, concurrency in enumerate((1, 2, 4, 8, 16, 32, 64, 128)):
            for size, length in ((1, 1.0), (4, 3.0), (16, 6.0)):
                cell = Cell(bare, Job(100, 1000), "ab"[number % 2], concurrency, size, length)
                speed, plain = cell.predict(truth, token_s[cell.workload])
                told = {"speedup": speed / plain} if number % 3 == 0 and size > 1 else {"tokens_per_s": speed}
                cells.append(replace(cell, **told))
    found = fit_efficiency(cells)
    off = [error for cell in cells for error in cell.log_errors(found.reached, found.token_s[cell.workload])]
    assert max(map(abs, off)) < 0.01
    assert found.reached.peak_share == pytest.approx(0.4, rel=0.1)
    assert found.reached.draft_row_s == pytest.approx(2e-5, rel=0.1)
    assert found.token_s == pytest.approx(token_s, rel=0.1)


def test_plain_decoding_tells_what_a_workload_costs_and_how_fast_a_gpu_is() -> None:
    pair, job = published_pair("qwen3-8b"), Job(128, 1000)
    here = forecast(pair, GPUS["B200"], job, "dflash")
    slow = replace(here.costs, scale=1.4)
    plain = {n: steady_tokens_per_s(slow, job, n, 1, 1.0, 7e-5) for n in (1, 8, 32)}
    costs, token_s = calibrate(here.costs, job, plain, scales=True)
    assert (costs.scale, token_s) == (pytest.approx(1.4, rel=0.01), pytest.approx(7e-5, rel=0.05))
    same, _ = calibrate(here.costs, job, plain, scales=False)
    assert same.scale == 1.0


def test_what_the_least_squares_are_of_stays_within_its_bounds() -> None:
    def errors(numbers: list[float]) -> list[float]:
        return [numbers[0] * numbers[1] - 6, numbers[0] - 2]

    assert least_squares(errors, [1.0, 1.0], [0.1, 0.1], [10, 10]) == pytest.approx([2, 3], rel=1e-3)
    bound = least_squares(errors, [1.0, 1.0], [0.1, 0.1], [1.5, 10])
    assert bound == pytest.approx([1.5, 4], rel=1e-3)


def test_tasks_of_the_card_are_predicted_from_the_other_ones() -> None:
    """The card's 24 rows of each method, each task left out of the fit; its plain decoding is known, or nothing."""
    for calibrates, most in ((True, (0.08, 0.2)), (False, (0.15, 0.45))):
        rows = left_out_checks("qwen3.5-27b", calibrates)
        for method in ("dflash", "mtp"):
            off = sorted(abs(row.error or 0) for row in rows if row.method == method)
            assert len(off) == 24
            assert (median(off) <= most[0], off[-1] <= most[1]) == (True, True), (method, calibrates, off)
    plain = {1: 84.0, 8: 625.0, 16: 1121.0, 32: 1949.0}
    pair, profile = published_pair("qwen3.5-27b"), AcceptanceProfile({16: 7.93})
    told = forecast(pair, GPUS["B200"], Job(128, 2500), "dflash", plain=plain)
    for row, found in zip(told.rows(profile, list(plain), [16]), (397, 2270, 3135, 3712), strict=True):
        assert row.likely is not None
        assert row.likely[0] < found < row.likely[1]
        assert row.plain_tokens_per_s == pytest.approx(plain[row.concurrency], rel=0.05)


def test_other_gpus_and_pairs_have_no_range_or_a_wide_one() -> None:
    job, profile = Job(128, 1000), AcceptanceProfile({16: 6.0})
    pair = published_pair("qwen3-8b")
    assert forecast(pair, GPUS["H200"], job, "dflash").rows(profile, [1], [16])[0].likely is None
    for name in TARGETS:
        speeds = [
            forecast(published_pair(name), GPUS[gpu], job, "dflash").rows(profile, [1], [16])[0]
            for gpu in ("L40S", "H100", "H200", "B200")
        ]
        found = [row.output_tokens_per_s for row in speeds]
        assert found == sorted(found)
    one, two = (forecast(pair, GPUS["H100"], job, "dflash", tp) for tp in (1, 2))
    alone, shared = (one.costs.verify_s(8, 16), two.costs.verify_s(8, 16))
    assert alone / 2 < shared < alone


def test_reading_and_computing_overlap_and_wide_products_compute_whole_tiles() -> None:
    network = NetworkShape(10, 64, 3e9, 4e9, 0.0, 0.0)
    reached = Efficiency(1.0, 1.0, 1e-5, 0.0, 0.0, 0.0, 0.0, request_s=1e-6, overlap=2.0, tile=128)
    costs = RooflineCosts(Gpu(1e12, 1e14), network, network, 0.0, reached)
    # 3 ms of bytes and 40 us of operations for each token.
    narrow = (3e-3**2 + (20 * 4e-5) ** 2) ** 0.5 + 10 * (1e-5 + 4 * 1e-6)
    assert costs.verify_s(4, 5) == pytest.approx(narrow)
    for blocks in (5, 8):  # 40 and 64 tokens: one tile of 128
        wide = (3e-3**2 + (128 * 4e-5) ** 2) ** 0.5 + 10 * (1e-5 + 8 * 1e-6)
        assert costs.verify_s(8, blocks) == pytest.approx(wide)


def test_steps_of_this_engine_on_an_h200_are_foretold() -> None:
    steps, reached = own_steps(), own_fit().reached
    for step in steps:
        costs = forecast(
            published_pair(CARD_PAIR), GPUS["H200"], Job(600, 0), "dflash", engine="flashdraft"
        ).costs
        assert costs.reached == reached
        if step.pair == CARD_PAIR:
            told = costs.verify_s(step.concurrency, step.block_size)
            told += costs.draft_s(step.concurrency, step.block_size)
            assert 1e3 * told == pytest.approx(step.step_ms, rel=0.05), step
    own = [error for step, error in zip(steps, left_out_errors(), strict=True) if step.pair == CARD_PAIR]
    assert len(own) == 12
    assert max(abs(1 / error - 1) for error in own) < 0.1
    assert median(abs(1 / error - 1) for error in left_out_errors()) < 0.05
    job, profile = Job(100, 500), AcceptanceProfile({16: 7.93})
    on_h200, on_h100 = (
        forecast(published_pair(CARD_PAIR), GPUS[gpu], job, "dflash", engine="flashdraft").rows(
            profile, [1], [16]
        )[0]
        for gpu in ("H200", "H100")
    )
    assert on_h200.likely is not None
    assert on_h200.likely[0] < on_h200.output_tokens_per_s < on_h200.likely[1]
    assert on_h100.likely is None
    assert on_h100.output_tokens_per_s < on_h200.output_tokens_per_s
    plain = forecast(
        published_pair(CARD_PAIR), GPUS["H200"], job, "dflash", plain={1: 40.0}, engine="flashdraft"
    )
    assert steady_tokens_per_s(plain.costs, job, 1, 1, 1.0, plain.token_s) == pytest.approx(40, rel=0.01)


def test_a_gpu_is_named_or_told_by_its_numbers() -> None:
    assert read_gpu("h200") == read_gpu("4.8,989,450,141") == GPUS["H200"]
    assert read_gpu("1,100").link == Gpu(1, 1).link
    for wrong in ("H3000", "4.8", "1,2,3,4,5", "0,989", "a,b"):
        with pytest.raises(UsageError, match="expected one of A100, H20"):
            read_gpu(wrong)


def test_the_error_range_holds_nine_of_ten() -> None:
    assert error_range([1.0]) == (1.0, 1.0)
    assert error_range(list(range(101))) == (5, 95)


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
    ("extra", "said"),
    [
        ((), "--acceptance is missing"),
        (("--acceptance", "8:2"), "expected NUMBER=VALUE"),
        (("--gpu", "B200", "--plain", "1=-3"), "expected numbers above 0"),
        (("--gpu", "B200", "--pair", "qwen3-8b", "--draft", "mtp"), "not published with an MTP head"),
        (("--gpu", "B200", "--pair", "qwen3-8b", "--check", "x"), "is for rows of qwen3.5-27b"),
        (("--gpu", "abc"), "expected one of A100"),
        (("--gpu", "H200", "--engine", "vllm"), "expected servers or flashdraft"),
    ],
)
def test_a_plan_needs_to_know_what_a_round_gains(
    extra: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_command(("plan", *extra), capsys)
    assert (result.exit_code, said in result.stderr) == (2, True)


def test_the_command_plans_any_folder_on_any_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, drafter = save_tiny_pair(tmp_path)
    told = ("plan", "--gpu", "4.8,989,450", "--tp", "2", "--acceptance", "8=2.5", "--block-sizes", "8")
    text = run_command((*told, "--model", target, "--draft", drafter), capsys).stdout
    assert f"# {target} on 2 4.8,989,450" in text
    assert "no range can be given" in text
    assert "An all-reduce is assumed to take 15 us" in text
    own = run_command(
        ("plan", "--gpu", "H200", "--pair", CARD_PAIR, "--engine", "flashdraft", "--acceptance", "16=7.93"),
        capsys,
    ).stdout
    assert "19 steps of this engine on one H200" in own
    card = tmp_path / "card.jsonl"
    card.write_text(
        "".join(
            json.dumps({"task": "mbpp", "concurrency": 1} | row) + "\n"
            for row in (
                {"method": "ar", "block_size": 1, "acceptance_length": 1.0, "output_tokens_per_s": 84},
                {"method": "dflash", "block_size": 8, "acceptance_length": 5.6, "output_tokens_per_s": 318},
                {"acceptance_only": True},
            )
        )
    )
    document = json.loads(
        run_command(("plan", "--gpu", "B200", "--check", str(card), "--json"), capsys).stdout.splitlines()[-1]
    )
    [row] = document["checks"]
    assert (row["task"], row["method"], row["found_speedup"]) == ("mbpp", "dflash", pytest.approx(318 / 84))
    assert document["rows"][0]["likely"][0] < document["rows"][0]["output_tokens_per_s"]
    card.write_text('{"task": "mbpp", "output_tokens_per_s": 84}\n')
    assert (
        "no rows of a model card"
        in run_command(("plan", "--gpu", "B200", "--check", str(card)), capsys).stderr
    )
