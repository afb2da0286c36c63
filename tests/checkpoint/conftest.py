"""Real checkpoints, tiny and random: Llama folders by transformers, GGUF files by gguf's own writer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from flashdraft.batch import ForwardBatch
from flashdraft.models.base import TargetModel
from gguf_files import write_llama_gguf
from toys import llama_config

MakeLlama = Callable[..., LlamaForCausalLM]
WriteGGUF = Callable[..., Path]


@pytest.fixture(scope="session")
def make_llama() -> MakeLlama:
    """A transformers Llama with weights that make logits vary; config fields by keyword."""

    def make(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
        values = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 96, "num_hidden_layers": 3}
        model = LlamaForCausalLM(llama_config(**{**values, **changes})).eval()
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            with torch.no_grad():
                parameter.normal_(std=0.2, generator=generator)
                if "norm" in name:
                    parameter.add_(1.0)
        return model

    return make


@pytest.fixture(scope="session")
def logits_of() -> Callable[[TargetModel, list[int]], Tensor]:
    """Our logits [num_tokens, vocab_size] of one sequence."""

    @torch.inference_mode()
    def logits(target: TargetModel, token_ids: list[int]) -> Tensor:
        batch = ForwardBatch.of_row(token_ids, 0, target.device)
        return target.logits(target.forward(batch, target.new_cache(1, len(token_ids))).hidden[0])

    return logits


@pytest.fixture
def folder(tmp_path: Path, make_llama: MakeLlama) -> Path:
    """A Llama folder of one weights file, of the caller's own to spoil."""
    make_llama().save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.fixture
def sharded_folder(tmp_path: Path, make_llama: MakeLlama) -> Path:
    """The same in several shards."""
    make_llama().save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    return tmp_path / "sharded"


@pytest.fixture
def write_gguf(tmp_path: Path) -> WriteGGUF:
    """Writes a transformers Llama as llama.cpp's converter would; fields can be replaced (None: left out)."""

    def write(model: LlamaForCausalLM, *arguments: Any, path: Path | None = None, **named: Any) -> Path:
        return write_llama_gguf(path or tmp_path / "tiny.gguf", model, *arguments, **named)

    return write
