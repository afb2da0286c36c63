"""``flashdraft generate``: text or JSON, from an argument or from stdin."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import Run
from flashdraft import LLM, SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=20)


def reference(pair: list[str]) -> LLM:
    return LLM(pair[1], None, dtype="float32")


def test_the_text_is_that_of_plain_decoding(run: Run, pair: list[str]) -> None:
    result = run("generate", "Hello", "--max-tokens", "20", *pair)
    expected = reference(pair).chat([{"role": "user", "content": "Hello"}], GREEDY)[0].outputs[0].text
    assert result.exit_code == 0
    assert result.stdout == expected + "\n"


@pytest.mark.parametrize(
    ("prompt", "limit", "why"),
    [
        ("Hello", "20", "20 tokens, by --max-tokens 20"),
        ("x" * 1990, "100000", "by the end of the model's context"),
    ],
)
def test_a_cut_answer_is_told(run: Run, pair: list[str], prompt: str, limit: str, why: str) -> None:
    result = run("generate", prompt, "--max-tokens", limit, *pair)
    assert result.exit_code == 0
    assert why in result.stderr
    assert ("context holds 2048 tokens" in result.stderr) == (limit == "100000")


def test_stdin_is_the_prompt_when_none_is_given(
    run: Run, pair: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argument = run("generate", "Hello", "--max-tokens", "20", *pair)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    assert run("generate", "--max-tokens", "20", *pair).stdout == argument.stdout


def test_json_holds_tokens_metrics_and_origin(run: Run, pair: list[str]) -> None:
    result = run("generate", "--no-chat", "Hello", "--max-tokens", "20", "--json", *pair)
    document = json.loads(result.stdout)
    assert document["prompt_token_ids"] == reference(pair).tokenizer.encode("Hello")
    assert document["token_ids"] == reference(pair).generate("Hello", GREEDY)[0].outputs[0].token_ids
    assert document["metrics"]["num_output_tokens"] == len(document["token_ids"])
    assert document["metrics"]["acceptance_length"] >= 1
    assert document["metrics"]["output_tokens_per_s"] > 0
    assert document["settings"]["block_size"] == "auto"
    assert document["provenance"]["versions"]["torch"]


def test_one_seed_gives_one_text(run: Run, pair: list[str]) -> None:
    def sampled(seed: int, *more: str) -> str:
        options = ("--temperature", "1", "--seed", str(seed), "--max-tokens", "20")
        return run("generate", "Hello", *options, *more, *pair).stdout

    assert sampled(1) == sampled(1, "--block-size", "1")
    assert sampled(1) != sampled(2)


def test_a_system_prompt_and_the_thinking_flag_go_to_the_template(run: Run, pair: list[str]) -> None:
    llm = reference(pair)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    template = llm.tokenizer.chat_template
    options = ("--max-tokens", "20", "--json", "--system", "Be brief.", "--no-thinking")
    found = json.loads(run("generate", "Hello", *options, *pair).stdout)
    assert found["prompt_token_ids"] == llm.chat_token_ids(chat, enable_thinking=False), template
    refused = run("generate", "Hello", "--no-chat", "--system", "Be brief.", *pair)
    assert (refused.exit_code, "--system is for the chat template" in refused.stderr) == (2, True)


def light_end(*argv: str) -> tuple[str, str]:
    """Stderr of a command, and its exit code with whether torch and huggingface_hub were imported."""
    code = (
        "import sys\n"
        "from flashdraft.cli.main import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "except SystemExit as end:\n"
        "    print(end.code, 'torch' in sys.modules, 'huggingface_hub' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    return done.stderr, done.stdout


def test_a_wrong_path_is_told_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    for argv in (["--model", "./nosuch"], ["--draft", str(tmp_path / "none")], ["--model", "no.gguf"]):
        for command in (["generate", "hi"], ["chat"], ["serve"], ["demo"]):
            said, end = light_end(*command, *argv)
            assert said.startswith(f"flashdraft: {argv[1]} does not exist; expected a folder, a .gguf")
            assert said.count("\n") == 1
            assert end == "1 False False\n", command


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["serve", "--port", "99999"], "port is 99999; expected 0 to 65535"),
        (["generate", "hi", "--device", "gpu"], "--device is 'gpu'; expected cpu, cuda or cuda:N"),
        (["report", "nosuch"], "nosuch does not exist; expected rows.jsonl of bench"),
        (["bench", "--url", "localhost:1"], "--url is 'localhost:1'; expected http:// or https:// before"),
    ],
)
def test_so_is_what_needs_no_model(argv: list[str], expected: str) -> None:
    said, end = light_end(*argv)
    assert said.startswith(f"flashdraft: {expected}")
    assert said.count("\n") == 1
    assert end == "2 False False\n"


def test_a_block_size_is_refused_before_a_weight_is_read(pair: list[str], run: Run, tmp_path: Path) -> None:
    shutil.copytree(pair[1], tmp_path / "target")
    for file in (tmp_path / "target").glob("*.safetensors"):
        file.write_bytes(b"")
    result = run("generate", "hi", *pair, "--model", str(tmp_path / "target"), "--block-size", "9")
    assert (result.exit_code, "block_size is 9; expected 1 to 8" in result.stderr) == (2, True), result.stderr


def test_explain_tells_costs_acceptance_and_lengths(run: Run, pair: list[str]) -> None:
    result = run("generate", "Hello", "--max-tokens", "20", "--explain", *pair)
    assert result.stdout == run("generate", "Hello", "--max-tokens", "20", *pair).stdout
    for part in (
        "one request, tokens          1     2     4     8",
        "draft token ",
        "tokens verified",
    ):
        assert part in result.stderr
    fixed = run("generate", "Hello", "--max-tokens", "20", "--block-size", "1", "--explain", *pair).stderr
    assert "Rounds: 19, 19 of them plain; acceptance length 1.00" in fixed
    assert "milliseconds" not in fixed


def test_a_tree_gives_the_same_text(run: Run, pair: list[str]) -> None:
    plain = json.loads(run("generate", "Hello", "--max-tokens", "20", "--json", *pair).stdout)
    result = run("generate", "Hello", "--max-tokens", "20", "--draft-tree", "12", "--json", *pair)
    document = json.loads(result.stdout)
    assert document["token_ids"] == plain["token_ids"]
    assert document["settings"]["draft_tree"] == 12
    assert document["settings"]["block_size"] == 8
    assert document["metrics"]["verified_histogram"][12] > 10
    refused = run("generate", "Hello", "--draft-tree", "12", *pair, "--draft", "none")
    assert "there is no drafter; expected a DFlash drafter" in refused.stderr


def test_a_block_size_is_a_number_or_auto(run: Run, pair: list[str]) -> None:
    refused = run("generate", "Hello", "--block-size", "long", *pair)
    assert refused.exit_code != 0
    assert "--block-size is 'long'; expected auto or a number" in refused.stderr
    assert run("generate", "Hello", "--block-size", "auto", "--max-tokens", "3", *pair).exit_code == 0
