"""The cost model against sums done by hand, and predictions beside rows."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bench.test_page import measurement
from command_line import run_command
from flashdraft.bench.cost_model import AcceptanceProfile, Job, predict_seconds, predict_tokens_per_s
from flashdraft.bench.planning import check_rows, median_error, plan_rows
from flashdraft.bench.published import CARD_PAIR
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
        (("--gpu", "B200", "--plain", "1=-3"), "expected finite numbers above 0"),
        (("--gpu", "B200", "--concurrency", "0"), "--concurrency is '0'; expected numbers above 0"),
        (("--gpu", "B200", "--block-sizes", "8,0"), "--block-sizes is '8,0'; expected numbers above 0"),
        (("--gpu", "B200", "--plain", "32=nan"), "--plain has '32=nan'; expected finite"),
        (("--gpu", "B200", "--plain", "32=inf"), "--plain has '32=inf'; expected finite"),
        (("--gpu", "B200", "--plain", "32=9,32=8"), "--plain has 32 twice"),
        (("--gpu", "nan,989", "--acceptance", "16=5"), "the GPU 'nan,989' is not known"),
        (("--gpu", "8,inf", "--acceptance", "16=5"), "the GPU '8,inf' is not known"),
        (("--gpu", "B200", "--pair", "qwen3-8b", "--draft", "mtp"), "not published with an MTP head"),
        (("--gpu", "B200", "--pair", "qwen3-8b", "--check", "x"), "is for rows of qwen3.5-27b"),
        (("--gpu", "abc"), "expected one of A100"),
        (("--acceptance", "8=2", "--plain", "1=84"), "--plain without --gpu"),
        (("--acceptance", "8=2", "--pair", "qwen3-8b", "--tp", "2"), "--tp and --pair without --gpu"),
        (("--acceptance", "8=2", "--engine", "flashdraft"), "--engine without --gpu"),
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
    assert "29 steps of this engine on one H200" in own
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
