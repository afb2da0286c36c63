"""qwen3 and qwen3moe GGUF files, in one file and in parts, against transformers."""

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from flashdraft.checkpoint.load import load_target, load_tokenizer
from flashdraft.errors import CheckpointError
from gguf_files import write_qwen3_gguf

SHAPE = {
    "vocab_size": 41,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
SPARSE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}


def make(kind):
    torch.manual_seed(0)
    if kind == "dense":
        model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=True))
    else:
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SHAPE, **SPARSE))
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    return model.eval()


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("max_tensors", [0, 7])
def test_logits_equal_transformers(tmp_path, logits_of, kind, max_tensors):
    model = make(kind)
    write_qwen3_gguf(tmp_path / "tiny.gguf", model, max_tensors)
    files = sorted(tmp_path.glob("*.gguf"))
    assert (len(files) > 1) == bool(max_tensors)
    ours = load_target(files[0], "float32")
    ids = torch.randint(0, 41, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0]
    assert (logits_of(ours, ids) - expected).abs().max() <= 1e-4
    assert load_tokenizer(files[0]).encode("th") == [load_tokenizer(files[0]).convert_tokens_to_ids("th")]


def test_parts_that_are_missing_or_not_the_first(tmp_path):
    write_qwen3_gguf(tmp_path / "tiny.gguf", make("dense"), 10)
    first, second, *_ = sorted(tmp_path.glob("*.gguf"))
    with pytest.raises(CheckpointError, match=r"is one of \d files; expected the first, NAME-00001-of-"):
        load_target(second)
    second.unlink()
    with pytest.raises(CheckpointError, match=rf"{second.name} is missing; fetch it too"):
        load_target(first)
