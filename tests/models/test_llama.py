"""Features, chunks and rollback of a target. Logits against transformers are in tests/checkpoint."""

import pytest
import torch
from transformers import LlamaForCausalLM

from flashdraft.batch import ForwardBatch
from flashdraft.errors import CheckpointError
from flashdraft.models.base import OwnTokens, build_target
from flashdraft.ops.attention import attention, attention_reference
from toys import toy_target

TARGET = toy_target()
IDS = [(7 * i) % 97 for i in range(40)]


@torch.no_grad()
def test_features_are_the_outputs_of_the_named_layers_in_the_named_order() -> None:
    model = LlamaForCausalLM(TARGET.config).eval()
    model.load_state_dict(TARGET.state_dict(), strict=False)
    states = model(torch.tensor([IDS]), output_hidden_states=True).hidden_states
    output = TARGET.forward(ForwardBatch.of_row(IDS, 0), TARGET.new_cache(1, 64), (3, 1))
    assert output.features is not None
    expected = torch.cat((states[4], states[2]), dim=-1)
    assert (output.features - expected).abs().max() <= 1e-5


@torch.no_grad()
def test_chunks_and_rolled_back_blocks_equal_one_straight_forward() -> None:
    straight = TARGET.forward(ForwardBatch.of_row(IDS, 0), TARGET.new_cache(1, 64)).hidden
    cache = TARGET.new_cache(1, 64)
    pieces = []
    for width, keep in ((9, 9), (5, 2), (1, 1), (16, 3), (8, 8), (16, 1), (16, 16)):
        start = cache.lengths[0]
        # What is staged past ``keep`` is wrong on purpose: it must leave no trace.
        block = IDS[start : start + keep] + [96] * (width - keep)
        hidden = TARGET.forward(ForwardBatch.of_row(block, start), cache).hidden
        cache.commit(keep)
        pieces.append(hidden[:, :keep])
    joined = torch.cat(pieces, dim=1)
    assert joined.shape == straight.shape
    assert (joined - straight).abs().max() <= 1e-5


@torch.no_grad()
def test_sequences_without_a_cache_equal_cached_ones() -> None:
    own = OwnTokens()
    cached = TARGET.forward(ForwardBatch.of_row(IDS, 0), TARGET.new_cache(1, 64)).hidden
    assert (TARGET.forward(ForwardBatch.of_row(IDS, 0), own).hidden - cached).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("heads", "kv_heads", "num_tokens", "kv_len"), [(4, 2, 5, 17), (3, 1, 1, 9), (6, 6, 16, 33)]
)
def test_attention_equals_the_reference(heads: int, kv_heads: int, num_tokens: int, kv_len: int) -> None:
    generator = torch.Generator().manual_seed(heads)
    q = torch.randn(2, heads, num_tokens, 8, generator=generator)
    k, v = (torch.randn(2, kv_heads, kv_len, 8, generator=generator) for _ in range(2))
    mask = torch.rand(2, num_tokens, kv_len, generator=generator) < 0.6
    mask[:, :, 0] = True
    for one in (mask, mask[:1], None):
        torch.testing.assert_close(attention(q, k, v, one), attention_reference(q, k, v, one))


def test_an_unknown_model_type_is_told() -> None:
    config = toy_target().config
    config.model_type = "mamba9"
    with pytest.raises(CheckpointError, match=r"'mamba9' is not supported.*llama"):
        build_target(config)
