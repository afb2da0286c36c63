"""Small models with their fast form, and what it is compared with."""

import torch
from torch import Tensor

from flashdraft.batch import ForwardBatch
from flashdraft.models.base import TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.llama import LlamaModel
from flashdraft.native.accelerate import accelerate
from flashdraft.native.target import NativeTarget
from toys import toy_dflash, toy_target

SHAPE = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_hidden_layers": 3,
}


def make(quantization: str | None = None, **changes: object) -> tuple[NativeTarget, LlamaModel]:
    """A target with its fast form, and a float32 reference with the very weights that it holds."""
    reference, target = (toy_target(**{**SHAPE, **changes}) for _ in range(2))
    for model in (reference, target):
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.1)
        model.load_state_dict({name: value.bfloat16() for name, value in target.state_dict().items()})
        model.requires_grad_(False)
    reference.load_state_dict(target.state_dict())
    if quantization is None:
        target.bfloat16()
    fast = accelerate(target, quantization)
    assert isinstance(fast, NativeTarget)
    if quantization:
        bits = {"int8": 8, "int4": 4}[quantization]
        for name, weight in reference.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.copy_(rounded(weight, bits))
        reference.lm_head = torch.nn.Linear(96, 97, bias=False)
        reference.lm_head.weight = torch.nn.Parameter(rounded(reference.model.embed_tokens.weight, 8))
    return fast, reference


def rounded(weight: Tensor, bits: int) -> Tensor:
    """``weight`` as GGUF's Q8_0 (8 bits) or Q4_1 (4 bits) can say it."""
    blocks = weight.detach().unflatten(-1, (-1, 32))
    least = blocks.amin(-1, keepdim=True).half().float() if bits == 4 else torch.tensor(0.0)
    top = (blocks - least).amax(-1, keepdim=True) if bits == 4 else blocks.abs().amax(-1, keepdim=True)
    scale = (top / (15 if bits == 4 else 127)).half().float()
    return (least + scale * ((blocks - least) / scale).round().clamp(-127, 15 if bits == 4 else 127)).flatten(
        -2
    )


def ids(count: int) -> list[int]:
    return torch.randint(0, 97, (count,), generator=torch.Generator().manual_seed(count)).tolist()


@torch.inference_mode()
def logits_of(target: TargetModel, tokens: list[int], chunks: list[int]) -> Tensor:
    """Logits of all tokens, run in ``chunks``."""
    cache = target.new_cache(1, len(tokens))
    found = []
    for size in chunks:
        start = cache.lengths[0]
        batch = ForwardBatch.of_row(tokens[start : start + size], start)
        found.append(target.logits(target.forward(batch, cache).hidden[0]))
        cache.commit(size)
    return torch.cat(found)


def draft_network(target: LlamaModel, **changes: object) -> DFlashModel:
    sizes = {"intermediate_size": 96, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 64}
    return toy_dflash(target, **{**sizes, **changes}).bfloat16().requires_grad_(False)
