"""``flashdraft train``: from prompts to a drafter that ``--draft`` takes, for each method."""

import json
import zlib
from pathlib import Path

import pytest

from command_line import Run
from flashdraft.train.run import VALIDATION_SHARE
from tiny_pair import save_tiny_hybrid


def prompts(count: int) -> list[dict[str, str]]:
    """Some for training and one, by its id, for validation."""
    held_back = (
        str(i) for i in range(1000) if zlib.crc32(f"validation toy/{i}".encode()) / 2**32 < VALIDATION_SHARE
    )
    return [{"id": "p" + str(i), "prompt": "Say " + "ab"[i % 2] * i} for i in range(count)] + [
        {"id": next(held_back), "prompt": "Say c"}
    ]


@pytest.mark.parametrize(("method", "kind"), [("dflash", "llama"), ("mtp", "llama"), ("dflash", "hybrid")])
def test_a_trained_drafter_is_served(
    method: str, kind: str, run: Run, pair: list[str], tmp_path: Path
) -> None:
    target = save_tiny_hybrid(tmp_path / "target") if kind == "hybrid" else pair[1]
    (tmp_path / "toy.jsonl").write_text("".join(json.dumps(line) + "\n" for line in prompts(6)))
    options = (
        "--temperature 0 --max-new-tokens 24 --block-size 4 --seq-len 256 --rows-per-step 1 --num-features 2"
    )
    result = run(
        "train", "--method", method, "--target", target, "--prompts", str(tmp_path / "toy.jsonl"),
        "--out", str(tmp_path / "run"), *options.split(), "--blocks-per-row", "32", "--total-blocks", "64",
    )  # fmt: skip
    assert result.exit_code == 0, result.stdout + result.stderr
    drafter = str(tmp_path / "run" / "drafter")
    answer = ("generate", "Hello", "--max-tokens", "20", "--dtype", "float32", "--json")
    served = run(*answer, "--model", target, "--draft", drafter, "--block-size", "4")
    assert served.exit_code == 0, served.stderr
    drafted = json.loads(served.stdout)
    plain = json.loads(run(*answer, "--model", target, "--draft", "none").stdout)
    assert drafted["token_ids"] == plain["token_ids"]
    assert drafted["settings"]["block_size"] == 4
    assert drafted["metrics"]["num_drafted"] > 0
