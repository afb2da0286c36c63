"""``flashdraft tune``: better for its domain, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from command_line import Result, Run
from flashdraft.data.request_log import RequestLog
from flashdraft.llm import LLM
from flashdraft.sampling_params import SamplingParams
from flashdraft.train.tune import tune_drafter
from flashdraft.train.tune_config import TuneConfig

SMALL = (
    *("--max-len", "128", "--blocks-per-step", "32", "--max-new-tokens", "24"),
    *("--per-task", "0", "--max-minutes", "60", "--max-measured", "8"),
)


@pytest.fixture(scope="module")
def requests(pair: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Requests of one kind with the target's own answers, as the server logs them."""
    file = tmp_path_factory.mktemp("log") / "requests.jsonl"
    llm, log = LLM(pair[1], None, dtype="float32"), RequestLog(file)
    prompts = [llm.tokenizer.encode(f"Say {number} " + "ab" * (number % 3)) for number in range(32)]
    for output in llm.generate(prompts, SamplingParams(max_tokens=24, temperature=0)):
        answer = output.outputs[0]
        log.write([], output.prompt_token_ids, answer.token_ids, answer.finish_reason, 0.0)
    return file


def tune(run: Run, pair: list[str], requests: Path, out: Path, *more: str) -> Result:
    return run(
        "tune",
        "--from",
        str(requests),
        "--out",
        str(out),
        "--model",
        pair[1],
        "--draft",
        pair[3],
        *SMALL,
        *more,
    )


def test_a_tuned_drafter_is_better_on_requests_it_has_not_seen(
    run: Run, pair: list[str], requests: Path, tmp_path: Path
) -> None:
    result = tune(run, pair, requests, tmp_path / "out", "--max-blocks", "3200", "--lr", "5e-3")
    assert result.exit_code == 0, result.stdout + result.stderr
    facts = json.loads((tmp_path / "out" / "tune.json").read_text())
    domain = facts["domain"]
    assert domain["after"] > domain["before"]
    assert domain["low"] > 1
    assert domain["num_texts"] == 6
    assert facts["num_requests"] == 26
    drafter = str(tmp_path / "out" / "drafter")
    answer = ("generate", "Say 3 ", "--max-tokens", "20", "--dtype", "float32", "--json", "--model", pair[1])
    served = json.loads(run(*answer, "--draft", drafter, "--block-size", "8").stdout)
    plain = json.loads(run(*answer, "--draft", "none").stdout)
    assert served["token_ids"] == plain["token_ids"]
    again = tune(run, pair, requests, tmp_path / "out")
    assert (again.exit_code, "holds a tuning already" in again.stderr) == (2, True)


def test_what_is_not_better_is_not_kept(run: Run, pair: list[str], requests: Path, tmp_path: Path) -> None:
    result = tune(
        run, pair, requests, tmp_path / "out", "--max-blocks", "32", "--lr", "1e-9", "--per-task", "1",
        "--max-len", "1024",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "not better" in result.stdout
    assert "gsm8k" in result.stdout
    assert not (tmp_path / "out" / "drafter").exists()
    facts = json.loads((tmp_path / "out" / "tune.json").read_text())
    assert facts["drafter"] is None
    assert "gsm8k" in facts["others"]


def test_missing_answers_are_the_targets_own(run: Run, pair: list[str], tmp_path: Path) -> None:
    lines = [{"prompt": f"Tell {number}"} for number in range(24)]
    unfit = [
        {"prompt": "a" * 100},  # longer than the target is asked
        {"prompt": "b" * 200, "answer": "No."},
        {"prompt": "Tell", "answer": ""},
    ]
    cut = {"prompt": "Tell all", "answer": "c" * 200}
    lines = [*lines, *unfit, cut, cut]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = tune(
        run, pair, tmp_path / "asked.jsonl", tmp_path / "out", "--max-blocks", "32", "--max-measured", "2"
    )
    facts = json.loads((tmp_path / "out" / "tune.json").read_text())
    assert (facts["domain"]["num_texts"], facts["num_unmeasured"]) == (2, 3), "a fifth of 25"
    assert facts["num_requests"] == 24 + 1 - 5
    assert "held back, not measured 3" in result.stdout
    left_out = (
        "left out equal to another 1, to be answered, prompts of over 64 tokens 1, answered, prompts of over 126"
        " tokens 1, answers of one token 1  num cut at max len 1"
    )
    assert left_out in result.stdout.splitlines()


@pytest.mark.parametrize(
    ("count", "more", "part"),
    [
        (5, (), "there are 5 different requests"),
        (24, ("--held-back", "1.5"), "held_back is 1.5"),
        (24, ("--max-minutes", "1e-9"), "take all of 1e-09 minutes"),
        (
            24,
            ("--blocks-per-step", "33"),
            "blocks_per_step is 33, of blocks of 8 tokens; expected a multiple of 16",
        ),
        (24, ("--max-blocks", "0"), "max_blocks is 0; expected 1 or more"),
    ],
)
def test_what_cannot_be_tuned_is_told(
    run: Run, pair: list[str], tmp_path: Path, count: int, more: tuple[str, ...], part: str
) -> None:
    lines = [{"prompt": f"Tell {number}", "answer": "Well, no."} for number in range(count)]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = tune(run, pair, tmp_path / "few.jsonl", tmp_path / "out", *more)
    assert result.exit_code in (1, 2)
    assert part in result.stderr


def test_a_tuning_that_is_stopped_leaves_no_features_of_what_people_wrote(
    pair: list[str], requests: Path, tmp_path: Path
) -> None:
    of_an_earlier_one = tmp_path / "features" / "features-00000.bin"
    of_an_earlier_one.parent.mkdir()
    of_an_earlier_one.write_text("what people wrote")

    def stop(line: dict[str, Any]) -> None:
        if "features" in line:
            raise KeyboardInterrupt

    config = TuneConfig(max_len=128, blocks_per_step=32, max_measured=2)
    with pytest.raises(KeyboardInterrupt):
        tune_drafter(pair[1], pair[3], requests, tmp_path, config, on_report=stop)
    assert not of_an_earlier_one.parent.exists()


def test_a_log_of_another_target_is_told(run: Run, pair: list[str], tmp_path: Path) -> None:
    lines = [{"prompt_token_ids": [1, number], "answer_token_ids": [5, 100_000, 7]} for number in range(24)]
    (tmp_path / "theirs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = tune(run, pair, tmp_path / "theirs.jsonl", tmp_path / "out")
    assert (result.exit_code, "token id 100000 was found; expected 0 to" in result.stderr) == (1, True)


def test_improve_tells_where_drafts_are_rejected_and_keeps_what_is_better(
    run: Run, pair: list[str], requests: Path, tmp_path: Path
) -> None:
    out = tmp_path / "improved"
    places = ("--from", str(requests), "--out", str(out), "--model", pair[1], "--draft", pair[3])
    result = run("improve", *places, *SMALL, "--max-blocks", "3200", "--lr", "5e-3")
    assert result.exit_code == 0, result.stdout + result.stderr
    facts = json.loads((out / "tune.json").read_text())
    before, after = facts["lost"]
    assert sum(one["lost"] for one in before["by_slot"].values()) == sum(
        one["lost"] for one in before["by_kind"].values()
    )
    first = [told["by_slot"]["slot 1"] for told in (before, after)]
    rates = [one["lost"] / one["seen"] for one in first]
    assert rates[1] < rates[0]
    assert f"{'slot 1':<30}" in result.stdout
    assert "| requests | " in (out / "drafter" / "README.md").read_text()
