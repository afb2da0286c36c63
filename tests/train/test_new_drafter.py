"""A new drafter's shape comes from the target's config, and what cannot be made is refused before any answer is."""

import re

import pytest
import torch
from transformers import Qwen3_5MoeTextConfig

from flashdraft.errors import UsageError
from flashdraft.models.base import build_target
from flashdraft.models.dflash import DFlashModel
from flashdraft.train.config import TrainConfig
from flashdraft.train.run import new_drafter


@pytest.fixture(scope="module")
def sparse_target():
    """All layers of experts: its config has no intermediate_size, as those of Qwen3.5-35B-A3B and its like."""
    config = Qwen3_5MoeTextConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=40,
        full_attention_interval=2,
    )
    assert not hasattr(config, "intermediate_size")
    with torch.device("meta"):
        return build_target(config)


@pytest.mark.parametrize(("wanted", "width"), [(None, 96), (80, 80)])
def test_a_drafter_for_a_target_of_experts_alone(sparse_target, wanted, width):
    config = TrainConfig(num_layers=1, num_features=2, mask_token_id=5, intermediate_size=wanted)
    drafter = new_drafter(sparse_target, None, config)
    assert isinstance(drafter, DFlashModel)
    assert drafter.config.intermediate_size == width
    assert drafter.layers[0].mlp.up_proj.weight.shape == (width, 32)


def test_a_head_has_the_targets_experts(sparse_target):
    config = TrainConfig(method="mtp", block_size=4, intermediate_size=80)
    with pytest.raises(UsageError, match=r"of experts 24 wide: leave\s+--intermediate-size out"):
        new_drafter(sparse_target, None, config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seq_len": 0}, "seq_len is 0; expected more than 0"),
        ({"total_blocks": 0}, "total_blocks is 0; expected 1 or more"),
        ({"rows_per_step": 0}, "rows_per_step is 0; expected 1 or more"),
        ({"num_layers": 0}, "num_layers is 0; expected 1 or more"),
        ({"max_minutes": -1.0}, "max_minutes is -1.0; expected 0 or more"),
        ({"lr": float("nan")}, "lr is nan; expected more than 0"),
        ({"slots_per_block": 0.001}, "slots_per_block is 0.001; expected enough for one slot in a step"),
        ({"warmup": 1.0}, "warmup is 1.0; expected a share from 0, below 1"),
    ],
)
def test_settings_that_train_nothing_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        TrainConfig(**values)  # type: ignore[arg-type]
