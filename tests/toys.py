"""Tiny random models and scripted drafters: real parts, small enough for every test."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import Gemma3TextConfig, LlamaConfig, Qwen3_5TextConfig

from flashdraft.cache.paged_rows import PagedRows
from flashdraft.models.base import TargetModel, build_target
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.dflash_config import DFlashConfig, build_target_layer_ids
from flashdraft.models.drafter_network import DrafterNetwork
from flashdraft.spec_decode.drafter import DraftShape, OneRequest
from flashdraft.spec_decode.per_request import PerRequestDrafter
from flashdraft.spec_decode.tree import DraftTree

# Qwen/Qwen3.5-27B, its language model as its config.json says it.
QWEN3_5_27B = {
    "vocab_size": 248320,
    "hidden_size": 5120,
    "intermediate_size": 17408,
    "num_hidden_layers": 64,
    "num_attention_heads": 24,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 48,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
    "max_position_embeddings": 262144,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e7,
        "partial_rotary_factor": 0.25,
        "mrope_section": [11, 11, 10],
        "mrope_interleaved": True,
    },
}


def llama_config(**changes: object) -> LlamaConfig:
    """A 6-layer Llama of a few thousand parameters."""
    values: dict[str, object] = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
    }
    return LlamaConfig(**{**values, **changes})


def toy_target(seed: int = 0, **changes: object) -> TargetModel:
    """A float32 target with random weights, large enough that its argmax varies."""
    torch.manual_seed(seed)
    target = build_target(llama_config(**changes))
    for parameter in target.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return target.eval()


def toy_hybrid(seed: int = 0, **changes: object) -> TargetModel:
    """A float32 Qwen3.5 target with random weights: four layers, every second of them attention."""
    values: dict[str, object] = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "full_attention_interval": 2,
        "eos_token_id": 2,
    }
    torch.manual_seed(seed)
    target = build_target(Qwen3_5TextConfig(**{**values, **changes}))
    for name, parameter in target.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
        elif name.endswith("A_log"):  # slow decays: a state that forgets all at once would prove nothing
            torch.nn.init.normal_(parameter, mean=-3.0)
    return target.eval()


def toy_sliding(seed: int = 0, **changes: object) -> TargetModel:
    """A float32 Gemma 3 target with random weights: two of its three layers see a window of 12 tokens."""
    values: dict[str, object] = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "query_pre_attn_scalar": 12,
        "max_position_embeddings": 512,
        "sliding_window": 12,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "eos_token_id": 2,
    }
    torch.manual_seed(seed)
    target = build_target(Gemma3TextConfig(**{**values, **changes}))
    for parameter in target.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return target.eval()


def toy_dflash(target: TargetModel, seed: int = 1, std: float = 0.2, **changes: object) -> DFlashModel:
    """A float32 drafter network with random weights for ``target``."""
    config = target.config
    values: dict[str, object] = {
        "hidden_size": config.hidden_size,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": config.vocab_size,
        "block_size": 8,
        "mask_token_id": config.vocab_size - 1,
        "target_layer_ids": build_target_layer_ids(
            config.num_hidden_layers, min(2, config.num_hidden_layers)
        ),
        "num_target_layers": config.num_hidden_layers,
        "max_position_embeddings": config.max_position_embeddings,
    }
    model = DFlashModel(DFlashConfig(**{**values, **changes}))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator, std=std)
    for name, parameter in model.named_parameters():
        if "_conv." in name:  # which init_weights leaves out of effect
            torch.nn.init.normal_(parameter, std=std, generator=generator)
    return model.eval()


DFLASH2 = {
    "conv_kernel_size": 2,
    "conv_group_size": 16,
    "selector_rank": 8,
    "selector_top_k": 6,
    "is_causal": False,
}


def toy_dflash2(target: TargetModel, seed: int = 1, std: float = 0.2, **changes: object) -> DFlashModel:
    """A drafter network with DFlash 2's parts, all of them random."""
    return toy_dflash(target, seed, std, **{**DFLASH2, **changes})


def toy_mtp(target: TargetModel, seed: int = 1, std: float = 0.2, block_size: int = 8) -> DrafterNetwork:
    """A float32 MTP head with random weights for ``target``."""
    from flashdraft.models.mtp import MTPConfig, MTPModel

    model = MTPModel(MTPConfig(target.config, block_size))
    model.init_weights(torch.Generator().manual_seed(seed), std=std)
    return model.eval()


class ScriptedDrafter(PerRequestDrafter):
    """Drafts the known answer, with a wrong token wherever ``is_wrong(position)`` says so."""

    def __init__(self, answer: list[int], is_wrong: Callable[[int], bool], max_block_size: int = 16) -> None:
        self.answer, self.is_wrong, self.max_block_size = answer, is_wrong, max_block_size

    def begin(self, max_len: int) -> "ScriptedDrafter":  # noqa: ARG002
        """One request at a time: the drafter is its own state."""
        self.num_seen = 0
        return self

    def observe(self, token_ids: list[int], features: Tensor | None) -> None:  # noqa: ARG002
        """Count what is in the cache."""
        self.num_seen += len(token_ids)

    def propose(self, anchor: int, shape: DraftShape) -> DraftTree:  # noqa: ARG002
        """The script's next tokens."""
        start = self.num_seen + 1
        script = self.answer[start : start + shape.depth]
        return DraftTree.chain(
            [(token or 2) - 1 if self.is_wrong(start + i) else token for i, token in enumerate(script)]
        )


class Alone(OneRequest):
    """One request of a drafter, asked by numbers."""

    def chain(self, anchor: int, num_draft: int) -> list[int]:
        """A chain's tokens."""
        return self.propose(anchor, DraftShape(num_draft)).token_ids

    def context(self, num_tokens: int) -> PagedRows:
        """Of its draft cache, for a block of ``num_tokens`` behind what was observed."""
        rows: PagedRows = self.drafts.rows  # type: ignore[attr-defined]
        rows.arrange([self.row], [num_tokens])
        return rows

    def tree(self, anchor: int, depth: int, size: int) -> DraftTree:
        """A tree of ``size`` tokens."""
        return self.propose(anchor, DraftShape(depth, size))
