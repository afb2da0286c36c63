"""The drafter network against z-lab's own implementation (PyPI dflash 0.1.0), and against itself in other forms."""

import pytest
import torch
from dflash.model import DFlashDraftModel
from transformers import DynamicCache, Qwen3Config

from flashdraft.errors import UsageError
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.dflash_config import build_target_layer_ids
from flashdraft.spec_decode.dflash import DFlashDrafter
from toys import Alone, toy_dflash, toy_target

TARGET = toy_target()


def reference(model: DFlashModel) -> DFlashDraftModel:
    fields = {
        k: v
        for k, v in model.config.to_dict().items()
        if k not in ("architectures", "auto_map", "model_type")
    }
    theirs = DFlashDraftModel(Qwen3Config(**fields, attn_implementation="eager")).eval()
    missing, unexpected = theirs.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert not unexpected
    return theirs


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_layers", [1, 3])
def test_block_outputs_equal_z_labs_over_rounds_with_a_growing_context(seed: int, num_layers: int) -> None:
    model = toy_dflash(TARGET, seed=seed, num_hidden_layers=num_layers)
    theirs, their_cache = reference(model), DynamicCache()
    generator = torch.Generator().manual_seed(seed)
    state = Alone(DFlashDrafter(model, TARGET), 200)
    hidden_size, block_size = model.config.hidden_size, model.config.block_size
    start = 0
    with torch.no_grad():
        for num_new in (23, 1, 4, 8, 2):
            features = torch.randn(1, num_new, 2 * hidden_size, generator=generator)
            block = torch.randn(1, block_size, hidden_size, generator=generator)
            state.observe([0] * num_new, features)
            end = start + num_new + block_size
            positions = torch.arange(start + num_new, end).unsqueeze(0)
            ours = model.served(block, positions, end, state.context(block_size))
            expected = theirs(
                target_hidden=features,
                noise_embedding=block,
                position_ids=torch.arange(start, end).unsqueeze(0),
                past_key_values=their_cache,
                use_cache=True,
            )
            start += num_new
            their_cache.crop(-block_size)  # its block, as its own loop does
            assert (ours - expected[:, -block_size:]).abs().max() <= 1e-4


def test_drafts_leave_no_trace_in_the_cache() -> None:
    drafter = DFlashDrafter(toy_dflash(TARGET), TARGET)
    features = torch.randn(1, 12, 2 * TARGET.config.hidden_size, generator=torch.Generator().manual_seed(0))
    once, twice = Alone(drafter, 64), Alone(drafter, 64)
    with torch.no_grad():
        for state in (once, twice):
            state.observe([1] * 10, features[:, :10])
        twice.chain(3, 7)
        for state in (once, twice):
            state.observe([1] * 2, features[:, 10:])
        assert once.chain(5, 7) == twice.chain(5, 7)


def test_a_window_hides_what_lies_before_it() -> None:
    model = toy_dflash(TARGET, block_size=4)
    generator = torch.Generator().manual_seed(0)
    near = torch.randn(1, 20, model.fc.in_features, generator=generator)
    block = torch.randn(1, 4, TARGET.config.hidden_size, generator=generator)

    def outputs(features: torch.Tensor) -> torch.Tensor:
        state = Alone(DFlashDrafter(model, TARGET), 24)
        with torch.no_grad():
            state.observe([1] * 20, features)
            return model.served(block, torch.arange(20, 24).unsqueeze(0), 24, state.context(4))

    def changed_at(position: int) -> torch.Tensor:
        other = near.clone()
        other[:, position] += 1
        return outputs(other)

    whole = outputs(near)
    plain, model.config = model.config, model.config.with_window(6)
    seen = outputs(near)
    assert (seen - whole).abs().max() > 1e-3
    assert torch.equal(changed_at(13), seen)  # the window is 14 to 19
    assert (changed_at(14) - seen).abs().max() > 1e-3
    model.config = plain.with_window(20)
    torch.testing.assert_close(outputs(near), whole)
    with pytest.raises(UsageError, match="expected at least a block, 4 tokens"):
        plain.with_window(3)
    with pytest.raises(UsageError, match="trained with a window of 20 tokens"):
        model.config.with_window(8)


def test_feature_layers_of_published_checkpoints() -> None:
    assert build_target_layer_ids(36, 5) == (1, 9, 17, 25, 33)
    assert build_target_layer_ids(24, 5) == (1, 6, 11, 16, 21)
    assert build_target_layer_ids(64, 5) == (1, 16, 31, 46, 61)
    assert build_target_layer_ids(36, 1) == (18,)
    assert build_target_layer_ids(8, 5) == (1, 2, 3, 4, 5)


def test_feature_layers_of_small_targets_are_different_ones() -> None:
    assert build_target_layer_ids(4, 2) == (0, 3)
    assert build_target_layer_ids(7, 5) == (0, 2, 3, 4, 6)
    assert build_target_layer_ids(2, 1) == (1,)
    for num_layers in range(1, 40):
        for num_features in range(1, num_layers + 1):
            chosen = build_target_layer_ids(num_layers, num_features)
            assert sorted(set(chosen)) == list(chosen)
            assert 0 <= chosen[0] <= chosen[-1] < num_layers
    with pytest.raises(
        UsageError, match="num_features is 5; expected 1 to 4, the layers that the target has"
    ):
        build_target_layer_ids(4, 5)
