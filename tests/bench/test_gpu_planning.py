"""The roofline against known shapes, its fits against planted numbers, and forecasts beside published rows."""

from dataclasses import replace
from statistics import median

import pytest

from flashdraft.bench.cost_model import AcceptanceProfile, Job
from flashdraft.bench.efficiency import (
    SERVERS,
    Cell,
    calibrate,
    fit_efficiency,
    least_squares,
    steady_tokens_per_s,
)
from flashdraft.bench.gpu_planning import (
    Engine,
    accuracy_text,
    error_range,
    forecast,
    left_out_checks,
    missed_text,
    published_pair,
)
from flashdraft.bench.own_steps import left_out_errors, own_fit, own_steps
from flashdraft.bench.published import CARD_PAIR, TARGETS, pair_configs
from flashdraft.bench.roofline import (
    Efficiency,
    NetworkShape,
    RooflineCosts,
    dflash_shape,
    mtp_shape,
    target_shape,
)
from flashdraft.errors import UsageError
from flashdraft.gpus import GPUS, Gpu, read_gpu


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
    head = mtp_shape(big)
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
    reached = Efficiency(
        0.5, 1.0, 1e-5, 1e-3, round_row_s=1e-5, scan_s=2e-6, draft_step_s=1e-4, draft_row_s=1e-5
    )
    slower = replace(costs, reached=reached)
    assert slower.verify_s(1, 1) > 2 * weights / 3.35e12 + 36e-5
    assert slower.draft_s(1, 8) > 1e-3
    hybrid = published_pair("qwen3.5-27b")
    scanned = RooflineCosts(GPUS["H100"], hybrid.target, hybrid.drafters["mtp"], 100, reached, "mtp")
    at_once = replace(scanned, reached=replace(reached, scan_s=0.0))
    for num_requests in (1, 4):  # 48 of the 64 layers take a block's tokens one after another
        scans_s = scanned.verify_s(num_requests, 8) - at_once.verify_s(num_requests, 8)
        assert scans_s == pytest.approx(48 * 7 * 2e-6)
    assert scanned.verify_s(1, 1) == at_once.verify_s(1, 1)
    assert slower.verify_s(1, 8) == replace(slower, reached=replace(reached, scan_s=0.0)).verify_s(1, 8)
    one, three = (
        scanned.draft_s(4, size) - 1e-3 - 4e-5 for size in (2, 4)
    )  # an MTP head drafts token by token
    assert three == pytest.approx(3 * one)
    assert one > 1e-4 + 4e-5


def test_the_fit_finds_what_was_planted() -> None:
    truth = replace(
        SERVERS,
        bandwidth_share=0.6,
        peak_share=0.4,
        layer_s=3e-5,
        round_s=1.5e-3,
        scan_s=6e-6,
        draft_row_s=2e-5,
    )
    pair, token_reads = published_pair("qwen3.5-27b"), {"a": 3e-3, "b": 0.015}
    cells = []
    for method, shape in pair.drafters.items():
        bare = RooflineCosts(GPUS["B200"], pair.target, shape, 600, method=method)
        for number, concurrency in enumerate((1, 2, 4, 8, 16, 32, 64, 128)):
            for size, length in ((1, 1.0), (4, 3.0), (16, 6.0)):
                cell = Cell(bare, Job(100, 1000), "ab"[number % 2], concurrency, size, length)
                speed, plain = cell.predict(truth, token_reads[cell.workload])
                told = {"speedup": speed / plain} if number % 3 == 0 and size > 1 else {"tokens_per_s": speed}
                cells.append(replace(cell, **told))
    found = fit_efficiency(cells)
    off = [
        error for cell in cells for error in cell.log_errors(found.reached, found.token_reads[cell.workload])
    ]
    assert max(map(abs, off)) < 0.01
    assert found.reached.peak_share == pytest.approx(0.4, rel=0.1)
    assert found.reached.draft_row_s == pytest.approx(2e-5, rel=0.1)
    assert found.reached.scan_s == pytest.approx(6e-6, rel=0.1)
    assert found.token_reads == pytest.approx(token_reads, rel=0.1)


def test_plain_decoding_tells_what_a_workload_costs_and_how_fast_a_gpu_is() -> None:
    pair, job = published_pair("qwen3-8b"), Job(128, 1000)
    here = forecast(pair, GPUS["B200"], job, "dflash")
    assert here.costs.reading_s == pytest.approx(2 * (8.19e9 - 0.62e9) / 8e12, rel=0.005)

    def measured(scale: float, reads: float) -> dict[int, float]:
        costs, token_s = replace(here.costs, scale=scale), reads * here.costs.reading_s
        return {n: steady_tokens_per_s(costs, job, n, 1, 1.0, token_s) for n in (1, 8, 32)}

    costs, reads = calibrate(here.costs, job, measured(1.0, 0.03), None)
    assert (costs, reads) == (here.costs, pytest.approx(0.03, rel=0.01))
    costs, reads = calibrate(here.costs, job, measured(1.4, 0.03), 0.03)
    assert (costs.scale, reads) == (pytest.approx(1.4, rel=0.01), 0.03)


@pytest.mark.parametrize(
    ("name", "engine"), [("qwen3-8b", "servers"), (CARD_PAIR, "servers"), ("qwen3-8b", "flashdraft")]
)
def test_plain_decoding_that_no_forecast_meets_is_told(name: str, engine: Engine) -> None:
    """Ten times as slow as can be, or as fast: nothing that is fitted has such values."""
    pair, gpu, job = published_pair(name), GPUS["B200"], Job(128, 1000)
    usual = forecast(pair, gpu, job, "dflash", engine=engine)
    speed = steady_tokens_per_s(usual.costs, job, 4, 1, 1.0, usual.token_s)
    assert missed_text(usual, {}) == ""
    for factor, is_met in ((1.0, True), (0.1, False), (10.0, False)):
        plain = {4: factor * speed}
        told = missed_text(forecast(pair, gpu, job, "dflash", plain=plain, engine=engine), plain)
        assert (
            told == "" if is_met else f"of 4 at a time is {factor * speed:,.4g} tokens/s by --plain" in told
        )


def test_what_the_least_squares_are_of_stays_within_its_bounds() -> None:
    def errors(numbers: list[float]) -> list[float]:
        return [numbers[0] * numbers[1] - 6, numbers[0] - 2]

    assert least_squares(errors, [1.0, 1.0], [0.1, 0.1], [10, 10]) == pytest.approx([2, 3], rel=1e-3)
    bound = least_squares(errors, [1.0, 1.0], [0.1, 0.1], [1.5, 10])
    assert bound == pytest.approx([1.5, 4], rel=1e-3)


def test_tasks_of_the_card_are_predicted_from_the_other_ones() -> None:
    """The card's 24 rows of each method, each task left out of the fit; its plain decoding is known, or nothing.

    One number of it does, where many requests share a step; of one request alone it tells little.
    """
    for known, most in (
        ((1, 8, 16, 32), (0.06, 0.15)),
        ((32,), (0.06, 0.16)),
        ((16,), (0.06, 0.16)),
        ((1,), (0.08, 0.36)),
        ((), (0.08, 0.42)),
    ):
        rows = left_out_checks("qwen3.5-27b", known)
        for method in ("dflash", "mtp"):
            off = sorted(abs(row.error or 0) for row in rows if row.method == method)
            assert len(off) == 24
            assert (median(off) <= most[0], off[-1] <= most[1]) == (True, True), (method, known, off)
    plain = {1: 84.0, 8: 625.0, 16: 1121.0, 32: 1949.0}
    pair, profile = published_pair("qwen3.5-27b"), AcceptanceProfile({16: 7.93})
    told = forecast(pair, GPUS["B200"], Job(128, 2500), "dflash", plain=plain)
    for row, found in zip(told.rows(profile, list(plain), [16]), (397, 2270, 3135, 3712), strict=True):
        assert row.likely is not None
        assert row.likely[0] < found < row.likely[1]
        assert row.plain_tokens_per_s == pytest.approx(plain[row.concurrency], rel=0.05)


def test_the_accuracy_told_is_that_of_the_plain_decoding_given() -> None:
    pair, job = published_pair(CARD_PAIR), Job(128, 2500)

    def told(plain: dict[int, float]) -> str:
        return accuracy_text(forecast(pair, GPUS["B200"], job, "dflash", plain=plain), pair, tuple(plain))

    def worst(text: str) -> int:
        return int(text.split("worst ")[1].split("%")[0])

    nothing, alone, many, between = told({}), told({1: 84.0}), told({32: 1949.0}), told({40: 2200.0})
    assert "nothing known of it" in nothing
    assert "by --plain for less error" in nothing
    assert "known at 1 at a time" in alone
    assert "16 at a time or more tells more" in alone
    assert "known at 32 at a time" in many
    assert "tells more" not in many
    assert worst(many) < worst(alone)
    assert worst(between) == worst(many)  # 32 is the nearest that is published


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
    network = NetworkShape(10, 64, 3e9, 4e9, 0.0, num_recurrent_layers=8)
    reached = Efficiency(1.0, 1.0, 1e-5, 0.0, request_s=1e-6, overlap=2.0, tile=128)
    costs = RooflineCosts(Gpu(1e12, 1e14), network, network, 0.0, reached)
    # 3 ms of bytes and 40 us of operations for each token.
    narrow = (3e-3**2 + (20 * 4e-5) ** 2) ** 0.5 + 10 * 1e-5 + 8 * 4 * 1e-6
    assert costs.verify_s(4, 5) == pytest.approx(narrow)
    for blocks in (5, 8):  # 40 and 64 tokens: one tile of 128
        wide = (3e-3**2 + (128 * 4e-5) ** 2) ** 0.5 + 10 * 1e-5 + 8 * 8 * 1e-6
        assert costs.verify_s(8, blocks) == pytest.approx(wide)


def test_steps_of_this_engine_on_an_h200_are_foretold() -> None:
    steps, reached = own_steps(), own_fit().reached
    for step in steps:
        costs = forecast(
            published_pair(CARD_PAIR), GPUS["H200"], Job(600, 0), step.method, engine="flashdraft"
        ).costs
        assert costs.reached == reached
        if step.pair == CARD_PAIR:
            told = costs.verify_s(step.concurrency, step.block_size)
            told += costs.draft_s(step.concurrency, step.block_size)
            assert 1e3 * told == pytest.approx(step.step_ms, rel=0.05), step
    own = [error for step, error in zip(steps, left_out_errors(), strict=True) if step.pair == CARD_PAIR]
    assert len(own) == 16
    assert max(abs(1 / error - 1) for error in own) < 0.05
    assert median(abs(1 / error - 1) for error in left_out_errors()) < 0.04
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
