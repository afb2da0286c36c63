"""Qwen3 and Llama 3.x against transformers, with rollback, and drafted."""

from typing import Any

import pytest
from transformers import LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from against_transformers import check_against_transformers, check_drafted, check_rollback, save_and_load
from flashdraft.errors import CheckpointError
from toys import llama_config

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def qwen3_config(**changes: Any) -> Qwen3Config:
    values = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "rope_theta": 1e6,
        "eos_token_id": 2,
    }
    return Qwen3Config(**{**values, **changes})


@pytest.mark.parametrize("tied", [True, False])
def test_qwen3(tmp_path, tied):
    theirs, ours = save_and_load(tmp_path, Qwen3ForCausalLM, qwen3_config(tie_word_embeddings=tied))
    assert dict(ours.named_parameters()).keys() == dict(theirs.named_parameters()).keys()
    check_against_transformers(theirs, ours)
    check_rollback(ours)
    check_drafted(ours, 3 if tied else 50)


def test_llama3_rope_scaling(tmp_path):
    theirs, ours = save_and_load(tmp_path, LlamaForCausalLM, llama_config(rope_parameters=LLAMA3))
    check_against_transformers(theirs, ours)
    check_rollback(ours)
    check_drafted(ours)


def test_sliding_targets_are_refused(tmp_path):
    config = qwen3_config(use_sliding_window=True, sliding_window=8, max_window_layers=2)
    with pytest.raises(CheckpointError, match=r"layers of type sliding_attention; expected full_attention"):
        save_and_load(tmp_path, Qwen3ForCausalLM, config)
