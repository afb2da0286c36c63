"""Aggregation on rows small enough to work out by hand."""

import json
from dataclasses import replace

import pytest

from flashdraft.bench.config import BenchConfig
from flashdraft.bench.lossless import Difference
from flashdraft.bench.report import json_document, markdown, summary
from flashdraft.bench.results import BenchRow, Measurement, aggregate, repeated_share
from flashdraft.bench.rows_file import Results
from flashdraft.bench.tables import card_table
from flashdraft.spec_decode.metrics import RequestMetrics

PLAIN_1 = Measurement(
    task="gsm8k",
    prompt_id="a",
    turn=0,
    repeat=0,
    method="AR",
    block_size=1,
    concurrency=1,
    order_idx=0,
    num_prompt_tokens=5,
    finish_reason="stop",
    wall_s=10.0,
    ttft_s=2.5,
    total_s=10.5,
    gaps={0: 8},
    metrics=RequestMetrics(
        num_rounds=8,
        num_output_tokens=9,
        accepted_histogram=[8],
        prefill_s=2.0,
        decode_s=8.0,
        verify_s=7.2,
    ),
    repeated_share=0.0,
    difference=None,
    is_correct=True,
)
# The same 9 tokens in 4 rounds that accepted 0, 1, 3 and 0 draft tokens: 8 tokens after the prefill's.
DRAFTED_1 = replace(
    PLAIN_1,
    method="DFlash",
    block_size=4,
    wall_s=8.0,
    gaps={-32: 3, 32: 1},
    metrics=RequestMetrics(
        num_rounds=4,
        num_drafted=12,
        num_accepted=4,
        num_output_tokens=9,
        accepted_histogram=[2, 1, 0, 1],
        prefill_s=2.0,
        decode_s=6.0,
        draft_s=1.0,
        verify_s=4.0,
    ),
)
# A second prompt: 3 tokens, one round that accepted one draft token, in an answer that loops and differs.
PLAIN_2 = replace(
    PLAIN_1,
    prompt_id="b",
    wall_s=3.0,
    is_correct=False,
    repeated_share=0.5,
    metrics=RequestMetrics(
        num_rounds=2,
        num_output_tokens=3,
        accepted_histogram=[2],
        prefill_s=1.0,
        decode_s=2.0,
        verify_s=1.8,
    ),
)
DRAFTED_2 = replace(
    PLAIN_2,
    method="DFlash",
    block_size=4,
    wall_s=2.0,
    difference=Difference(index=1, gap=0.25, is_near_tie=True),
    metrics=RequestMetrics(
        num_rounds=1,
        num_drafted=2,
        num_accepted=1,
        num_output_tokens=3,
        accepted_histogram=[0, 1, 0],
        prefill_s=1.0,
        decode_s=1.0,
        draft_s=0.25,
        verify_s=0.75,
    ),
)
ALL = [PLAIN_1, DRAFTED_1, DRAFTED_2, PLAIN_2]


def rows() -> dict[str, BenchRow]:
    return {row.method: row for row in aggregate(ALL)}


def test_rates_are_ratios_of_sums() -> None:
    plain, drafted = rows()["AR"], rows()["DFlash"]
    assert plain.output_tokens_per_s == pytest.approx(12 / 13)
    assert drafted.output_tokens_per_s == pytest.approx(12 / 10)
    assert drafted.speedup == pytest.approx(1.3)
    assert drafted.speedup_median == pytest.approx((10 / 8 + 3 / 2) / 2)
    assert plain.decode_tokens_per_s == pytest.approx(10 / 10)
    assert drafted.decode_tokens_per_s == pytest.approx(10 / 7)
    assert drafted.decode_speedup == pytest.approx(10 / 7)
    assert drafted.prefill_s == pytest.approx(1.5)
    assert (plain.speedup, plain.speedup_median, plain.decode_speedup) == (1, 1, 1)


def test_acceptance_counts_all_rounds_and_answers_that_do_not_loop_apart() -> None:
    plain, drafted = rows()["AR"], rows()["DFlash"]
    assert drafted.acceptance_length == pytest.approx(10 / 5)
    assert drafted.acceptance_length_not_looping == pytest.approx(8 / 4)
    assert drafted.accepted_histogram == [2, 2, 0, 1]
    assert drafted.accepted_by_position == pytest.approx([3 / 5, 1 / 5, 1 / 5])
    assert (plain.acceptance_length, plain.num_looping, drafted.num_looping) == (1, 1, 1)


def test_the_answers_mean_counts_each_answer_once_however_long() -> None:
    worse = replace(DRAFTED_2, metrics=replace(DRAFTED_2.metrics, num_rounds=2, accepted_histogram=[2, 0, 0]))
    drafted = aggregate([PLAIN_1, DRAFTED_1, worse, PLAIN_2])[1]
    assert drafted.acceptance_length == pytest.approx(10 / 6)
    assert drafted.acceptance_length_of_answers == pytest.approx((8 / 4 + 2 / 2) / 2)
    assert "| DFlash B4 | 1.67 | 1.50 | – |" in card_table([drafted])


def test_a_round_splits_into_draft_verify_and_host() -> None:
    drafted = rows()["DFlash"]
    assert drafted.round_draft_s == pytest.approx(1.25 / 5)
    assert drafted.round_verify_s == pytest.approx(4.75 / 5)
    assert drafted.round_host_s == pytest.approx((7 - 6) / 5)
    # Plain decoding takes 1 s a token, a round is busy 1.2 s and gains 2 tokens; 10/7 was reached.
    assert drafted.promised_speedup == pytest.approx(2.0 * 1.0 / 1.2)
    assert drafted.promise_share == pytest.approx((10 / 7) / (2 / 1.2))


def test_differences_are_counted_by_kind() -> None:
    wrong = replace(DRAFTED_1, difference=Difference(index=0, gap=3.0, is_near_tie=False))
    drafted = aggregate([PLAIN_1, PLAIN_2, wrong, DRAFTED_2])[1]
    assert (drafted.num_answers, drafted.num_equal, drafted.num_near_ties) == (2, 0, 1)
    assert drafted.largest_gap == 3.0
    assert (rows()["DFlash"].num_equal, rows()["DFlash"].num_near_ties) == (1, 1)
    assert rows()["AR"].largest_gap is None


def test_each_turn_meets_its_own_baseline() -> None:
    second = [replace(m, turn=1, wall_s=m.wall_s * 2) for m in ALL]
    drafted = aggregate(ALL + second)[1]
    assert drafted.speedup == pytest.approx(1.3)
    assert drafted.num_answers == 4


def test_answers_of_one_token_divide_by_nothing() -> None:
    metrics = RequestMetrics(num_output_tokens=1, prefill_s=1.0)
    plain = replace(PLAIN_1, wall_s=1.0, metrics=metrics)
    _, drafted = aggregate([plain, replace(plain, method="DFlash", block_size=4)])
    assert drafted.acceptance_length == 1.0
    assert drafted.decode_tokens_per_s is drafted.promised_speedup is drafted.round_host_s is None
    assert "–" in markdown([drafted], RESULTS)


def test_repeated_share() -> None:
    assert repeated_share([]) == repeated_share(range(8)) == repeated_share(range(100)) == 0
    assert repeated_share([7] * 17) == pytest.approx(9 / 10)
    assert repeated_share([*range(20), *range(20)]) == pytest.approx(13 / 33)


RESULTS = Results([{"settings": {"limit": 2}, "provenance": {"git_sha": "abc", "versions": {"torch": "2"}}}])


def test_the_document_is_json() -> None:
    document = json.loads(json.dumps(json_document(aggregate(ALL), RESULTS)))
    assert document["rows"][1]["task"] == "gsm8k"
    wanted = {"method", "block_size", "concurrency", "output_tokens_per_s", "speedup", "acceptance_length"}
    assert wanted <= document["rows"][1].keys()
    assert document["rows"][1]["itl_s"]["p50"] == 1.0
    assert (document["settings"], document["provenance"]["git_sha"]) == ({"limit": 2}, "abc")


def test_latencies_are_those_of_answers_and_gaps() -> None:
    drafted = rows()["DFlash"]
    assert drafted.ttft_s is not None
    assert drafted.ttft_s.p50 == 2.5
    assert drafted.tpot_s is not None
    assert (drafted.tpot_s.p50, drafted.tpot_s.p99) == (8 / 8, 8 / 2)
    assert drafted.itl_s is not None
    assert (drafted.itl_s.p50, drafted.itl_s.p90, drafted.itl_s.p99) == (1.0, 1.0, 2.0)


def test_right_answers_are_counted_where_there_are_any() -> None:
    assert [(r.num_graded, r.num_correct) for r in aggregate(ALL)] == [(2, 1), (2, 1)]
    cut = aggregate([replace(m, finish_reason="length") if m.prompt_id == "a" else m for m in ALL])
    assert [(r.num_cut, r.num_graded, r.num_correct) for r in cut] == [(1, 1, 0), (1, 1, 0)]
    ungraded = aggregate([replace(m, is_correct=None) for m in ALL])
    assert [(r.num_graded, r.num_correct) for r in ungraded] == [(0, 0), (0, 0)]


def test_repeats_meet_their_own_baseline() -> None:
    again = [replace(m, repeat=1, wall_s=m.wall_s * (3 if m.method == "AR" else 1)) for m in ALL]
    plain, drafted = aggregate(ALL + again)
    assert drafted.speedup == pytest.approx((13 + 39) / 20)
    assert plain.num_answers == 4


def test_the_report_shows_every_figure() -> None:
    other = [replace(m, task="mbpp", wall_s=m.wall_s / 2) for m in ALL]
    text = markdown(aggregate(ALL + other), RESULTS)
    assert "Settings: limit 2." in text
    assert "speed-up, block size 4\n\n| task | concurrency | AR | DFlash |" in text
    assert "| gsm8k | 1 | 0.9 | 1.2 (1.30x) |" in text
    assert "| mbpp | 1 | 1.8 | 2.4 (1.30x) |" in text
    assert "| mean of tasks | 1 | 1.4 | 1.8 (1.30x) |" in text
    assert "| mean of tasks | 2.00 (2.00) |" in text
    assert "| gsm8k | 2.00 (2.00) |" in text
    assert "| gsm8k | DFlash B4 | 60 | 20 | 20 |" in text
    assert "| gsm8k | 1 | DFlash B4 | 2 | 1.30x | 1.25 to 1.50 | 1.38x | 1.43x |" in text
    assert "| gsm8k | 1 | DFlash B4 | 2500.0 / 2500.0 | 1000.0 / 4000.0 | 1000.0 / 2000.0 |" in text
    assert "| gsm8k | 1 | DFlash B4 | 5 | 250.00 | 950.00 | 200.00 | 1.43x | 1.67x | 86% |" in text
    assert "| gsm8k | 1 | DFlash B4 | 2 | 1 | 1 | 0 | 50% | 0.25 | 1 |" in text
    assert "| gsm8k | 1 | AR | 0 | 2 | 1 | 50.0% |" in text
    assert "- versions: torch 2" in text


def test_the_summary_is_five_lines_over_all_tasks() -> None:
    other = [replace(m, task="mbpp", wall_s=m.wall_s / 2, finish_reason="length") for m in ALL]
    lines = summary(aggregate(ALL + other), RESULTS).splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("- gsm8k, mbpp with ")
    # 24 tokens in 13 + 6.5 seconds plainly, in 10 + 5 drafted.
    assert lines[1] == "- fastest: 1 at once DFlash B4, 1.30x, 2 tokens/s against 1"
    assert lines[2] == "- acceptance length: DFlash B4 2.00"
    assert lines[3] == "- plain decoding's tokens in 2 of 4 answers; 2 part at a near-tie, 0 otherwise"
    assert lines[4] == "- whole answers: 1 of 2 right; 2 were cut by the limit of tokens and are not graded"
    slower = [replace(m, wall_s=m.wall_s * (1 if m.method == "AR" else 9)) for m in ALL]
    assert "1 at once plain decoding, 1.00x" in summary(aggregate(slower), RESULTS)
    assert "nothing beside plain decoding ran" in summary(aggregate([PLAIN_1, PLAIN_2]), RESULTS)


def test_rows_stand_beside_the_published_card() -> None:
    plain, drafted = aggregate(ALL)
    drafted = replace(drafted, method="DFlash", block_size=8)
    other = replace(drafted, task="mbpp")
    lines = card_table([plain, drafted, other]).splitlines()[2:]
    assert lines[0] == "| gsm8k | 1 | AR | – | – | – | 0.9 | 83 | 1.00x | 1.00x |"
    assert lines[1] == "| gsm8k | 1 | DFlash B8 | 2.00 | 2.00 | 5.57 | 1.2 | 301 | 1.30x | 3.63x |"
    assert lines[2] == "| mbpp | 1 | DFlash B8 | 2.00 | 2.00 | 5.60 | 1.2 | – | 1.30x | – |"
    asked = replace(BenchConfig(), max_tokens=12).card()
    assert (asked.max_tokens, asked.concurrency, asked.thinking) == (12, "32,16,8,1", "on")
