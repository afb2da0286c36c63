"""Qwen3.5, nested as published and flat, against transformers; its state rolls back; the 27B's own names."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3_5Config, Qwen3_5ForCausalLM, Qwen3_5ForConditionalGeneration, Qwen3_5TextConfig

from against_transformers import (
    check_against_transformers,
    check_drafted,
    check_rollback,
    save_and_load,
    straight,
)
from flashdraft.batch import ForwardBatch
from flashdraft.checkpoint.load import eos_token_ids
from flashdraft.generate import generate
from flashdraft.llm import LLM
from flashdraft.models.base import OwnTokens, build_target
from flashdraft.models.drafter_network import part_of
from flashdraft.ops.block_mask import DocumentMask
from flashdraft.sampling_params import SamplingParams
from toys import QWEN3_5_27B

STD = 0.1  # of the matrices: rounding grows less than with larger ones
TEXT = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "full_attention_interval": 3,
    "eos_token_id": 2,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e7,
        "partial_rotary_factor": 0.25,
        "mrope_section": [1, 1, 0],
        "mrope_interleaved": True,
    },
}
VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 48,
    "num_position_embeddings": 16,
}


def flat(**changes: Any) -> Qwen3_5TextConfig:
    return Qwen3_5TextConfig(**{**TEXT, **changes})


def nested(tied: bool) -> Qwen3_5Config:
    text = {**TEXT, "tie_word_embeddings": tied}
    return Qwen3_5Config(text_config=text, vision_config=VISION, tie_word_embeddings=tied)


@pytest.mark.parametrize("tied", [True, False])
def test_nested_with_its_vision_tower(tmp_path, tied):
    theirs, ours = save_and_load(tmp_path, Qwen3_5ForConditionalGeneration, nested(tied), STD)
    names = {name for name, _ in theirs.named_parameters() if not name.startswith("model.visual.")}
    assert names < {name for name, _ in theirs.named_parameters()}
    assert {name for name, _ in ours.named_parameters()} == names
    check_against_transformers(theirs, ours)
    assert eos_token_ids(tmp_path) == (2,)
    check_rollback(ours)
    check_drafted(ours, 3 if tied else 50)


@pytest.mark.parametrize("tied", [True, False])
def test_flat(tmp_path, tied):
    theirs, ours = save_and_load(tmp_path, Qwen3_5ForCausalLM, flat(tie_word_embeddings=tied), STD)
    assert dict(ours.named_parameters()).keys() == dict(theirs.named_parameters()).keys()
    check_against_transformers(theirs, ours)
    check_rollback(ours, seed=1)
    check_drafted(ours, 3 if tied else 50)


@torch.inference_mode()
def test_packed_texts_stay_apart(tmp_path):
    """What training does: two texts in one row give what each gives alone."""
    _, ours = save_and_load(tmp_path, Qwen3_5ForCausalLM, flat(), STD)
    ids = torch.randint(0, 97, (110,), generator=torch.Generator().manual_seed(3))
    starts = torch.tensor([[0] * 30 + [30] * 80])
    positions = torch.arange(110) - starts
    own = OwnTokens(DocumentMask(starts).dense())
    packed = ours.logits(ours.forward(ForwardBatch(ids[None], positions, 0), own).hidden[0])
    for part in (ids[:30], ids[30:]):
        alone, _ = straight(ours, part.tolist(), (0,))
        place = 0 if len(part) == 30 else 30
        assert (packed[place : place + len(part)] - alone).abs().max() <= 1e-4
    # Not a bit of the first text reaches the second, through both forms of the rule.
    for end in (110, 40):
        other = torch.cat(((ids[:30] + 1) % 97, ids[30:]))
        mask = OwnTokens(DocumentMask(starts[:, :end]).dense())
        both = [
            ours(ForwardBatch(text[None, :end], positions[:, :end], 0), mask).hidden[0, 30:]
            for text in (ids, other)
        ]
        assert torch.equal(*both)


@torch.inference_mode()
def test_rows_commit_alone(tmp_path):
    """Two rows, each with its own number of accepted tokens."""
    _, ours = save_and_load(tmp_path, Qwen3_5ForCausalLM, flat(), STD)
    ids = torch.randint(0, 97, (2, 24), generator=torch.Generator().manual_seed(4))
    cache = ours.new_cache(2, 32)
    starts = torch.zeros(2, dtype=torch.long)
    for kept in ((8, 8), (3, 8), (8, 1)):
        positions = starts[:, None] + torch.arange(8)
        block = ids.gather(1, positions.clamp(max=23))
        logits = ours.logits(ours.forward(ForwardBatch(block, positions, 32), cache).hidden)
        for row in range(2):
            expected, _ = straight(ours, ids[row].tolist(), (0,))
            place = int(starts[row])
            width = min(8, 24 - place)
            assert (logits[row, :width] - expected[place : place + width]).abs().max() <= 1e-4
            cache.commit(kept[row], row)
            starts[row] += kept[row]
    assert cache.lengths == [19, 17]


def test_the_27b_has_the_published_names():
    """Qwen/Qwen3.5-27B as its config.json says it, without any weight."""
    config = Qwen3_5Config(text_config=QWEN3_5_27B, tie_word_embeddings=False)
    with torch.device("meta"):
        ours, theirs = build_target(config), Qwen3_5ForConditionalGeneration(config)
    expected = {
        name: tuple(parameter.shape)
        for name, parameter in theirs.named_parameters()
        if not name.startswith("model.visual.")
    }
    assert {name: tuple(parameter.shape) for name, parameter in ours.named_parameters()} == expected
    assert ours.state_dict().keys() == expected.keys()
    assert sum(parameter.numel() for parameter in ours.parameters()) == pytest.approx(27e9, rel=0.01)
    assert "model.language_model.layers.63.self_attn.q_proj.weight" in expected
    # transformers leaves the multi-token-prediction head out; as published it is one attention layer more.
    with torch.device("meta"):
        head = part_of("mtp", "checkpoint").outline_for(config.get_text_config())
    layer = "model.language_model.layers.63."
    of_layer = {
        name.replace(layer, "layers.0."): shape for name, shape in expected.items() if name.startswith(layer)
    }
    norms = dict.fromkeys(
        ("norm.weight", "pre_fc_norm_embedding.weight", "pre_fc_norm_hidden.weight"), (5120,)
    )
    found = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    assert found == {**of_layer, **norms, "fc.weight": (5120, 10240)}


def test_the_offline_face(tmp_path: Path) -> None:
    theirs, target = save_and_load(tmp_path, Qwen3_5ForCausalLM, flat(), STD)
    llm = LLM(str(tmp_path), dtype="float32", skip_tokenizer_init=True)
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    outs = llm.generate([[3, 4, 5], [9, 8]], params)
    for prompt, out in zip([[3, 4, 5], [9, 8]], outs, strict=True):
        expected = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=0
        )
        assert len(out.outputs[0].token_ids) == 12
        assert out.outputs[0].token_ids == generate(target, None, prompt, params).token_ids
        # transformers bars the end token until the last place; up to the first one both go the same way.
        first_eos = [*out.outputs[0].token_ids, 2].index(2)
        assert expected[0, len(prompt) :].tolist()[:first_eos] == out.outputs[0].token_ids[:first_eos]
