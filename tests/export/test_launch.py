"""The command lines for other engines, and what is refused because that engine would do it wrong."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from transformers import Qwen3_5TextConfig

from command_line import run_command
from flashdraft.checkpoint.convert import convert_drafter
from flashdraft.checkpoint.load import save_drafter, training_notes
from flashdraft.errors import IncompatibleDrafterError, UsageError
from flashdraft.export.config import LaunchConfig
from flashdraft.export.launch import read_pair
from flashdraft.export.sglang import sglang_command
from flashdraft.export.vllm import vllm_command
from tiny_pair import save_tiny_pair
from toys import toy_dflash, toy_dflash2, toy_target

SLIDING, FULL = "sliding_attention", "full_attention"


@pytest.fixture
def pair(tmp_path):
    return save_tiny_pair(tmp_path)


def options(argv: list[str]) -> dict[str, str | None]:
    """``--a 1 --b`` as a dictionary."""
    words = [*argv[next(i for i, word in enumerate(argv) if word.startswith("--")) :], "--"]
    pairs = pairwise(words)
    return {word: None if after.startswith("--") else after for word, after in pairs if word.startswith("--")}


def drafter_of(target, folder: Path, **changes) -> str:
    values = {"num_hidden_layers": 2, "sliding_window": 12, **changes}
    save_drafter(toy_dflash(target, **values), folder)
    return str(folder)


def test_vllm(pair):
    target, draft = pair
    command = vllm_command(read_pair(target, draft), LaunchConfig(memory=0.8, max_model_len=2048, tp=2))
    assert command.argv[:3] == ["vllm", "serve", target]
    found = options(command.argv)
    speculative = json.loads(found["--speculative-config"])
    assert speculative == {"method": "dflash", "model": draft, "num_speculative_tokens": 7}
    expected = {"--tensor-parallel-size": "2", "--gpu-memory-utilization": "0.8", "--max-model-len": "2048"}
    assert expected.items() <= found.items()
    smaller = vllm_command(read_pair(target, draft), LaunchConfig(block_size=4))
    assert json.loads(options(smaller.argv)["--speculative-config"])["num_speculative_tokens"] == 3


def test_vllm_on_cpu_and_on_two_machines(pair):
    on_cpu = vllm_command(read_pair(*pair), LaunchConfig(device="cpu", memory=2))
    assert on_cpu.argv[:3] == ["python", "-m", "vllm.entrypoints.openai.api_server"]
    assert on_cpu.env == {"VLLM_CPU_KVCACHE_SPACE": "2"}
    assert "--gpu-memory-utilization" not in options(on_cpu.argv)
    config = LaunchConfig(tp=2, pp=2, nodes=2, node_rank=1, master="10.0.0.1:29500")
    found = options(vllm_command(read_pair(*pair), config).argv)
    expected = {"--nnodes": "2", "--node-rank": "1", "--master-addr": "10.0.0.1", "--master-port": "29500"}
    assert (expected | {"--headless": None, "--pipeline-parallel-size": "2"}).items() <= found.items()


@pytest.mark.parametrize(
    ("device", "num_layers", "is_told"), [("cpu", 2, True), ("cpu", 1, False), ("cuda", 2, False)]
)
def test_vllm_on_cpu_tells_of_its_context_norm(tmp_path, device, num_layers, is_told):
    target, _ = save_tiny_pair(tmp_path)
    draft = drafter_of(toy_target(vocab_size=259), tmp_path / "draft", num_hidden_layers=num_layers)
    text = vllm_command(read_pair(target, draft), LaunchConfig(device=device)).to_text()
    assert ("vllm_cpu_context_norm.patch" in text) == is_told


def test_sglang(pair):
    target, draft = pair
    command = sglang_command(read_pair(target, draft), LaunchConfig(tp=4, memory=0.7, window=16))
    found = options(command.argv)
    assert found["--speculative-num-draft-tokens"] == "8"  # the anchor counts here
    expected = {"--model-path": target, "--speculative-draft-model-path": draft, "--tp-size": "4"}
    assert (
        expected | {"--speculative-algorithm": "DFLASH", "--mem-fraction-static": "0.7"}
    ).items() <= found.items()
    assert (found["--speculative-draft-window-size"], "--mamba-radix-cache-strategy" in found) == (
        "16",
        False,
    )
    config = LaunchConfig(tp=4, nodes=2, master="a:1")
    assert options(sglang_command(read_pair(target, draft), config).argv)["--dist-init-addr"] == "a:1"


def test_a_hybrid_target(tmp_path):
    config = Qwen3_5TextConfig(hidden_size=48, num_hidden_layers=8, vocab_size=97, num_attention_heads=4)
    config.save_pretrained(tmp_path / "t")
    target = toy_target()
    draft = drafter_of(target, tmp_path / "d", num_target_layers=8)
    pair = read_pair(str(tmp_path / "t"), draft)
    found = options(sglang_command(pair, LaunchConfig()).argv)
    assert found["--mamba-radix-cache-strategy"] == "extra_buffer"
    with pytest.raises(UsageError, match="across a pipeline"):
        vllm_command(pair, LaunchConfig(pp=2))


def test_mixed_layers_need_a_runner_that_the_cpu_has_not(tmp_path, pair):
    mixed = drafter_of(toy_target(vocab_size=259), tmp_path / "mixed", layer_types=(SLIDING, FULL))
    both = read_pair(pair[0], mixed)
    assert vllm_command(both, LaunchConfig()).env == {"VLLM_USE_V2_MODEL_RUNNER": "1"}
    with pytest.raises(UsageError, match="V1 runner only"):
        vllm_command(both, LaunchConfig(device="cpu"))
    alike = drafter_of(toy_target(vocab_size=259), tmp_path / "alike", layer_types=(SLIDING, SLIDING))
    assert vllm_command(read_pair(pair[0], alike), LaunchConfig(device="cpu")).env == {}


def test_causality_as_each_engine_reads_it(tmp_path, pair):
    """A drafter's causality goes wrong in silence: acceptance falls and nothing is reported."""
    target = toy_target(vocab_size=259)
    for name, kinds in (("full", None), ("mixed", (SLIDING, FULL)), ("alike", (SLIDING, SLIDING))):
        drafter_of(target, tmp_path / name, layer_types=kinds)
        convert_drafter(tmp_path / name, "speculators", tmp_path / f"{name}-s")
    for name in ("full", "alike"):
        vllm_command(read_pair(pair[0], str(tmp_path / f"{name}-s")), LaunchConfig())
    with pytest.raises(UsageError, match="--to z-lab"):
        vllm_command(read_pair(pair[0], str(tmp_path / "mixed-s")), LaunchConfig())
    with pytest.raises(UsageError, match="--to z-lab"):
        sglang_command(read_pair(pair[0], str(tmp_path / "full-s")), LaunchConfig())
    written = json.loads((tmp_path / "full-s" / "config.json").read_text())
    written["sliding_window_non_causal"] = False  # what speculators itself writes beside full layers
    (tmp_path / "full-s" / "config.json").write_text(json.dumps(written))
    with pytest.raises(UsageError, match="not trained so"):
        vllm_command(read_pair(pair[0], str(tmp_path / "full-s")), LaunchConfig())
    inner = json.loads((tmp_path / "alike" / "config.json").read_text())
    inner["dflash_config"]["causal"] = False  # vLLM's key, which SGLang does not read
    (tmp_path / "alike" / "config.json").write_text(json.dumps(inner))
    with pytest.raises(UsageError, match="--to z-lab"):
        sglang_command(read_pair(pair[0], str(tmp_path / "alike")), LaunchConfig())
    convert_drafter(tmp_path / "alike", "z-lab", tmp_path / "mended")
    sglang_command(read_pair(pair[0], str(tmp_path / "mended")), LaunchConfig())


def test_the_windows_edge_is_noted(tmp_path, pair):
    kinds = {"layer_types": (SLIDING, SLIDING), "window_from_anchor": True}
    both = read_pair(pair[0], drafter_of(toy_target(vocab_size=259), tmp_path / "d", **kinds))
    for command in (vllm_command(both, LaunchConfig()), sglang_command(both, LaunchConfig())):
        assert any("counted from the anchor" in note for note in command.notes)


@pytest.mark.parametrize(
    ("engine", "values", "part"),
    [
        ("vllm", {"block_size": 9}, "block_size is 9; expected 2 to 8"),
        ("vllm", {"tp": 3}, "a divisor of the target's 4 attention heads"),
        ("vllm", {"window": 64}, "no flag for a draft window"),
        ("sglang", {"device": "cpu"}, "on cuda only"),
        ("sglang", {"pp": 2}, "expected pp 1, found 2"),
        ("sglang", {"window": 4}, "at least the block size, 8"),
        ("vllm", {"device": "tpu"}, "expected cuda or cpu"),
        ("vllm", {"memory": 3.0}, "a share between 0 and 1"),
        ("vllm", {"tp": 4, "nodes": 2}, "HOST:PORT"),
        ("vllm", {"tp": 3, "nodes": 2, "master": "a:1"}, "evenly over 2 machines"),
        ("vllm", {"nodes": 2, "node_rank": 2}, "node_rank below nodes"),
    ],
)
def test_what_is_refused(pair, engine, values, part):
    with pytest.raises(UsageError, match=part):
        {"vllm": vllm_command, "sglang": sglang_command}[engine](read_pair(*pair), LaunchConfig(**values))


def test_float16_is_refused_for_dflash2(pair, tmp_path):
    target, plain = pair
    save_drafter(toy_dflash2(toy_target(vocab_size=259)), tmp_path / "two")
    two = str(tmp_path / "two")
    raw = json.loads((Path(target) / "config.json").read_text())
    (Path(target) / "config.json").write_text(json.dumps(raw | {"dtype": "float16"}))
    for make in (vllm_command, sglang_command):
        for dtype, more in (("float16", ()), ("half", ()), ("auto", ()), ("bfloat16", ("--dtype=half",))):
            config = LaunchConfig(dtype=dtype)
            with pytest.raises(UsageError, match="expected bfloat16: activations of DFlash 2"):
                make(read_pair(target, two), config, more)
            assert make(read_pair(target, plain), config, more).argv
        assert make(read_pair(target, two), LaunchConfig(dtype="float16"), ("--dtype", "bfloat16")).argv


def test_a_reduced_vocabulary_is_vllms_alone(tmp_path, pair):
    both = read_pair(pair[0], drafter_of(toy_target(vocab_size=259), tmp_path / "d", draft_vocab_size=32))
    assert options(vllm_command(both, LaunchConfig()).argv)
    with pytest.raises(UsageError, match="32 rows of its own"):
        sglang_command(both, LaunchConfig())


def test_pairs_that_do_not_fit(pair):
    with pytest.raises(UsageError, match="flashdraft convert --model embedded --to hf"):
        read_pair("embedded", "embedded")
    with pytest.raises(IncompatibleDrafterError, match="made for another target"):
        read_pair(pair[0], "embedded")


def test_the_command_line_prints_what_a_shell_runs(tmp_path, pair, capsys, monkeypatch):
    """``--run`` starts the very words that are printed: an echo on the PATH stands where vLLM would."""
    target, draft = pair
    argv = ("launch", "vllm", "--model", target, "--draft", draft, "--port", "9")
    printed = run_command(argv, capsys).stdout
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    program.chmod(0o755)
    environment = {"PATH": f"{program.parent}:/usr/bin:/bin"}
    shell = subprocess.run(["sh", "-c", printed], env=environment, capture_output=True, text=True, check=True)
    script = "from flashdraft.cli.main import main; main()"
    run = [sys.executable, "-c", script, *argv, "--run"]
    started = subprocess.run(
        run, env=environment | {"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, check=True
    )
    assert started.stdout == shell.stdout
    assert shell.stdout.splitlines()[-4:] == ["--host", "127.0.0.1", "--port", "9"]
    monkeypatch.setenv("PATH", "")
    missing = run_command((*argv, "--run"), capsys)
    assert (missing.exit_code, "install vllm first" in missing.stderr) == (2, True)


def test_any_flag_is_handed_on_and_parsers_are_the_familys(pair, capsys):
    target, draft = pair
    told = ("launch", "vllm", "--model", target, "--draft", draft, "--parsers")
    result = run_command((*told, "--", "--max-num-batched-tokens", "32768", "--trust-remote-code"), capsys)
    assert result.exit_code == 0, result.stderr
    for said in (
        "--tool-call-parser llama3_json",
        "--enable-auto-tool-choice",
        "--max-num-batched-tokens 32768",
        "--trust-remote-code",
    ):
        assert said in result.stdout
    assert "--reasoning-parser" not in result.stdout
    read = read_pair(target, draft)
    read.target_config.model_type = "qwen3_5_text"
    for command, thoughts in ((vllm_command, "qwen3"), (sglang_command, "qwen3")):
        found = options(command(read, LaunchConfig(parsers=True), ["--x", "1"]).argv)
        assert (found["--reasoning-parser"], found["--tool-call-parser"]) == (thoughts, "qwen3_coder")
        assert found["--x"] == "1"
    read.target_config.model_type = "gemma3_text"
    with pytest.raises(UsageError, match="no parsers are known for gemma3_text"):
        read.parsers("vllm")


def test_speculators_are_told_the_verifier_and_keep_the_template(pair, tmp_path, capsys):
    target, draft = pair
    config = Path(draft) / "config.json"
    noted = json.loads(config.read_text()) | {"flashdraft_training": {"chat_template_kwargs": {"a": 1}}}
    config.write_text(json.dumps(noted))
    there, back, alone = (tmp_path / name for name in ("there", "back", "alone"))
    convert_drafter(draft, "speculators", there, target)
    convert_drafter(there, "z-lab", back)
    written = json.loads((there / "config.json").read_text())
    verifier = written["speculators_config"]["verifier"]
    assert verifier == {"name_or_path": str(Path(target).resolve()), "architectures": ["LlamaForCausalLM"]}
    for folder in (there, back):
        assert training_notes(folder) == {"chat_template_kwargs": {"a": 1}}
    told = ("convert", "--draft", draft, "--to", "speculators", "--out", str(alone))
    assert "names no verifier" in run_command(told, capsys).stderr
