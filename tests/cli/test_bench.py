"""``flashdraft bench``: the report, the JSON line and the files."""

import json
from pathlib import Path

import pytest

from command_line import Run

SMALL = ["--tasks", "gsm8k,mt-bench", "--limit", "1", "--max-tokens", "12", "--block-sizes", "8,4"]


def test_the_last_line_is_one_json_document_and_the_files_are_written(
    run: Run, pair: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "results"
    result = run("bench", *SMALL, "--methods", "ar,ngram,dflash", "--json", "--out", str(out), *pair)
    assert result.exit_code == 0
    document = json.loads(result.stdout.splitlines()[-1])
    columns = [("AR", 1), ("n-gram", 8), ("n-gram", 4), ("DFlash", 8), ("DFlash", 4)]
    found = [(row["task"], row["method"], row["block_size"]) for row in document["rows"]]
    assert sorted(found) == sorted((task, *column) for task in ("gsm8k", "mt-bench") for column in columns)
    for row in document["rows"]:
        assert row["concurrency"] == 1
        assert row["num_equal"] == row["num_prompts"] == 1
        assert row["output_tokens_per_s"] > 0
        assert row["speedup"] > 0
        assert row["acceptance_length"] >= 1
    assert document["settings"]["max_tokens"] == 12
    assert document["provenance"]["num_threads"] >= 1
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 10
    assert (out / "report.md").read_text().startswith("# Benchmark")


def test_the_report_is_markdown_where_it_is_piped(run: Run, pair: list[str]) -> None:
    result = run("bench", *SMALL, *pair)
    assert result.exit_code == 0
    assert "\n| task | AR | DFlash B8 | DFlash B4 |\n" in result.stdout
    assert "\n| mean of tasks | " in result.stdout


@pytest.mark.parametrize("extra", [[], ["--max-tokens", "5"]])
def test_quick_is_small_and_never_larger_than_asked(run: Run, pair: list[str], extra: list[str]) -> None:
    result = run("bench", "--quick", "--tasks", "mbpp", "--block-sizes", "8", "--json", *extra, *pair)
    settings = json.loads(result.stdout)["settings"]
    assert (settings["limit"], settings["max_tokens"]) == (2, 5 if extra else 64)
