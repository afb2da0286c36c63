"""A folder that transformers loads by itself: its answers are the target's, its drafts are ours."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, Qwen3_5ForCausalLM, Qwen3_5TextConfig

from against_transformers import save_and_load
from flashdraft.checkpoint.convert import convert_drafter
from flashdraft.checkpoint.load import load_target, save_drafter
from flashdraft.spec_decode.dflash import DFlashDrafter
from tiny_pair import save_tiny_pair
from toys import DFLASH2, Alone, toy_dflash

# A process of its own that may not import flashdraft, as a user's who has transformers only.
ALONE = """
import json, sys
sys.modules["flashdraft"] = None
import torch
from transformers import AutoModel, AutoModelForCausalLM
target = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
drafter = AutoModel.from_pretrained(sys.argv[2], trust_remote_code=True, dtype=torch.float32).eval()
prompt = torch.tensor([list(range(40, 70))])
greedy = target.generate(prompt, max_new_tokens=40, do_sample=False, eos_token_id=-1)
answers = [drafter.spec_generate(prompt, target=target, max_new_tokens=40).tolist() for _ in range(2)]
stop = greedy[0, 40].item()
stopped = drafter.spec_generate(input_ids=prompt, target=target, max_new_tokens=40, stop_token_ids=[stop])
torch.manual_seed(0)
sampled = drafter.spec_generate(prompt, target=target, max_new_tokens=12, temperature=1.0)
print(json.dumps([greedy.tolist(), answers, stop, stopped.tolist(), list(sampled.shape)]))
"""


def test_it_runs_without_us(tmp_path):
    target, drafter = save_tiny_pair(tmp_path)
    convert_drafter(drafter, "transformers", tmp_path / "hf")
    command = [sys.executable, "-W", "ignore", "-c", ALONE, target, str(tmp_path / "hf")]
    environment = {"HF_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    greedy, answers, stop, stopped, shape = json.loads(ran.stdout.splitlines()[-1])
    assert answers == [greedy, greedy]
    answer = greedy[0][30:]
    assert stopped[0][30:] == answer[: answer.index(stop) + 1]
    assert shape == [1, 42]


KINDS = ("sliding_attention", "full_attention")
SHAPES = [
    {},
    {"layer_types": KINDS, "sliding_window": 12},
    {"layer_types": KINDS, "sliding_window": 12, "window_from_anchor": True},
    {"layer_types": KINDS, "sliding_window": 12, "is_causal": False},
    {"draft_vocab_size": 32},
    {**DFLASH2, "layer_types": KINDS, "sliding_window": 12},
    {**DFLASH2, "draft_vocab_size": 32, "conv_kernel_size": 3, "output_multiplier": 0.5},
]


@pytest.mark.parametrize("changes", SHAPES)
@torch.inference_mode()
def test_it_drafts_what_we_draft(tmp_path, monkeypatch, changes):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    name, _ = save_tiny_pair(tmp_path)
    ours = load_target(name, "float32")
    network = toy_dflash(ours, **changes)
    save_drafter(network, tmp_path / "z")
    convert_drafter(tmp_path / "z", "transformers", tmp_path / "hf")
    theirs = AutoModel.from_pretrained(tmp_path / "hf", trust_remote_code=True, dtype=torch.float32).eval()
    target = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    state = Alone(DFlashDrafter(network, ours), 64)
    context = []
    for num_tokens in (11, 1, 5, 16):  # contexts below, at and above the window
        features = torch.randn(1, num_tokens, theirs.fc.in_features)
        state.observe(list(range(num_tokens)), features)
        context = theirs.observe(features, context)
        assert [theirs.draft(i, context, target) for i in range(8)] == [state.chain(i, 7) for i in range(8)]


def test_a_hybrid_target_rolls_back(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    kinds = (["linear_attention"] * 3 + ["full_attention"]) * 2
    config = Qwen3_5TextConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        layer_types=kinds,
        max_position_embeddings=512,
    )
    target, ours = save_and_load(tmp_path / "t", Qwen3_5ForCausalLM, config)
    save_drafter(toy_dflash(ours), tmp_path / "z")
    convert_drafter(tmp_path / "z", "transformers", tmp_path / "hf")
    drafter = AutoModel.from_pretrained(tmp_path / "hf", trust_remote_code=True, dtype=torch.float32).eval()
    prompt = torch.arange(1, 21)[None]
    expected = target.generate(prompt, max_new_tokens=40, do_sample=False)
    assert drafter.spec_generate(prompt, target=target, max_new_tokens=40).tolist() == expected.tolist()
