"""DFlash 2's parts against z-lab's own implementation (PyPI dflash 0.1.0), and what they must leave alone."""

import pytest
import torch
from dflash.model import DFlash2DraftModel
from transformers import DynamicCache, Qwen3Config

from flashdraft.models.dflash import DFlashModel
from flashdraft.models.dflash2 import BlockConv
from flashdraft.spec_decode.candidates import candidates_of, likeliest_tokens
from flashdraft.spec_decode.dflash import DFlashDrafter
from toys import Alone, toy_dflash, toy_dflash2, toy_target

TARGET = toy_target()


def reference(model: DFlashModel) -> DFlash2DraftModel:
    skipped = ("architectures", "auto_map", "model_type")
    fields = {name: value for name, value in model.config.to_dict().items() if name not in skipped}
    theirs = DFlash2DraftModel(Qwen3Config(**fields, attn_implementation="eager")).eval()
    state = {
        f"{name}.weight" if name.endswith("codebook") else name: tensor
        for name, tensor in model.state_dict().items()
    }
    theirs.load_state_dict(state)
    return theirs


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "changes", [{}, {"conv_kernel_size": 3, "conv_group_size": 4, "num_hidden_layers": 1}]
)
def test_blocks_and_drafts_equal_z_labs(seed: int, changes: dict[str, int]) -> None:
    model = toy_dflash2(TARGET, seed=seed, **changes)
    theirs, their_cache = reference(model), DynamicCache()
    generator = torch.Generator().manual_seed(seed)
    state, start = Alone(DFlashDrafter(model, TARGET), 200), 0
    size, block_size = model.config.hidden_size, model.config.block_size
    with torch.no_grad():
        for num_new in (23, 1, 4):
            features = torch.randn(1, num_new, 2 * size, generator=generator)
            block = torch.randn(1, block_size, size, generator=generator)
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
            )[:, -block_size:]
            start += num_new
            their_cache.crop(-block_size)
            assert (ours - expected).abs().max() <= 1e-4
            anchors = torch.tensor([start % 97])
            drafted = candidates_of(model, TARGET, ours[:, 1:], anchors, 1).walk().token_ids[..., 0]
            assert torch.equal(drafted, theirs.propose(ours[:, 1:], anchors, TARGET.logits, 0.0)[0])


def test_the_walk_takes_another_way_than_the_slots_alone() -> None:
    model = toy_dflash2(TARGET, std=0.6)
    hidden = torch.randn(4, 7, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        walked = candidates_of(model, TARGET, hidden, torch.arange(4), 1).walk()
        alone = likeliest_tokens(model, TARGET, hidden, 1)[0]
    assert (walked.token_ids != alone).float().mean() > 0.2


@torch.no_grad()
def test_at_the_start_it_is_plain_dflash_to_the_bit() -> None:
    plain = toy_dflash(TARGET)
    grown = DFlashModel(toy_dflash2(TARGET).config)
    grown.init_weights(torch.Generator().manual_seed(3))
    kept = grown.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert all("_conv." in name or "selector" in name for name in kept)
    features = torch.randn(1, 20, 96, generator=torch.Generator().manual_seed(0))
    block = torch.randn(1, 8, 48, generator=torch.Generator().manual_seed(1))
    outputs = []
    for model in (plain, grown):
        state = Alone(DFlashDrafter(model, TARGET), 64)
        state.observe([1] * 20, features)
        outputs.append(model.served(block, torch.arange(20, 28).unsqueeze(0), 28, state.context(8)))
    assert torch.equal(*outputs)


@torch.no_grad()
def test_neighbouring_blocks_do_not_mix() -> None:
    conv = BlockConv(48, 3, 16)
    for parameter in conv.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(1, 16, 48)
    together = conv(x, conv.kernels(x, 8), 0)
    for block in (slice(0, 8), slice(8, 16)):
        alone = conv(x[:, block], conv.kernels(x[:, block], 8), 0)
        torch.testing.assert_close(together[:, block], alone)
    other = x.clone()
    other[:, 7] += 1
    assert torch.equal(conv(other, conv.kernels(other, 8), 0)[:, 8:], together[:, 8:])
    assert not torch.equal(
        conv(other, conv.kernels(other, 16), 0)[:, 8:], conv(x, conv.kernels(x, 16), 0)[:, 8:]
    )


@torch.no_grad()
def test_scaled_embeddings_and_capped_logits() -> None:
    model = toy_dflash2(TARGET, output_multiplier=0.5, final_logit_softcapping=3.0, input_embedding_scale=2.0)
    theirs = reference(model)
    hidden = torch.randn(1, 7, 48, generator=torch.Generator().manual_seed(0))
    expected = theirs.compute_logits(hidden, TARGET.logits).log_softmax(-1).topk(6).values
    torch.testing.assert_close(candidates_of(model, TARGET, hidden, torch.tensor([1]), 1).log_probs, expected)
    block = torch.randn(1, 8, 48, generator=torch.Generator().manual_seed(1))
    state = Alone(DFlashDrafter(model, TARGET), 64)
    state.observe([1] * 4, torch.randn(1, 4, 96, generator=torch.Generator().manual_seed(2)))
    plain = toy_dflash2(TARGET)
    args = torch.arange(4, 12).unsqueeze(0), 12, state.context(8)
    assert torch.equal(model.served(block, *args), plain.served(2 * block, *args))


@torch.no_grad()
def test_codebooks_that_are_projections_of_the_head() -> None:
    drafter = toy_dflash2(TARGET, selector_projects_head=True)
    projected = drafter.candidate_selector
    assert projected is not None
    hidden = torch.randn(3, 7, 48, generator=torch.Generator().manual_seed(0))
    at_first = candidates_of(drafter, TARGET, hidden, torch.arange(3), 1).walk().token_ids
    assert torch.equal(at_first, likeliest_tokens(drafter, TARGET, hidden, 1)[0])
    torch.nn.init.normal_(projected.successor_projection)
    tables = toy_dflash2(TARGET)
    assert tables.candidate_selector is not None
    predecessors, successors = projected.codebooks(TARGET.head_weight())
    tables.candidate_selector.predecessor_codebook.copy_(predecessors)
    tables.candidate_selector.successor_codebook.copy_(successors)
    tables.candidate_selector.hidden_projection.load_state_dict(projected.hidden_projection.state_dict())
    for _ in range(2):
        ours = candidates_of(drafter, TARGET, hidden, torch.arange(3), 1).walk()
        theirs = candidates_of(tables, TARGET, hidden, torch.arange(3), 1).walk()
        assert torch.equal(ours.token_ids, theirs.token_ids)
        assert (ours.token_ids != at_first).any()
        projected.freeze(TARGET.head_weight())
