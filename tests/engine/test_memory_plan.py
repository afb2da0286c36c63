"""The memory plan: by hand for the 27B, by what is allocated for a toy."""

import json

import pytest
import torch
import yaml
from transformers import Qwen3_5Config

import native_pair
from command_line import run_command
from flashdraft.cache import paged_step
from flashdraft.checkpoint.load import outline_drafter, outline_target
from flashdraft.engine.engine import Engine
from flashdraft.engine.memory_plan import MemoryPlan, plan_memory, plan_networks
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.errors import IncompatibleDrafterError
from flashdraft.models.base import build_target
from flashdraft.native.accelerate import accelerate_drafter
from flashdraft.native.library import library
from flashdraft.ops.attention import attention
from flashdraft.ops.quantized import QuantizedLinear, QuantizedWeight
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from tiny_pair import save_tiny_pair
from toys import QWEN3_5_27B, toy_dflash, toy_target

DRAFTER_27B = {
    "architectures": ["DFlashDraftModel"],
    "model_type": "qwen3",
    "hidden_size": 5120,
    "intermediate_size": 17408,
    "num_hidden_layers": 6,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 248320,
    "num_target_layers": 64,
    "max_position_embeddings": 262144,
    "rope_theta": 1e7,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    "sliding_window": 4096,
    "use_sliding_window": True,
    "dflash_config": {"block_size": 16, "mask_token_id": 248070, "target_layer_ids": [1, 16, 31, 46, 61]},
}


@pytest.fixture
def pair_27b(tmp_path):
    """Configs alone: 54 GB of weights are neither there nor made."""
    Qwen3_5Config(text_config=QWEN3_5_27B, tie_word_embeddings=False).save_pretrained(tmp_path / "t")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "config.json").write_text(json.dumps(DRAFTER_27B))
    return str(tmp_path / "t"), str(tmp_path / "d")


def test_the_27b(pair_27b):
    plan = plan_memory(*pair_27b, "bfloat16", EngineConfig(), None)
    assert plan.kv_bytes == 16 * 2 * 4 * 256 * 2
    assert plan.draft_kv_bytes == 6 * 2 * 8 * 128 * 2
    recurrent, channels, values = 48 * 128 * 128 * 4, 2 * 16 * 128 + 48 * 128, 48 * 128
    assert plan.state_bytes == 48 * (recurrent + 3 * channels * 2)
    # Inputs, q, k and v of them, and in float32 what key heads and heads have beside.
    assert plan.staged_bytes == 48 * ((2 * channels + values + 2 * 48) * 2 + (3 * 16 + 2 * 48) * 4)
    assert plan.staged_tokens == 32 * 16 == 512, "trees of so many tokens together"
    assert plan.weight_bytes == pytest.approx(2 * 26.9e9, rel=0.002)
    assert plan.draft_weight_bytes == pytest.approx(2 * (5 * 5120 * 5120 + 6 * 320.9e6), rel=0.01)
    inputs = channels + 48 * 128 + 2 * 48
    between = 512 * (2 * 5120 + 3 * 24 * 256 + inputs + 2 * 48 * 128)
    deltas = 2048 * (6 * inputs + 48 * 128)
    assert plan.chunk_bytes == 2 * (between + deltas + 512 * (3 * 17408 + 4 * 5120))
    # Hidden states and features of a recording for each power of two of rows and of width; features of contexts.
    recorded = 2 * sum(
        rows * width * (5120 + 5 * 5120) * 2 for rows in (1, 2, 4, 8, 16, 32) for width in (1, 2, 4, 8, 16)
    ) + sum(2**power * 5 * 5120 * 2 for power in range(10))
    matrices = 48 * 3 + 16 * 4 + 64 * 3 + 2 + 6 * 7 + 1  # of more than 1 MiB
    assert plan.beside_bytes == recorded + 4 * 33 * 2**20 + matrices * 2**17
    layer = 2 * (3 * 17408 + 4 * 5120)  # of a token
    drafts = 32 * 15 * 248320 * (4 + 4)  # logits of all slots and their exponentials
    assert plan.activation_bytes == max(drafts, 512 * (248320 * 6 + layer), 8192 * layer)
    taken = (
        plan.weight_bytes
        + plan.draft_weight_bytes
        + (32 + 32 + 1) * plan.state_bytes
        + 512 * plan.staged_bytes
        + plan.activation_bytes
        + plan.chunk_bytes
        + plan.beside_bytes
        + ((32 * (256 + 16) + 16) * 65536 + (32 * (16 + 16) + 16) * 24576)  # spare pages
    )
    assert plan.serving_bytes(8192) == taken + 8192 * (65536 + 24576)
    for size in (80, 141):
        assert plan.context_tokens(1, size) == (0.9 * size * 1e9 - taken) // (65536 + 24576)
    fewer = plan_memory(*pair_27b, "bfloat16", EngineConfig(max_running=16, num_checkpoints=16), None)
    assert 0 < fewer.context_tokens(1, 80) < fewer.context_tokens(1, 141) < fewer.context_tokens(2, 80)
    own_head = plan_memory(pair_27b[0], "mtp", "bfloat16", EngineConfig(), None)
    assert own_head.draft_kv_bytes == 2 * 4 * 256 * 2
    few = [
        plan_memory(pair_27b[0], draft, "bfloat16", EngineConfig(max_running=4), 16)
        for draft in (pair_27b[1], "mtp")
    ]
    assert [plan.staged_tokens for plan in few] == [512, 64], "an MTP head drafts no trees"


def test_the_27b_in_codes():
    """Of floats that prompts' products make, the largest part of two like matrices; of blocks, codes' and scales'."""
    with torch.device("meta"):
        model = build_target(Qwen3_5Config(text_config=QWEN3_5_27B, tie_word_embeddings=False)).bfloat16()
    plain = plan_networks(model, None, EngineConfig(), None)
    for name, module in list(model.named_modules()):
        if ".layers." in name and type(module) is torch.nn.Linear and not name.endswith(("_a", "_b")):
            outputs, inputs = module.weight.shape
            codes = torch.empty(outputs, inputs // 4, dtype=torch.int16, device="meta")
            scales = torch.empty(inputs // 128, outputs, device="meta")
            weight = QuantizedWeight(codes, scales, None, torch.bfloat16, torch.bfloat16)
            model.set_submodule(name, QuantizedLinear(weight, None))
    plan = plan_networks(model, None, EngineConfig(), None)
    floats = (
        12288 * 5120 * 2
    )  # of 2 x 12288 outputs half: two of q. Of gates and ups, 2 x 17408, it is a third
    assert plan.activation_bytes - plain.activation_bytes == floats
    assert plan.chunk_bytes - plain.chunk_bytes == floats
    scales = (
        48 + 16 + 64 * 3
    )  # of more than 1 MiB: of qkv, q, gate, up and down; codes are as many as floats were
    assert plan.beside_bytes - plain.beside_bytes == scales * 2**17


def test_what_the_embedded_pair_holds_for_a_moment_on_a_gpu():
    """192.2 MB more at the peak than in the end, on an H200: benchmarks/results/h200/load.jsonl."""
    plan = plan_memory("embedded", "embedded", "bfloat16", EngineConfig(max_running=32, num_pages=213), None)
    assert plan.activation_bytes == 32 * 15 * 49152 * 8, "its draft vocabulary is for CPUs"
    assert plan.activation_bytes == pytest.approx(192.2e6, rel=0.05)
    drafter = outline_drafter("embedded", outline_target("embedded"))
    own = {id(part): part.nbytes for part in drafter.state_dict(keep_vars=True).values()}
    assert plan.draft_weight_bytes == sum(own.values()) + 2 * 49152 * 128 * 2, (
        "two codebooks made of the head"
    )
    held = plan.device_bytes(1) + 213 * 16 * (plan.kv_bytes + plan.draft_kv_bytes)
    assert held == pytest.approx(1006.4e6, rel=0.03), "the same run's peak"


def test_printed(pair_27b, capsys):
    target, draft = pair_27b
    asked = "serve", target, "--draft", draft, "--max-running-requests", "64", "--dry-run"
    on_cpu = run_command(asked, capsys)
    assert "# weights: target 107.58 GB" in on_cpu.stdout, "PyTorch on a CPU computes a hybrid in float32"
    printed = run_command((*asked, "--device", "cuda"), capsys)
    assert printed.exit_code == 0
    lines = [line for line in printed.stdout.splitlines() if line.startswith("# ")]
    assert "# 1 x 80 GB, 90% used: does not fit" in lines
    assert any(line.startswith("# states: 153.9 MB a request and for each of 32 kept") for line in lines), (
        lines
    )
    assert any(line.startswith("# 1 x 141 GB") and "tokens of context" in line for line in lines)
    assert any(line.startswith("# 2 x 80 GB") and "--tp 2" in line for line in lines)
    assert yaml.safe_load(printed.stdout)["model"] == target
    fewer = run_command((*asked, "--device", "cuda", "--max-prefix-states", "2"), capsys)
    assert "# states: 153.9 MB a request and for each of 2 kept prefixes" in fewer.stdout
    assert yaml.safe_load(fewer.stdout)["max_prefix_states"] == 2
    unknown = run_command(("serve", str(draft), "--dry-run"), capsys)
    assert "# memory: not known" in unknown.stdout


def test_a_toy_takes_what_was_planned(tmp_path):
    from flashdraft.checkpoint.load import load_drafter, load_target

    target, draft = save_tiny_pair(tmp_path)
    plan = plan_memory(target, draft, "float32", EngineConfig(4), 8)
    loaded = load_target(target, "float32")
    assert plan.weight_bytes == sum(p.nbytes for p in loaded.parameters())
    assert plan.draft_weight_bytes == sum(
        p.nbytes for p in load_drafter(draft, loaded, "float32").parameters()
    )
    cache = loaded.new_cache(1, 10)
    assert plan.kv_bytes * 10 == sum(layer.k.nbytes + layer.v.nbytes for layer in cache.layers)
    assert plan.state_bytes == 0
    alone = plan_memory(target, None, "float32", EngineConfig(4), None)
    assert (alone.block_size, alone.draft_weight_bytes, alone.draft_kv_bytes) == (1, 0, 0)
    assert torch.device("meta") != loaded.device
    with pytest.raises(IncompatibleDrafterError):
        plan_memory(target, "embedded", "float32", EngineConfig(4), None)


def held_by(engine) -> int:
    """Bytes of keys and values in pages."""
    return engine.runner.cache.nbytes + engine.runner.drafter.cache.nbytes


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_an_engine_holds_what_was_planned(backend):
    """Four requests, one of them longer; planned and measured differ by 5 % at most."""
    if backend == "native":
        if library() is None:
            pytest.skip("this machine has no C++ form")
        target, _ = native_pair.make()
        network = native_pair.draft_network(target)
        native = accelerate_drafter(network, target.head_weight())
        assert native
    else:
        target = toy_target()
        network, native = toy_dflash(target), None
    config = EngineConfig(4, max_step_tokens=1024, num_pages=64, attention_backend=backend)
    engine = Engine(target, DFlashDrafter(network, target, native), config, block_size=4)
    prompts = [[5] * 140] * 3 + [[7] * 200]
    for name, prompt in enumerate(prompts):
        engine.add_request(str(name), prompt, SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True))
    list(engine.run())
    kv_bytes, draft_bytes = (
        one.bytes_per_token for one in (engine.runner.cache, engine.runner.drafter.cache)
    )
    plan = MemoryPlan(
        4, network.config.block_size, 0, 0, kv_bytes, draft_bytes, 0, 0, 0, 0, 1, step_tokens=1024
    )
    assert held_by(engine) == pytest.approx(plan.storage_bytes(64 * 16), rel=0.05)


def test_a_long_request_does_not_make_its_neighbours_longer(monkeypatch):
    """16 requests, one of 2,040 tokens and 15 of 240: all that is held is 1.2 x their pages at most, and as planned."""
    copied = []

    def counted(q, k, v, *rest):
        copied.append(k.nbytes + v.nbytes)
        return attention(q, k, v, *rest)

    monkeypatch.setattr(paged_step, "attention", counted)
    target = toy_target(max_position_embeddings=4096)
    network = toy_dflash(target)
    config = EngineConfig(16, num_pages=512)
    engine = Engine(target, DFlashDrafter(network, target), config, block_size=4)
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    lengths = [240] * 15 + [2040]
    for name, length in enumerate(lengths):
        engine.add_request(str(name), [name] * (length - 8), params)
    list(engine.run())
    kv_bytes, draft_bytes = (
        one.bytes_per_token for one in (engine.runner.cache, engine.runner.drafter.cache)
    )
    layer_bytes = max(kv_bytes // len(target.specs), draft_bytes // network.config.num_hidden_layers)
    plan = MemoryPlan(
        16, network.config.block_size, 0, 0, kv_bytes, draft_bytes, 0, 0, 0, 0, 1, layer_bytes=layer_bytes
    )
    held = held_by(engine) + max(copied)
    assert held <= 1.2 * 512 * 16 * (kv_bytes + draft_bytes)
    assert held == pytest.approx(plan.storage_bytes(512 * 16) + plan.copied_bytes(lengths), rel=0.05)
