"""The command that serves: what it resolves, what it refuses, and a process that answers and drains."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest
import yaml

from command_line import Run

VLLM = '{"method": "dflash", "model": "d", "num_speculative_tokens": 15}'


def test_a_dry_run_prints_what_config_reads(run: Run, tmp_path: Path) -> None:
    argv = ("serve", "m", "--draft", "d", "--block-size", "8", "--port", "1", "--served-model-name", "x")
    printed = run(*argv, "--api-key", "hidden-key", "--dry-run")
    assert printed.exit_code == 0
    assert "hidden-key" not in printed.stdout
    resolved = yaml.safe_load(printed.stdout)
    assert resolved["served_model_name"] == ["x"]
    file = tmp_path / "server.yaml"
    file.write_text(printed.stdout)
    assert yaml.safe_load(run("serve", "m", "--config", str(file), "--dry-run").stdout) == resolved
    other = run("serve", "m", "--config", str(file), "--port", "2", "--dry-run")
    assert yaml.safe_load(other.stdout) == resolved | {"port": 2}


@pytest.mark.parametrize(
    "argv",
    [
        ("--speculative-config", VLLM),
        ("--speculative-draft-model-path", "d", "--speculative-num-draft-tokens", "16"),
        ("--speculative-algorithm", "DFLASH", "--draft", "d", "--block-size", "16"),
        ("--draft", "d", "--block-size", "16", "--speculative-config", VLLM, "--tp-size", "1"),
    ],
)
def test_flags_of_vllm_and_sglang_mean_ours(run: Run, argv: tuple[str, ...]) -> None:
    resolved = yaml.safe_load(run("serve", *argv, "--dry-run").stdout)
    assert (resolved["draft"], resolved["block_size"]) == ("d", 16)


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (("--speculative-config", '{"method": "eagle3"}'), "'eagle3'; expected 'dflash'"),
        (("--speculative-config", '{"prompt_lookup_max": 3}'), "prompt_lookup_max"),
        (("--speculative-config", "{"), "not JSON"),
        (("--speculative-config", VLLM, "--block-size", "8"), "say it once"),
        (("--mem-fraction-static", "0.8"), "--mem-fraction-static"),
        (("--tp-size", "2"), "--tp-size"),
        (("--max-queue", "-1"), "max_queue is -1"),
        (("--config", "nowhere.yaml"), "nowhere.yaml cannot be read"),
    ],
)
def test_what_means_nothing_here_is_refused_by_name(run: Run, argv: tuple[str, ...], part: str) -> None:
    result = run("serve", *argv, "--dry-run")
    assert result.exit_code == 2
    assert part in result.stderr


def test_a_config_file_with_an_unknown_name_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "server.yaml").write_text("prot: 3\n")
    result = run("serve", "--config", str(tmp_path / "server.yaml"), "--dry-run")
    assert (result.exit_code, "'prot'" in result.stderr) == (2, True)


@contextlib.contextmanager
def server_process(pair: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``flashdraft serve`` on the tiny pair, as a process, and its address."""
    argv = [sys.executable, "-c", "from flashdraft.cli.main import main; main()", "serve", *pair[1:]]
    with subprocess.Popen(
        [*argv, "--port", "0", "--served-model-name", "tiny"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    ) as process:
        assert process.stderr
        try:
            line = next(line for line in process.stderr if "running on" in line)
            found = re.search(r"http://[\d.:]+", line)
            assert found
            reader = threading.Thread(target=process.stderr.read)  # so that it never waits for a full pipe
            reader.start()
            yield process, found.group()
        finally:
            process.kill()
            process.wait()
            reader.join()


def test_a_process_answers_and_sigterm_lets_an_answer_finish(pair: list[str]) -> None:
    with server_process(pair) as (process, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="EMPTY", max_retries=0)
        asked = {"model": "tiny", "prompt": "abc", "max_tokens": 600, "temperature": 0}
        stream = client.completions.create(**asked, stream=True, extra_body={"ignore_eos": True})
        chunks = iter(stream)
        next(chunks)
        process.send_signal(signal.SIGTERM)
        reasons = [chunk.choices[0].finish_reason for chunk in chunks]
        assert reasons[-1] == "length"
        client.close()
        assert process.wait(10) == -signal.SIGTERM
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{url}/health")
