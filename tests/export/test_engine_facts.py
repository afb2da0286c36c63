"""launch is a door to other engines by their lists: what they serve goes to them, whatever flashdraft runs itself."""

import json
import os
import runpy
import sys
from pathlib import Path

import pytest

from flashdraft.errors import CheckpointError, UsageError
from flashdraft.export.config import LaunchConfig
from flashdraft.export.engine_facts import engine_facts
from flashdraft.export.launch import read_pair
from flashdraft.export.sglang import sglang_command
from flashdraft.export.vllm import vllm_command
from tiny_pair import save_tiny_pair

COMMANDS = {"vllm": vllm_command, "sglang": sglang_command}
GPT_OSS = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 201088,
    "quantization_config": {"quant_method": "mxfp4"},
}
GEMMA4 = {
    "architectures": ["Gemma4ForConditionalGeneration"],
    "model_type": "gemma4",
    "text_config": {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "vocab_size": 97},
}
DSPARK = {"architectures": ["DSparkDraftModel"], "model_type": "qwen3", "block_size": 7}


def write(folder: Path, config: dict) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def drafter_for(folder: Path, target: dict, **changes) -> str:
    """A published DFlash drafter's config in the shape of ``target``."""
    sizes = target | target.get("text_config", {})
    inner = {"mask_token_id": 5, "target_layer_ids": [1, 3]}
    config = {
        **{name: sizes[name] for name in ("hidden_size", "vocab_size", "num_attention_heads")},
        "architectures": ["DFlashDraftModel"],
        "block_size": 16,
        "dflash_config": inner,
        "head_dim": 64,
        "intermediate_size": 128,
        "max_position_embeddings": 4096,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "num_target_layers": sizes["num_hidden_layers"],
    }
    return write(folder, config | changes)


@pytest.fixture
def quantized(tmp_path):
    """Folders of a pair in the tiny shape, with the target's quantization still to be said."""
    target, draft = save_tiny_pair(tmp_path)
    file = Path(target) / "config.json"

    def say(quantization):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": quantization}))
        return read_pair(target, draft)

    return say


@pytest.mark.parametrize("engine", COMMANDS)
def test_targets_that_are_not_run_here(tmp_path, engine):
    gpt_oss = read_pair(write(tmp_path / "t", GPT_OSS), drafter_for(tmp_path / "d", GPT_OSS))
    argv = COMMANDS[engine](gpt_oss, LaunchConfig()).argv
    assert str(tmp_path / "t") in argv
    draft = drafter_for(tmp_path / "d4", GEMMA4, attention_sink_bias=True)
    gemma = read_pair(write(tmp_path / "t4", GEMMA4), draft)
    command = COMMANDS[engine](gemma, LaunchConfig())
    assert any("does not read this kind of drafter" in note for note in command.notes)
    assert "15" in str(command.argv) or "16" in command.argv


@pytest.mark.parametrize("engine", COMMANDS)
@pytest.mark.parametrize(
    "told",
    [
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {"quant_method": "awq", "bits": 4},
    ],
    ids=lambda told: told["quant_method"],
)
def test_quantized_targets_go_by_the_engines_list(quantized, engine, told):
    assert COMMANDS[engine](quantized(told), LaunchConfig()).argv


def test_what_an_engine_does_not_have_is_refused_in_its_name(quantized, tmp_path):
    with pytest.raises(
        UsageError, match=r"vLLM 0\.33\.0 does not know weights quantized as exl3; expected one of"
    ):
        vllm_command(quantized({"quant_method": "exl3"}), LaunchConfig())
    mamba = read_pair(
        write(tmp_path / "m", GPT_OSS | {"architectures": ["MambaForCausalLM"]}),
        drafter_for(tmp_path / "d", GPT_OSS),
    )
    with pytest.raises(UsageError, match=r"SGLang 0\.5\.23 gives no features of MambaForCausalLM targets"):
        sglang_command(mamba, LaunchConfig())
    domino = drafter_for(tmp_path / "o", GPT_OSS, architectures=["DominoDraftModel"])
    with pytest.raises(UsageError, match=r"vLLM 0\.33\.0 serves no drafter of architecture DominoDraftModel"):
        vllm_command(read_pair(write(tmp_path / "t", GPT_OSS), domino), LaunchConfig())
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        read_pair(str(tmp_path / "m"), str(tmp_path))


def test_drafters_of_other_methods(tmp_path):
    pair = read_pair(write(tmp_path / "t", GPT_OSS), drafter_for(tmp_path / "d", GPT_OSS, **DSPARK))
    speculative = json.loads(vllm_command(pair, LaunchConfig()).argv[4])
    assert speculative["method"] == "dspark"
    assert speculative["num_speculative_tokens"] == 6
    assert "DSPARK" in sglang_command(pair, LaunchConfig()).argv


def test_eagle3_and_domino(tmp_path):
    target = write(tmp_path / "t", GPT_OSS)
    eagle = write(tmp_path / "e", {"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama"})
    pair = read_pair(target, eagle)
    for command in COMMANDS.values():
        with pytest.raises(UsageError, match="says no block size; name one: --block-size"):
            command(pair, LaunchConfig())
    argv = sglang_command(pair, LaunchConfig(block_size=4)).argv
    told = {
        flag: argv[argv.index(f"--speculative-{flag}") + 1]
        for flag in ("num-steps", "eagle-topk", "algorithm")
    }
    assert told == {"num-steps": "3", "eagle-topk": "1", "algorithm": "EAGLE3"}
    assert {word for word in argv if word.startswith("--")} <= engine_facts("sglang").flags
    assert '"num_speculative_tokens": 3' in str(vllm_command(pair, LaunchConfig(block_size=4)).argv)
    domino = read_pair(
        target, drafter_for(tmp_path / "d", GPT_OSS, dflash_config={"projector_type": "domino"})
    )
    with pytest.raises(UsageError, match=r"vLLM 0\.33\.0 serves no Domino drafters: SGLang does"):
        vllm_command(domino, LaunchConfig())
    assert sglang_command(domino, LaunchConfig()).argv


def test_replicas_before_tensor_parallelism(tmp_path):
    pair = read_pair(*save_tiny_pair(tmp_path))
    for command, flag in ((vllm_command, "--data-parallel-size"), (sglang_command, "--dp-size")):
        argv = command(pair, LaunchConfig(replicas=8)).argv
        assert argv[argv.index(flag) + 1] == "8"
        assert any(
            "--replicas 4 in place of --tp 4; a 27B made 9,500" in note
            for note in command(pair, LaunchConfig(tp=4)).notes
        )
    assert sglang_command(pair, LaunchConfig(replicas=8)).argv[2] == "sglang_router.launch_server"
    spread = LaunchConfig(replicas=8, nodes=2, master="10.0.0.1:29500")
    for config in (LaunchConfig(tp=4), spread):  # one server, or one on each machine
        assert sglang_command(pair, config).argv[2] == "sglang.launch_server"
    with pytest.raises(UsageError, match="replicas 0"):
        LaunchConfig(replicas=0)


EVERYTHING = [
    LaunchConfig(block_size=4, tp=2, replicas=2, memory=0.5, max_model_len=99, max_running=3, parsers=True),
    LaunchConfig(tp=2, nodes=2, node_rank=1, master="10.0.0.1:29500"),
]


@pytest.mark.parametrize("engine", COMMANDS)
def test_every_flag_is_one_of_the_engines_own_parser(tmp_path, engine):
    pair = read_pair(*save_tiny_pair(tmp_path))
    configs = [
        *EVERYTHING,
        LaunchConfig(window=64) if engine == "sglang" else LaunchConfig(pp=2, device="cpu"),
    ]
    used = {
        word for config in configs for word in COMMANDS[engine](pair, config).argv if word.startswith("--")
    }
    assert len(used) >= 12
    assert used <= engine_facts(engine).flags


@pytest.mark.skipif("FLASHDRAFT_WHEELS" not in os.environ, reason="FLASHDRAFT_WHEELS names none")
def test_the_facts_are_the_wheels(capsys, monkeypatch):
    """Of the releases that are named: several hundred MB, so only where they lie already."""
    script = Path(__file__).parents[2] / "benchmarks" / "peers" / "engine_facts.py"
    monkeypatch.setattr(sys, "argv", [str(script), *os.environ["FLASHDRAFT_WHEELS"].split(",")])
    runpy.run_path(str(script), run_name="__main__")
    found = json.loads(capsys.readouterr().out)
    for engine, told in found.items():
        facts = engine_facts(engine)
        assert facts.version == told["version"]
        for name in ("targets", "drafters", "quantizations", "flags"):
            assert getattr(facts, name) == frozenset(told[name])
