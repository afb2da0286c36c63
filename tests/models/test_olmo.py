"""OLMo 2 and 3 against transformers, with rollback, and drafted."""

from typing import Any

import pytest
import torch
from transformers import Olmo2Config, Olmo2ForCausalLM, Olmo3Config, Olmo3ForCausalLM

from against_transformers import check_against_transformers, check_drafted, check_rollback, save_and_load
from flashdraft.native.accelerate import accelerate
from flashdraft.native.target import NativeTarget

SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# As Olmo-3-32B-Think's: positions of full layers are scaled, those of sliding ones are not.
ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
    "full_attention": {
        "rope_type": "yarn",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "attention_factor": 1.2,
        "beta_fast": 32,
        "beta_slow": 1,
        "original_max_position_embeddings": 64,
    },
}
CASES = {
    "olmo2": (Olmo2ForCausalLM, Olmo2Config(**SHAPE)),
    "olmo3": (Olmo3ForCausalLM, Olmo3Config(**SHAPE, sliding_window=24, rope_parameters=ROPE)),
}


@pytest.mark.parametrize("kind", CASES)
def test_olmo(tmp_path, kind):
    theirs, ours = save_and_load(tmp_path, *CASES[kind])
    assert dict(ours.named_parameters()).keys() == dict(theirs.named_parameters()).keys()
    check_against_transformers(theirs, ours)
    check_rollback(ours)
    check_drafted(ours, 20)


@pytest.mark.parametrize("kind", CASES)
def test_no_fast_path_takes_its_layers_for_llamas(tmp_path, kind):
    _, ours = save_and_load(tmp_path, *CASES[kind])
    assert not isinstance(accelerate(ours.to(torch.bfloat16)), NativeTarget)
