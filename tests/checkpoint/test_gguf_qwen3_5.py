"""qwen35 and qwen35moe GGUF files, whole, in parts and quantized by gguf, against transformers."""

import gguf
import pytest
import torch
from transformers import Qwen3_5ForCausalLM, Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig, Qwen3_5TextConfig

from flashdraft.checkpoint.load import load_target, load_tokenizer
from flashdraft.errors import CheckpointError
from gguf_files import write_qwen3_5_gguf

F32, Q8_0 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0
SHAPE = {
    "vocab_size": 41,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 32,  # a block of Q8_0: to reorder heads moves whole blocks
    "full_attention_interval": 2,
}
SPARSE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}


def make(kind):
    torch.manual_seed(0)
    if kind == "dense":
        config = Qwen3_5TextConfig(**SHAPE, intermediate_size=96, tie_word_embeddings=True)
        model = Qwen3_5ForCausalLM(config).eval()
    else:
        model = Qwen3_5MoeForCausalLM(Qwen3_5MoeTextConfig(**SHAPE, **SPARSE)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("A_log"):
                parameter.sub_(3.0)  # slow decays, as trained
            elif "norm" in name or parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
            else:
                parameter.normal_(std=0.1)
    return model


def requantized(model, kind):
    """``model`` with the values that gguf's own quantizer leaves of it, in place."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "norm" not in name:
            values = (
                parameter.detach().squeeze()
            )  # as the file has the convolution and the shared expert's gate
            if values.dim() > 1 and values.shape[-1] % 32 == 0:
                stored = gguf.quants.quantize(values.numpy(), kind)
                parameter.data = torch.from_numpy(gguf.quants.dequantize(stored, kind)).view_as(parameter)
    return model


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize(
    ("stored", "told"),
    [
        (F32, {}),
        (F32, {"max_tensors": 17, "with_mtp": True}),
        (F32, {"joins_experts": True}),
        (Q8_0, {"with_mtp": True}),
    ],
    ids=["whole", "parts-mtp", "joined", "Q8_0"],
)
def test_logits_equal_transformers(tmp_path, logits_of, kind, stored, told):
    model = make(kind)
    write_qwen3_5_gguf(tmp_path / "tiny.gguf", model, stored, **told)
    files = sorted(tmp_path.glob("*.gguf"))
    assert (len(files) > 1) == ("max_tensors" in told)
    ours = load_target(files[0], "float32")
    ids = torch.randint(0, 41, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        before = model(torch.tensor([ids])).logits[0]
        expected = requantized(model, stored)(torch.tensor([ids])).logits[0]
    assert (logits_of(ours, ids) - expected).abs().max() <= 1e-4
    assert ((before - expected).abs().max() > 1e-3) == (stored == Q8_0)
    assert load_tokenizer(files[0]).encode("th") == [load_tokenizer(files[0]).convert_tokens_to_ids("th")]


def test_what_is_missing(tmp_path):
    model = make("dense")
    write_qwen3_5_gguf(tmp_path / "tiny.gguf", model)
    text = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "other.gguf").write_bytes(text.replace(b"qwen35.ssm.state_size", b"qwen35.ssm.state_sise"))
    with pytest.raises(CheckpointError, match=r"lacks the field qwen35\.ssm\.state_size"):
        load_target(tmp_path / "other.gguf")
