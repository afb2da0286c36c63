"""The whole way with targets as published: gpt-oss-20b, gemma-4-31B and Ministral 3."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    Ministral3Config,
    Ministral3ForCausalLM,
)

from against_transformers import save_and_load
from command_line import Run
from journey import from_training_to_another_engine
from models.test_gemma4 import LAYOUTS
from models.test_gemma4 import SHAPE as GEMMA
from models.test_gpt_oss import SHAPE as GPT_OSS
from models.test_gpt_oss import as_published
from models.test_mistral import ROPE
from models.test_mistral import SHAPE as MISTRAL
from tiny_pair import byte_tokenizer

SIZES = {"vocab_size": 259, "max_position_embeddings": 2048, "eos_token_id": 257}


def gpt_oss(folder: Path) -> None:
    save_and_load(folder, GptOssForCausalLM, GptOssConfig(**GPT_OSS | SIZES))
    as_published(folder)


def gemma_4_31b(folder: Path) -> None:
    save_and_load(folder, Gemma4ForCausalLM, Gemma4TextConfig(**GEMMA | SIZES | LAYOUTS["31b"]), 0.1)
    state = {}
    for file in folder.glob("*.safetensors"):
        state |= load_file(file)
        file.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    named = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in state.items()}
    save_file({**named, "model.vision_tower.patch.weight": torch.ones(2)}, folder / "model.safetensors")
    text = json.loads((folder / "config.json").read_text())
    whole = {"architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "text_config": text}
    (folder / "config.json").write_text(json.dumps(whole))


def ministral_3(folder: Path) -> None:
    config = Ministral3Config(**MISTRAL | SIZES | {"rope_parameters": ROPE})
    save_and_load(folder, Ministral3ForCausalLM, config)


@pytest.mark.slow
@pytest.mark.parametrize("make", [gpt_oss, gemma_4_31b, ministral_3])
def test_from_training_to_another_engine(make, run: Run, tmp_path: Path) -> None:
    target = tmp_path / "target"
    make(target)
    byte_tokenizer().save_pretrained(target)
    from_training_to_another_engine(str(target), run, tmp_path)
