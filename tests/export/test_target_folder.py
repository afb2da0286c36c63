"""A GGUF target as a Hugging Face folder: transformers loads it and computes what we compute."""

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

from against_transformers import straight
from command_line import run_command
from flashdraft.checkpoint.load import load_target, load_tokenizer
from flashdraft.errors import UsageError
from flashdraft.export.target_folder import export_target
from gguf_files import TOKENS, write_llama_gguf
from toys import llama_config


@pytest.fixture
def stored(tmp_path):
    """A quantized GGUF of a random Llama."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        llama_config(hidden_size=64, head_dim=16, intermediate_size=96, vocab_size=len(TOKENS))
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return write_llama_gguf(tmp_path / "tiny.gguf", model, kind=gguf.GGMLQuantizationType.Q8_0)


@torch.inference_mode()
def test_transformers_computes_the_same(stored, tmp_path):
    export_target(stored, tmp_path / "hf", "float32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    assert (theirs.dtype, theirs.config.rms_norm_eps) == (torch.float32, 1e-6)
    ids = torch.randint(0, theirs.config.vocab_size, (40,), generator=torch.Generator().manual_seed(1))
    expected = theirs(input_ids=ids[None]).logits[0]
    assert (straight(load_target(stored, "float32"), ids.tolist(), (0,))[0] - expected).abs().max() < 1e-5
    assert (
        straight(load_target(tmp_path / "hf", "float32"), ids.tolist(), (0,))[0] - expected
    ).abs().max() < 1e-5


def test_texts_are_cut_as_the_model_was_trained(stored, tmp_path):
    export_target(stored, tmp_path / "hf")
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path / "hf"), load_tokenizer(stored)
    for text in ("the 2026th\nthing 42", "<|start|>the<|end|>"):
        assert theirs.encode(text) == ours.encode(text)
    assert theirs.eos_token_id == GenerationConfig.from_pretrained(tmp_path / "hf").eos_token_id[0]


def test_the_embedded_tokenizer_goes_along(tmp_path, monkeypatch, stored):
    """The real vocabulary and chat template; its 135 million weights stay out of a test."""
    monkeypatch.setattr(
        "flashdraft.export.target_folder.load_target", lambda *_: load_target(stored, "float32")
    )
    export_target("embedded", tmp_path / "hf")
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path / "hf"), load_tokenizer()
    text = "In 2026, 1,234 thing's cost $5.60; naïve café\n\n\tx=10"
    assert theirs.encode(text) == ours.encode(text)
    assert [theirs.decode(i) for i in theirs.encode("2026")] == ["2", "0", "2", "6"]
    chat = [{"role": "user", "content": "Why is the sky blue?"}]
    rendered = [
        one.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for one in (theirs, ours)
    ]
    assert rendered[0] == rendered[1]


def test_what_is_refused(stored, tmp_path, capsys):
    (tmp_path / "hf").mkdir()
    with pytest.raises(UsageError, match="no GGUF file; expected one, or embedded"):
        export_target(tmp_path / "hf", tmp_path / "new")
    argv = ("convert", "--model", str(stored), "--to", "hf", "--out", str(tmp_path / "hf"))
    assert run_command(argv, capsys).exit_code == 0
    assert "is not empty" in run_command(argv, capsys).stderr
    assert "expected hf" in run_command((*argv[:4], "z-lab", *argv[5:]), capsys).stderr
    assert "--draft, --model or both" in run_command(("convert", *argv[3:]), capsys).stderr
    drafter = ("convert", "--draft", "embedded", "--to", "z-lab", "--out", str(tmp_path / "d"))
    assert run_command(drafter, capsys).exit_code == 0
    assert (tmp_path / "d" / "model.safetensors").is_file()
