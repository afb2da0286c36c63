"""A gemma3 GGUF: transformers' logits, SentencePiece's tokens, and what a file may leave out."""

from itertools import pairwise

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from against_transformers import check_rollback, straight
from flashdraft.checkpoint.load import eos_token_ids, load_target, load_tokenizer
from flashdraft.errors import CheckpointError
from flashdraft.export.target_folder import export_target
from flashdraft.generate import generate
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.ngram import NgramDrafter
from gguf_files import PIECES, sentencepiece_fields, write_gemma3_gguf


@pytest.fixture
def theirs():
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    }
    config = Gemma3TextConfig(
        vocab_size=len(PIECES),
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=7,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16,
        max_position_embeddings=512,
        sliding_window=24,
        rope_parameters=rope,
    )
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


@torch.inference_mode()
def test_logits(theirs, tmp_path):
    ours = load_target(write_gemma3_gguf(tmp_path / "g.gguf", theirs), "float32")
    ids = torch.randint(0, len(PIECES), (90,), generator=torch.Generator().manual_seed(1))
    expected = theirs(input_ids=ids[None]).logits[0]
    assert (straight(ours, ids.tolist(), (0,))[0] - expected).abs().max() <= 1e-4
    assert ours.config.layer_types == theirs.config.layer_types
    assert eos_token_ids(tmp_path / "g.gguf") == (1,)
    check_rollback(ours)
    export_target(tmp_path / "g.gguf", tmp_path / "hf", "float32")
    again = load_target(tmp_path / "hf", "float32")
    assert (straight(again, ids.tolist(), (0,))[0] - expected).abs().max() <= 1e-4


def test_it_runs_with_ngram_drafts(theirs, tmp_path):
    target = load_target(write_gemma3_gguf(tmp_path / "g.gguf", theirs), "float32")
    params = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
    for prompt in ([2, 261, 262], [2, *range(261, 271)] * 4):
        plain = generate(target, None, prompt, params)
        assert generate(target, NgramDrafter(), prompt, params).token_ids == plain.token_ids


def by_score(text: str) -> list[str]:
    """SentencePiece's BPE, word for word: merge the adjacent pair whose token scores highest, leftmost first."""
    fields = sentencepiece_fields()
    scores = dict(zip(PIECES, fields["tokenizer.ggml.scores"], strict=True))
    ordinary = {
        token for token, kind in zip(PIECES, fields["tokenizer.ggml.token_type"], strict=True) if kind == 1
    }
    pieces = list(text.replace(" ", "▁"))
    while True:
        joined = ((i, left + right) for i, (left, right) in enumerate(pairwise(pieces)))
        pairs = [(scores[both], -i) for i, both in joined if both in ordinary]
        if not pairs:
            return [byte for piece in pieces for byte in as_bytes(piece)]
        at = -max(pairs)[1]
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


def as_bytes(piece: str) -> list[str]:
    return [piece] if piece in PIECES else [f"<0x{byte:02X}>" for byte in piece.encode()]


TEXTS = ["the and an", "  and  the\nthen 11", "that hand.", "é 𓀀 the", "", "nd the   andthe"]


@pytest.mark.parametrize("text", TEXTS)
def test_tokens(theirs, tmp_path, text):
    tokenizer = load_tokenizer(write_gemma3_gguf(tmp_path / "g.gguf", theirs))
    ids = tokenizer.encode(text)
    assert tokenizer.convert_ids_to_tokens(ids) == ["<bos>", *by_score(text)]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.encode(f"{text}<turn>{text}")[1:] == [*ids[1:], PIECES.index("<turn>"), *ids[1:]]


def test_a_prefix_that_older_models_put_before_a_text(theirs, tmp_path):
    path = write_gemma3_gguf(tmp_path / "g.gguf", theirs, {"tokenizer.ggml.add_space_prefix": True})
    tokenizer = load_tokenizer(path)
    ids = tokenizer.encode("the and")
    assert tokenizer.convert_ids_to_tokens(ids) == ["<bos>", *by_score(" the and")]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the and"


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"tokenizer.ggml.scores": [0.0]}, r"1 scores \(expected"),
        ({"tokenizer.ggml.scores": None}, "lacks the field tokenizer.ggml.scores"),
        ({"tokenizer.ggml.model": "t5"}, r"of kind 't5'; expected 'gpt2'"),
    ],
)
def test_damaged_tokenizers(theirs, tmp_path, fields, pattern):
    with pytest.raises(CheckpointError, match=pattern):
        load_tokenizer(write_gemma3_gguf(tmp_path / "g.gguf", theirs, fields))


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"gemma3.rope.scaling.type": "yarn"}, "rope scaling 'yarn'"),
        ({"gemma3.attention.sliding_window": None}, "lacks the field gemma3.attention.sliding_window"),
    ],
)
def test_damaged_models(theirs, tmp_path, fields, pattern):
    with pytest.raises(CheckpointError, match=pattern):
        load_target(write_gemma3_gguf(tmp_path / "g.gguf", theirs, fields))
