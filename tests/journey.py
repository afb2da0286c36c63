"""The whole way with a target: trained for, drafted, examined, converted, handed to other engines, and served."""

import json
from pathlib import Path

import openai

from cli.test_train import prompts
from command_line import Run
from server_process import server_process


def from_training_to_another_engine(
    target: str, run: Run, tmp_path: Path, more_drafts: tuple[str, ...] = ()
) -> None:
    """``more_drafts``: what else drafts for it. Answers are plain decoding's at each station."""
    (tmp_path / "toy.jsonl").write_text("".join(json.dumps(line) + "\n" for line in prompts(4)))
    drafter = str(tmp_path / "run" / "drafter")
    options = (
        "--temperature 0 --max-new-tokens 16 --block-size 4 --seq-len 256 --rows-per-step 1 --num-features 2"
    )
    made = run(
        "train", "--model", target, "--prompts", str(tmp_path / "toy.jsonl"), "--out", str(tmp_path / "run"),
        *options.split(), "--blocks-per-row", "32", "--total-blocks", "32",
    )  # fmt: skip
    assert made.exit_code == 0, made.stdout + made.stderr

    answer = ("generate", "Hello", "--max-tokens", "12", "--dtype", "float32", "--json", "--model", target)
    plain = json.loads(run(*answer, "--draft", "none").stdout)
    for draft in (drafter, *more_drafts):
        result = run(*answer, "--draft", draft, "--block-size", "4")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["token_ids"] == plain["token_ids"]

    found = run("doctor", "--model", target, "--draft", drafter, "--max-tokens", "8", "--json")
    assert json.loads(found.stdout)["verdict"] in ("healthy", "weak", "faulty"), found.stderr

    told = ("--draft", drafter, "--model", target, "--to", "speculators", "--out", str(tmp_path / "s"))
    converted = run("convert", *told)
    assert converted.exit_code == 0, converted.stderr
    for engine, draft in (("vllm", str(tmp_path / "s")), ("sglang", drafter)):
        command = run("launch", engine, "--model", target, "--draft", draft)
        assert command.exit_code == 0, command.stderr
        assert target in command.stdout

    flags = (
        "--dtype",
        "float32",
        "--block-size",
        "4",
        "--max-total-tokens",
        "4096",
        "--context-length",
        "1024",
    )
    with server_process(["--model", target, "--draft", drafter], *flags) as (_, url):
        with openai.OpenAI(base_url=f"{url}/v1", api_key="EMPTY", max_retries=0) as client:
            asked = {"model": "tiny", "prompt": plain["prompt_token_ids"], "max_tokens": 12, "temperature": 0}
            said = client.completions.create(**asked)
        assert said.choices[0].text == plain["text"]
