"""Gemma 3's language model against transformers, with rollback, drafted, in batches and from a GGUF."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Gemma3TextConfig

from against_transformers import (
    check_against_transformers,
    check_drafted,
    check_rollback,
    save_and_load,
    straight,
)
from flashdraft.batch import ForwardBatch
from flashdraft.checkpoint.load import load_target, save_drafter
from flashdraft.errors import CheckpointError
from flashdraft.generate import generate
from flashdraft.llm import LLM
from flashdraft.models.base import OwnTokens
from flashdraft.ops.attention import CAUSAL
from flashdraft.ops.block_mask import CachedMask, DocumentMask
from flashdraft.ops.sliding import sliding
from flashdraft.sampling_params import SamplingParams
from toys import toy_dflash

ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
}


def config(**changes):
    values = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "query_pre_attn_scalar": 12,
        "max_position_embeddings": 512,
        "sliding_window": 24,
        "sliding_window_pattern": 3,
        "rope_parameters": ROPE,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return Gemma3TextConfig(**{**values, **changes})


def test_gemma3(tmp_path):
    theirs, ours = save_and_load(tmp_path, Gemma3ForCausalLM, config(), 0.1)
    assert dict(ours.named_parameters()).keys() == dict(theirs.named_parameters()).keys()
    check_against_transformers(theirs, ours)
    check_rollback(ours)
    check_drafted(ours)


@torch.inference_mode()
def test_packed_texts_stay_apart(tmp_path):
    """What training does: two texts in one row give what each gives alone."""
    _, ours = save_and_load(tmp_path, Gemma3ForCausalLM, config(), 0.1)
    ids = torch.randint(0, 97, (110,), generator=torch.Generator().manual_seed(3))
    starts = torch.tensor([[0] * 30 + [30] * 80])
    own = OwnTokens(DocumentMask(starts).dense())
    packed = ours.logits(ours.forward(ForwardBatch(ids[None], torch.arange(110) - starts, 0), own).hidden[0])
    for place, part in ((0, ids[:30]), (30, ids[30:])):
        alone, _ = straight(ours, part.tolist(), (0,))
        assert (packed[place : place + len(part)] - alone).abs().max() <= 1e-4


def test_windows_by_brute_force():
    """Every form of a mask at lengths below, at and above the window."""
    for window in (5, 16, 40):
        for start, width in ((0, 16), (3, 4), (30, 4), (19, 1)):
            own, kv_len = torch.arange(start, start + width)[None], start + width
            seen = [[max(0, p - window + 1) <= key <= p for key in range(kv_len)] for p in own[0].tolist()]
            forms = [CachedMask(own, kv_len).dense()]
            forms += [CAUSAL] if start == 0 else []
            forms += [None] if width == 1 else []
            for form in forms:
                mask = sliding(form, window, own, kv_len)
                if mask is form:
                    assert kv_len <= window
                else:
                    assert mask.expand(1, width, kv_len)[0].tolist() == seen


def test_windows_for_flex_attention():
    starts = torch.tensor([[0] * 100 + [100] * 156])
    own = torch.arange(256)[None]
    mask = DocumentMask(starts)
    cut = sliding(mask.flex(), 40, own, 256)
    places = torch.arange(256)
    found = cut.mask_mod(torch.tensor(0), torch.tensor(0), places[:, None], places[None])
    assert torch.equal(found, sliding(mask.dense(), 40, own, 256)[0])
    touched = found.view(2, 128, 2, 128).any(3).any(1)
    assert torch.equal(cut.to_dense()[0, 0].bool(), touched)


def test_what_other_gemmas_do_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"final_logit_softcapping 30.0; expected a gemma3_text"):
        save_and_load(tmp_path, Gemma3ForCausalLM, config(final_logit_softcapping=30.0))


def test_many_requests_at_once(tmp_path):
    """The batched engine, contexts below and above the window side by side: each answer is that of one alone."""
    _, ours = save_and_load(tmp_path, Gemma3ForCausalLM, config(), 0.1)
    save_drafter(toy_dflash(ours), tmp_path / "d")
    params = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)
    prompts = [[(7 * i + j) % 90 for j in range(length)] for i, length in enumerate((3, 20, 45, 70))]
    for draft, size in ((None, None), (str(tmp_path / "d"), 8)):
        llm = LLM(str(tmp_path), draft, size, dtype="float32", skip_tokenizer_init=True)
        for prompt, out in zip(prompts, llm.generate(prompts, params), strict=True):
            assert out.outputs[0].token_ids == generate(ours, None, prompt, params).token_ids


@pytest.mark.parametrize("published", [False, True])
def test_a_checkpoint_with_a_vision_tower(tmp_path, published):
    """Gemma 3 4B and larger: the language model is read, the tower is left out; hub files have the older names."""
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    whole = Gemma3Config(text_config=config().to_dict(), vision_config=vision, mm_tokens_per_image=4)
    theirs = Gemma3ForConditionalGeneration(whole).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state, start = load_file(file), "model.language_model." if published else "language_model.model."
    end = "language_model.model." if published else "model.language_model."
    renamed = {
        f"{end}{name.removeprefix(start)}" if name.startswith(start) else name: tensor
        for name, tensor in state.items()
    }
    assert (
        sum("language_model" in name for name in renamed)
        == sum("language_model" in name for name in state)
        > 0
    )
    assert any("vision_tower" in name for name in renamed)
    save_file(renamed, file)
    ours = load_target(tmp_path, "float32")
    assert ours.config.model_type == "gemma3_text"
    ids = torch.randint(0, 97, (60,), generator=generator)
    with torch.inference_mode():
        expected = theirs(input_ids=ids[None]).logits[0]
    assert (straight(ours, ids.tolist(), (0,))[0] - expected).abs().max() <= 1e-4
