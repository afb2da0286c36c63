"""The command that serves: what it resolves, what it refuses, and a process that answers and drains."""

import json
import signal
import socket
from pathlib import Path

import httpx2
import openai
import pytest
import yaml

import patient
from command_line import Run
from flashdraft.backends.registry import BACKENDS
from flashdraft.checkpoint import load
from flashdraft.cli.serve_options import ServeOptions
from flashdraft.cli.serve_run import allowed_hosts
from flashdraft.models.base import build_target
from flashdraft.server.hosts import LOOPBACK
from server_process import server_process
from tiny_pair import save_tiny_pair

# So much to tell that a stream that is not read does not come to its end.
ENDLESS = {"prompt": "abc", "max_tokens": 900, "n": 16, "logprobs": 20, "ignore_eos": True, "stream": True}
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
        (("--max-prefill-slowdown", "0.9"), "max_prefill_slowdown is 0.9; expected more than 1"),
        (("--chunked-prefill-size", "0"), "max_prompt_tokens is 0; expected 1 or more"),
        (("--speculative-config", VLLM, "--block-size", "8"), "say it once"),
        (("--mem-fraction-static", "0.8"), "--mem-fraction-static"),
        (("--tp-size", "2"), "--tp-size"),
        (
            ("--attention-backend", "fa3"),
            f"attention backend is 'fa3'; expected auto or one of: {', '.join(BACKENDS)}",
        ),
        (("--speculative-draft-attention-backend", "fa3"), "--speculative-draft-attention-backend"),
        (("--trust-remote-code",), "--trust-remote-code"),
        (("--revision", "main"), "--revision is for a hub model"),
        (("--max-total-tokens", "3"), "--max-total-tokens is 3"),
        (("--max-prefix-states", "0"), "num_checkpoints is 0; expected 1 or more"),
        (("--max-queue", "-1"), "max_queue is -1"),
        (("--config", "nowhere.yaml"), "nowhere.yaml cannot be read"),
    ],
)
def test_what_means_nothing_here_is_refused_by_name(run: Run, argv: tuple[str, ...], part: str) -> None:
    result = run("serve", *argv, "--dry-run")
    assert result.exit_code == 2
    assert part in result.stderr


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (("--block-size", "32"), "block_size is 32; expected 1 to 8"),
        (("--block-size", "0"), "block_size is 0; expected 1 to 8"),
        (("--draft", "none", "--block-size", "2"), "there is no drafter"),
        (("--draft-tree", "257"), "draft_tree is 257; expected 2 to 256"),
        (("--draft", "none", "--draft-tree", "8"), "there is no drafter"),
        (("--draft-window-size", "4"), "draft_window_size is 4; expected at least a block, 8"),
        (
            ("--draft", "none", "--draft-window-size", "64"),
            "draft_window_size is for a loaded DFlash drafter",
        ),
        (("--context-length", "4096"), "--context-length is 4096; expected 2 to 2048"),
        (("--quantization", "int8", "--dtype", "float32"), "int8 runs in bfloat16"),
        (("--keep-codes",), "keep_codes is for CUDA's own steps"),
        (("--chat-template", "nowhere.jinja"), "nowhere.jinja cannot be read"),
    ],
)
def test_a_dry_run_refuses_what_a_start_does(
    run: Run, tmp_path: Path, argv: tuple[str, ...], part: str
) -> None:
    target, draft = save_tiny_pair(tmp_path)
    given = ("serve", target, *(() if "--draft" in argv else ("--draft", draft)), *argv)
    for result in (run(*given, "--dry-run"), run(*given, "--port", "0")):
        assert (result.exit_code, part in result.stderr) == (2, True), result.stderr
    assert run("serve", target, "--draft", draft, "--block-size", "8", "--dry-run").exit_code == 0


@pytest.mark.parametrize("argv", [(), ("--dtype", "float32"), ("--device", "cuda")])
def test_a_dry_run_outlines_the_target_once(
    run: Run, tmp_path: Path, argv: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, draft = save_tiny_pair(tmp_path)
    built = []

    def counted(config: object) -> object:
        built.append(config)
        return build_target(config)

    monkeypatch.setattr(load, "build_target", counted)
    printed = run("serve", target, "--draft", draft, *argv, "--dry-run")
    assert (printed.exit_code, len(built)) == (0, 1)
    assert "# weights: target" in printed.stdout


def test_a_port_that_cannot_be_had_is_told_before_anything_is_loaded(run: Run) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for argv, part in (
            (("--port", "99999"), "port is 99999; expected 0 to 65535"),
            (("--port", "-1"), "port is -1"),
            (("--port", str(port)), f"port {port} of 127.0.0.1 cannot be had (Address already in use)"),
            (("--host", "256.0.0.1"), "the host '256.0.0.1' is not known here"),
        ):
            result = run("serve", "no-such-model", *argv)
            assert (result.exit_code, part in result.stderr) == (2, True), result.stderr


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ((), LOOPBACK),
        (("--host", "0.0.0.0"), ("*",)),
        (("--allowed-hosts", "a.lan", "--allowed-hosts", "b.lan"), (*LOOPBACK, "a.lan", "b.lan")),
        (("--host", "0.0.0.0", "--allowed-hosts", "a.lan"), (*LOOPBACK, "a.lan")),
        (("--allowed-hosts", "*"), (*LOOPBACK, "*")),
    ],
)
def test_hosts_are_checked_where_this_machine_alone_is_served(
    argv: tuple[str, ...], expected: object
) -> None:
    said = dict(zip(argv[::2], argv[1::2], strict=True))
    named = [value for name, value in zip(argv[::2], argv[1::2], strict=True) if name == "--allowed-hosts"]
    options = ServeOptions(host=said.get("--host", "127.0.0.1"), allowed_hosts=named or None)
    assert allowed_hosts(options) == expected


def test_the_model_has_one_name_however_it_is_given(run: Run) -> None:
    by_option = run("serve", "--model", "m", "--dry-run")
    assert (
        by_option.stdout
        == run("serve", "m", "--dry-run").stdout
        == run("serve", "m", "--model", "m", "--dry-run").stdout
    )
    assert yaml.safe_load(by_option.stdout)["model"] == "m"
    both = run("serve", "m", "--model", "n", "--dry-run")
    assert (both.exit_code, "the model is m and --model is n" in both.stderr) == (2, True)


def test_a_config_file_with_an_unknown_name_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "server.yaml").write_text("prot: 3\n")
    result = run("serve", "--config", str(tmp_path / "server.yaml"), "--dry-run")
    assert (result.exit_code, "'prot'" in result.stderr) == (2, True)


def test_an_answer_that_is_not_done_when_patience_ends_is_told_so(pair: list[str]) -> None:
    with server_process(pair, "--drain-seconds", "0") as (process, url):
        with patient.stream("POST", f"{url}/v1/completions", json=ENDLESS) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = "".join(lines)
        assert "the engine was stopped" in rest
        assert rest.endswith("data: [DONE]")
        assert process.wait(patient.PATIENCE_S) == -signal.SIGTERM


def test_options_that_shape_the_engine(pair: list[str], run: Run, tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}<{{ m.content }}>{% endfor %}")
    flags = ("--context-length", "40", "--max-total-tokens", "64", "--max-num-batched-tokens", "16")
    with server_process(pair, *flags, "--chat-template", str(template), "--log-format", "json") as (_, url):
        assert patient.get(f"{url}/v1/models").json()["data"][0]["max_model_len"] == 40
        told = patient.post(f"{url}/tokenize", json={"messages": [{"role": "user", "content": "ab"}]}).json()
        text = patient.post(f"{url}/detokenize", json={"tokens": told["tokens"]}).json()["prompt"]
        assert text.endswith("<ab>")
        refused = patient.post(f"{url}/v1/completions", json={"prompt": [3] * 40})
        assert refused.json()["error"]["code"] == "context_length_exceeded"
    refused_by_name = run("serve", *pair[1:], "--context-length", "99999")
    assert "--context-length is 99999" in refused_by_name.stderr
    assert "cannot be read" in run("serve", *pair[1:], "--chat-template", "nowhere.jinja").stderr


def test_help_is_in_groups(run: Run) -> None:
    told = run("serve", "--help").stdout
    groups = ("Options", "Model", "Engine", "API", "Limits", "Process", "As vLLM and SGLang say it")
    assert all(f"─ {group} ─" in told for group in groups)
    assert "--tp-size" not in told


def test_the_log_says_what_is_served_and_where(pair: list[str]) -> None:
    with server_process(pair, "--log-format", "json", lines=(lines := [])) as (_, url):
        assert patient.get(url).status_code == 200
        found = json.loads(next(line for line in lines if '"serving"' in line))
    assert (found["page"], found["api"]) == (url, f"{url}/v1")
    assert (found["model"], found["drafter"], found["dtype"]) == (pair[1], pair[3], "float32")
    assert found["block_size"] == "auto"


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
        assert process.wait(patient.PATIENCE_S) == -signal.SIGTERM
        with pytest.raises(httpx2.ConnectError):
            patient.get(f"{url}/health")


def test_after_a_kill_the_same_port_serves_again_and_no_logged_request_is_lost(
    pair: list[str], tmp_path: Path
) -> None:
    log, asked = tmp_path / "requests.jsonl", {"prompt": "abc", "max_tokens": 6, "temperature": 0}
    with server_process(pair, "--log-requests", str(log)) as (process, url):
        before = patient.post(f"{url}/v1/completions", json=asked).json()["choices"]
        with patient.stream("POST", f"{url}/v1/completions", json=ENDLESS) as answer:
            next(answer.iter_lines())
            process.kill()
            process.wait()
    port = url.rpartition(":")[2]
    with server_process(pair, "--log-requests", str(log), "--port", port) as (_, again):
        assert again == url
        assert patient.post(f"{url}/v1/completions", json=asked).json()["choices"] == before
    first, second = map(json.loads, log.read_text().splitlines())
    assert first["answer_token_ids"] == second["answer_token_ids"]
