"""Makes tests/made_elsewhere: one tiny model, quantized by the libraries that people quantize with.

    python tests/make_quantized.py LIBRARY      # llmcompressor, autoawq, gptqmodel, autoround, torchao

Each library in an environment of its own, with torch 2.13 for CPUs: llmcompressor 0.14.0.1 (transformers 5.17), autoawq
0.2.9 (transformers 4.51.3), gptqmodel 7.7.0, auto-round 0.16.1 and torchao 0.18.0 (transformers 5.23). Nothing of
flashdraft is used. Beside each model lies ``expected.json``: the versions, the SHA-256 of every tensor as the library
itself dequantizes it, in float32; and ``expected.safetensors``: the logits of transformers' own model holding those.
"""

import hashlib
import importlib.metadata
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

OUT = Path(__file__).parent / "made_elsewhere"
CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=128,
    intermediate_size=128,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=512,
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_id=2,
)
IDS = torch.randint(0, 64, (1, 24), generator=torch.Generator().manual_seed(7))


def original(folder: Path) -> str:
    """The model, in bfloat16, with a tokenizer whose words are its tokens' numbers."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    model.bfloat16().save_pretrained(folder)
    vocab = {str(i): i for i in range(CONFIG.vocab_size)}
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel(vocab, unk_token="0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="1", eos_token="2").save_pretrained(folder)
    return str(folder)


def keep(kind: str, made: Path, whole: dict[str, Tensor], library: str) -> None:
    """Copy what a library made, with what it dequantizes its matrices to, by their names: ``whole``."""
    folder = OUT / kind
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in made.iterdir():
        if file.suffix == ".safetensors" or file.name in ("config.json", "hf_quant_config.json"):
            shutil.copy(file, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"].get("meta", {}).pop("offload_to_disk_path", None)  # a name by chance
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    model = LlamaForCausalLM(CONFIG).float().eval()
    stored = {name: tensor for file in made.glob("*.safetensors") for name, tensor in load_file(file).items()}
    state = {
        name: stored[name] for name in model.state_dict() if name not in whole and name in stored
    } | whole
    state = {
        name: tensor.detach().float().contiguous() + 0.0 for name, tensor in state.items()
    }  # one zero, not two
    model.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})
    with torch.inference_mode():
        logits = model(IDS).logits[0]
    save_file({"ids": IDS[0], "logits": logits}, folder / "expected.safetensors")
    versions = {name: importlib.metadata.version(name) for name in (library, "torch", "transformers")}
    digests = {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in state.items()}
    told = {"versions": versions, "sha256": dict(sorted(digests.items()))}
    (folder / "expected.json").write_text(json.dumps(told, indent=1) + "\n")


def calibration() -> Tensor:
    """Token ids [rows, tokens] for the methods that look at activations."""
    return torch.randint(0, 64, (32, 64), generator=torch.Generator().manual_seed(3))


def by_llmcompressor(source: str, scratch: Path) -> None:
    """compressed-tensors of every preset that is read, by round to nearest, AWQ and GPTQ; NVFP4 to be refused."""
    from compressed_tensors.compressors import ModelCompressor
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier

    common = {"targets": "Linear", "ignore": ["lm_head"]}
    presets = ("FP8_DYNAMIC", "FP8_BLOCK", "W4A16", "W4A16_ASYM", "W8A16", "W8A8", "MXFP4A16", "NVFP4A16")
    recipes: dict[str, Any] = {name: QuantizationModifier(scheme=name, **common) for name in presets}
    recipes["W4A16_GPTQ"] = GPTQModifier(scheme="W4A16", **common)
    for name, recipe in recipes.items():
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
        rows = {"dataset": Dataset.from_dict({"input_ids": calibration().tolist()})} if "GPTQ" in name else {}
        oneshot(model=model, recipe=recipe, **rows)
        made = scratch / name
        model.save_pretrained(made, save_compressed=True)
        again = AutoModelForCausalLM.from_pretrained(made, dtype=torch.bfloat16)
        ModelCompressor.from_pretrained_model(again).decompress_model(again)
        matrices = {
            f"{module_name}.weight": module.weight
            for module_name, module in again.named_modules()
            if isinstance(module, torch.nn.Linear) and module_name != "lm_head"
        }
        keep(f"llmcompressor-{name.lower()}", made, matrices, "llmcompressor")


def by_autoawq(source: str, scratch: Path) -> None:
    """AutoAWQ, version gemm."""
    from awq import AutoAWQForCausalLM
    from awq.modules.linear import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    model = AutoAWQForCausalLM.from_pretrained(source, device_map="cpu")
    told = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
    model.quantize(
        AutoTokenizer.from_pretrained(source),
        quant_config=told,
        calib_data=calibration().tolist(),
        max_calib_seq_len=64,
    )
    model.save_quantized(str(scratch / "awq"))
    matrices = {
        f"{name}.weight": dequantize_gemm(m.qweight, m.qzeros, m.scales, m.w_bit, m.group_size).T
        for name, m in model.model.named_modules()
        if isinstance(m, WQLinear_GEMM)
    }
    keep("autoawq", scratch / "awq", matrices, "autoawq")


def by_gptqmodel(source: str, scratch: Path) -> None:
    """gptqmodel: GPTQ in 4 and 8 bits, in both formats, with columns reordered; and its AWQ."""
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    configs = {
        "gptq-4": {"bits": 4, "group_size": 32, "desc_act": True},
        "gptq-8": {"bits": 8, "group_size": 32, "sym": False},
        "gptq-v2": {"bits": 4, "group_size": 32, "format": "gptq_v2", "sym": False},
        "awq": {"bits": 4, "group_size": 32, "quant_method": "awq", "format": "gemm"},
    }
    for name, told in configs.items():
        model = GPTQModel.load(source, QuantizeConfig(**told), device="cpu")
        rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in calibration()]
        model.quantize(rows, batch_size=4)
        model.save(str(scratch / name))
        # In the type of the scales that it stored.
        backend, dtype = (
            (BACKEND.AWQ_TORCH, torch.bfloat16) if name == "awq" else (BACKEND.TORCH, torch.float16)
        )
        again = GPTQModel.load(str(scratch / name), device="cpu", backend=backend, dtype=dtype)
        matrices = {
            f"{module_name}.weight": (
                module.dequantize_weight().T if hasattr(module, "dequantize_weight") else by_columns(module)
            )
            for module_name, module in again.model.named_modules()
            if hasattr(module, "qweight")
        }
        keep(f"gptqmodel-{name}", scratch / name, matrices, "gptqmodel")


def by_autoround(source: str, scratch: Path) -> None:
    """auto-round, in GPTQ's layout and in AWQ's; both of the same codes, as no layer on a CPU reads the second."""
    from auto_round import AutoRound

    whole: dict[str, Tensor] = {}
    for name in ("auto_gptq", "auto_awq"):
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
        rounder = AutoRound(
            model, tokenizer, bits=4, group_size=32, iters=0, disable_opt_rtn=True, device_map="cpu"
        )
        made = scratch / name
        rounder.quantize_and_save(output_dir=str(made), format=f"auto_round:{name}")
        found = next(file.parent for file in made.rglob("config.json"))
        if not whole:
            again = AutoModelForCausalLM.from_pretrained(found, device_map="cpu", dtype=torch.float16)
            matrices = {
                f"{module_name}.weight": by_columns(module)
                for module_name, module in again.named_modules()
                if hasattr(module, "qweight")
            }
            whole = matrices
        keep(f"autoround-{name}", found, whole, "auto-round")


def by_columns(module: torch.nn.Module) -> Tensor:
    """A quantized layer's matrix as the layer itself computes with it: what it makes of each unit vector."""
    size = getattr(module, "in_features", None) or module.infeatures
    with torch.inference_mode():
        return module(torch.eye(size, dtype=module.scales.dtype)).T


def by_torchao(source: str, scratch: Path) -> None:
    """torchao's weight-only types, as transformers saves them."""
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    for name, told in (("int8", Int8WeightOnlyConfig()), ("float8", Float8WeightOnlyConfig())):
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.bfloat16, quantization_config=TorchAoConfig(told), device_map="cpu"
        )
        model.save_pretrained(scratch / name)
        again = AutoModelForCausalLM.from_pretrained(scratch / name, device_map="cpu", dtype=torch.bfloat16)
        matrices = {
            f"{module_name}.weight": module.weight.dequantize()
            for module_name, module in again.named_modules()
            if isinstance(module, torch.nn.Linear) and module_name != "lm_head"
        }
        keep(f"torchao-{name}", scratch / name, matrices, "torchao")


MAKERS: dict[str, Callable[[str, Path], None]] = {
    "llmcompressor": by_llmcompressor,
    "autoawq": by_autoawq,
    "gptqmodel": by_gptqmodel,
    "autoround": by_autoround,
    "torchao": by_torchao,
}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        MAKERS[sys.argv[1]](original(Path(place) / "original"), Path(place))
