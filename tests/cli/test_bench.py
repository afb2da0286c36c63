"""``flashdraft bench``: the report, the JSON line, the files, and going on where it was cut off."""

import json
from pathlib import Path

import pytest

from command_line import Run
from flashdraft.checkpoint.load import load_target, save_drafter
from tiny_pair import save_tiny_pair
from toys import toy_mtp

SMALL = ["--tasks", "gsm8k,mt-bench", "--limit", "1", "--max-tokens", "12", "--block-sizes", "8,4"]


def test_the_last_line_is_one_json_document_and_the_files_are_written(
    run: Run, pair: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "results"
    asked = [
        "bench",
        *SMALL,
        "--methods",
        "ar,ngram,dflash,auto",
        "--concurrency",
        "1,2",
        "--out",
        str(out),
        *pair,
    ]
    result = run(*asked, "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout.splitlines()[-1])
    columns = [("AR", 1), ("n-gram", 8), ("n-gram", 4), ("DFlash", 8), ("DFlash", 4), ("auto", "auto")]
    found = [(r["task"], r["concurrency"], r["method"], r["block_size"]) for r in document["rows"]]
    wanted = [(task, c, *column) for task in ("gsm8k", "mt-bench") for c in (1, 2) for column in columns]
    assert set(found) == set(wanted)
    assert len(found) == len(wanted)
    for row in document["rows"]:
        assert row["num_equal"] == row["num_answers"] == row["concurrency"]
        assert row["output_tokens_per_s"] > 0
        assert row["speedup"] > 0
        assert row["acceptance_length"] >= 1
    assert document["settings"]["max_tokens"] == 12
    assert document["provenance"]["num_threads"] >= 1
    lines = (out / "rows.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 36
    assert (out / "report.md").read_text().startswith("# Benchmark")

    # Cut off within a chunk: that chunk is measured anew, the others are taken from the file.
    (out / "rows.jsonl").write_text("".join(lines[:20]) + lines[20][:50])
    said = run(*asked)
    assert said.exit_code == 0
    assert said.stdout.startswith("- gsm8k, mt-bench with ")
    assert len(said.stdout.splitlines()) == 7
    assert f"The whole report is in {out / 'report.md'}." in said.stdout
    again = (out / "rows.jsonl").read_text().splitlines(keepends=True)
    assert (again[0], again[2:14]) == (lines[0], lines[1:13])
    assert len(again) == 2 + 36
    drawn = run("report", str(out), "--title", "Tiny")
    assert drawn.exit_code == 0
    assert (out / "report.html").read_text().count("<svg") == 2 + 2 + 2 + 2
    assert len(list((out / "charts").iterdir())) == 8
    assert run("report", str(out / "none.jsonl")).exit_code == 2
    other = run(*asked, "--max-tokens", "11")
    assert other.exit_code == 2
    assert "max_tokens 12 (now 11)" in other.stderr


def test_the_report_is_markdown_where_it_is_piped(run: Run, pair: list[str]) -> None:
    result = run("bench", *SMALL, "--mixed", *pair)
    assert result.exit_code == 0
    assert "\n| task | concurrency | AR | DFlash | auto |\n" in result.stdout
    assert "\n| mixed | 1 | " in result.stdout


@pytest.mark.parametrize("extra", [[], ["--max-tokens", "5", "--concurrency", "32,2"]])
def test_quick_is_small_and_never_larger_than_asked(run: Run, pair: list[str], extra: list[str]) -> None:
    result = run("bench", "--quick", "--tasks", "mbpp", "--block-sizes", "8", "--json", *extra, *pair)
    settings = json.loads(result.stdout)["settings"]
    assert (settings["limit"], settings["max_tokens"]) == (2, 5 if extra else 48)
    assert settings["concurrency"] == ("2" if extra else "1")


def test_the_controller_is_a_method_and_explains_itself(run: Run, pair: list[str]) -> None:
    result = run("bench", *SMALL, "--methods", "auto", "--concurrency", "2", "--explain", *pair)
    assert result.exit_code == 0
    assert "| gsm8k | 2 | auto | " in result.stdout.split("## What the controller chose")[1]
    assert "tokens verified" in result.stderr
    assert "wrong" not in result.stdout.split("## Same tokens")[0]


def test_dice_may_accept_for_studies_of_cost_and_the_report_says_so(run: Run, pair: list[str]) -> None:
    asked = ["bench", *SMALL, "--max-tokens", "60", *pair, "--json"]
    rows = json.loads(run(*asked, "--simulate-acceptance", "4").stdout)["rows"]
    [row] = [r for r in rows if (r["task"], r["method"], r["block_size"]) == ("gsm8k", "DFlash", 8)]
    assert row["acceptance_length"] > 2.5, "a random drafter is never right"
    assert row["num_graded"] == 0
    report = run(*asked[:-1], "--simulate-acceptance", "0.9,0.5").stdout
    assert report.count("Dice decided what was accepted") == 2
    for wrong in ("most", "17", "0.5,3"):
        refused = run(*asked, "--simulate-acceptance", wrong)
        assert (refused.exit_code, "expected" in refused.stderr) == (2, True)


def test_a_named_drafter_is_a_method(run: Run, pair: list[str], tmp_path: Path) -> None:
    target = load_target(pair[1], dtype="float32")
    save_drafter(toy_mtp(target), tmp_path / "head")
    small = ["bench", "--tasks", "mbpp", "--limit", "1", "--max-tokens", "5", "--block-sizes", "4", *pair]
    result = run(*small, "--draft", f"mtp={tmp_path / 'head'}", "--json")
    found = json.loads(result.stdout)["rows"]
    assert [row["method"] for row in found] == ["AR", "DFlash", "MTP", "auto"]
    assert all(row["num_equal"] == 1 for row in found)
    twice = run(*small, "--draft", pair[3])
    assert (twice.exit_code, "twice" in twice.stderr) == (2, True)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--concurrency", "a"), ("--concurrency", "0"), ("--limit", "0"), ("--tasks", ""), ("--repeats", "0")],
)
def test_what_cannot_be_measured_is_refused(run: Run, pair: list[str], option: str, value: str) -> None:
    result = run("bench", option, value, *pair)
    assert result.exit_code == 2
    assert f"{option} " in result.stderr
    assert "expected" in result.stderr


def test_the_card_is_rehearsed_with_random_weights_and_goes_on(run: Run, tmp_path: Path) -> None:
    target, drafter = save_tiny_pair(tmp_path / "pair", block_size=16)
    asked = ["bench", "--card", target, "--draft", drafter, "--dtype", "float32", "--concurrency", "2,1"]
    asked += ["--limit", "1", "--max-tokens", "8", "--tasks", "gsm8k,mbpp"]
    refused = run(*asked)
    assert (refused.exit_code, "name one with --out" in refused.stderr) == (2, True)
    done = run(*asked, "--out", str(tmp_path / "card"))
    assert done.exit_code == 0, done.stderr
    assert "without method mtp: " in done.stderr
    report = (tmp_path / "card" / "report.md").read_text()
    for said in (
        "## Beside the published card",
        "| gsm8k | 2 | DFlash B16 |",
        "| mbpp | 1 | DFlash B8 |",
        "| 83 |",
    ):
        assert said in report
    rows = (tmp_path / "card" / "rows.jsonl").read_text()
    assert run(*asked, "--out", str(tmp_path / "card")).exit_code == 0
    assert (tmp_path / "card" / "rows.jsonl").read_text().count('"task"') == rows.count('"task"')
