"""Log-probabilities of steps as on a GPU against transformers on the CPU: prompts, blocks and plain steps."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5MoeForCausalLM,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from against_transformers import save_and_load
from flashdraft.cuda import step
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from toys import toy_dflash

pytest.importorskip("triton")
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
PROMPT = [5, 9, 71, 33, 8, 12, 60, 5, 9, 44, 3]

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "full_attention_interval": 2,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@dataclass
class Layout:
    """How a target is published: transformers' classes, and what its config says."""

    model: Any
    config: Any
    changes: dict[str, Any]


LAYOUTS = {
    "llama": Layout(LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "qwen3": Layout(Qwen3ForCausalLM, Qwen3Config, {}),
    "qwen3-moe": Layout(Qwen3MoeForCausalLM, Qwen3MoeConfig, {**EXPERTS, "norm_topk_prob": True}),
    "qwen3.5": Layout(Qwen3_5ForCausalLM, Qwen3_5TextConfig, DELTA),
    "qwen3.5-moe": Layout(
        Qwen3_5MoeForCausalLM,
        Qwen3_5MoeTextConfig,
        {**DELTA, **EXPERTS, "shared_expert_intermediate_size": 32},
    ),
    "gpt-oss": Layout(
        GptOssForCausalLM,
        GptOssConfig,
        {"num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 4, "swiglu_limit": 0.4},
    ),
}


@pytest.mark.parametrize("block_size", [1, 4])
@pytest.mark.parametrize("name", LAYOUTS if ON_GPU else ["qwen3.5-moe", "gpt-oss"])
def test_log_probabilities(tmp_path, name, block_size):
    _check(tmp_path, name, block_size, PROMPT)


def test_a_longer_prompt_with_sinks_and_windows(tmp_path, monkeypatch):
    """Its attention comes in pieces of five places, as where parts of keys would take much memory."""
    monkeypatch.setattr(step, "_MOST_SUMS", 5 * SHAPE["num_attention_heads"] * SHAPE["head_dim"])
    _check(tmp_path, "gpt-oss", 1, 2 * PROMPT)


def _check(tmp_path, name, block_size, prompt):
    layout = LAYOUTS[name]
    if ON_GPU and "linear_num_key_heads" in layout.changes and find_spec("fla"):
        pytest.skip(
            "with flash-linear-attention beside it transformers launches GPU kernels on tensors of the CPU"
        )
    torch.manual_seed(0)
    theirs, target = save_and_load(tmp_path, layout.model, layout.config(**SHAPE, **layout.changes))
    target = target.to(DEVICE)
    drafter = None
    if block_size > 1:
        drafter = DFlashDrafter(toy_dflash(target, num_hidden_layers=1).to(DEVICE), target)
    config = EngineConfig(max_running=1, page_size=4, num_pages=32)
    engine = Engine(target, drafter, config, (), None, block_size)
    assert type(engine.runner.backend).__name__ == "CudaBackend", "this is about steps on a GPU"
    params = SamplingParams(
        temperature=0.0, max_tokens=12 if ON_GPU else 5, ignore_eos=True, logprobs=0, prompt_logprobs=0
    )
    engine.add_request("0", prompt, params)
    outputs = list(engine.run())
    token_ids = [token for one in outputs for token in one.token_ids]
    [told] = [one.prompt_logprobs for one in outputs if one.prompt_logprobs]
    told = [*told, *(each for one in outputs for each in one.logprobs or ())]
    text = prompt + token_ids
    with torch.inference_mode():
        wanted = theirs(torch.tensor([text])).logits[0].log_softmax(-1)
    expected = wanted[range(len(text) - 1), text[1:]]
    found = torch.tensor([one.logprob for one in told])
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4
    assert token_ids == wanted[len(prompt) - 1 : -1].argmax(-1).tolist()
