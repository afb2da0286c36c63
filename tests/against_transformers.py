"""Targets of every model_type against transformers' own classes, tiny and random, through folders on disk."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from flashdraft.batch import ForwardBatch
from flashdraft.checkpoint.load import load_target
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.generate import generate
from flashdraft.models.base import TargetModel
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from toys import ScriptedDrafter, toy_dflash

Pair = tuple[PreTrainedModel, TargetModel]


def save_and_load(folder: Path, kind: type[PreTrainedModel], config: Any, std: float = 0.2) -> Pair:
    """Transformers' model with random weights, and ours loaded from what it saved in ``folder``."""
    torch.manual_seed(0)
    theirs = kind(config).eval()
    for experts in (one for one in theirs.modules() if isinstance(one, GptOssExperts)):
        # Constants in older releases, whatever the config says.
        experts.limit = config.swiglu_limit
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + 0.1 * noise if parameter.dim() == 1 else std * noise)
            if name.endswith("A_log"):
                # Slow decays, as trained. With its own random ones transformers' sums over a chunk reach -1000,
                # and its float32 is 7e-4 off its float64.
                parameter.sub_(3.0)
    theirs.save_pretrained(folder, max_shard_size="100KB")
    return theirs, load_target(folder, dtype="float32")


@torch.inference_mode()
def straight(
    target: TargetModel, token_ids: list[int], layers: tuple[int, ...] = ()
) -> tuple[Tensor, Tensor]:
    """Logits and features of one forward over the whole text."""
    batch = ForwardBatch.of_row(token_ids, 0)
    output = target.forward(batch, target.new_cache(1, len(token_ids)), layers)
    assert output.features is not None
    return target.logits(output.hidden[0]), output.features[0]


@torch.inference_mode()
def check_against_transformers(theirs: PreTrainedModel, ours: TargetModel, num_tokens: int = 150) -> None:
    """Logits and every layer's output agree within 1e-4."""
    ids = torch.randint(0, ours.config.vocab_size, (num_tokens,), generator=torch.Generator().manual_seed(5))
    expected = theirs(input_ids=ids[None], output_hidden_states=True)
    layers = tuple(range(ours.config.num_hidden_layers - 1))  # transformers norms the last one's output
    logits, features = straight(ours, ids.tolist(), layers)
    assert (logits - expected.logits[0]).abs().max() <= 1e-4
    wanted = torch.cat([expected.hidden_states[layer + 1][0] for layer in layers], dim=-1)
    assert (features - wanted).abs().max() <= 1e-4 * max(1.0, float(wanted.abs().max()))
    assert logits.argmax(-1).unique().numel() > 3, "the toy says nothing: its argmax does not vary"


@torch.inference_mode()
def check_rollback(target: TargetModel, num_tokens: int = 170, seed: int = 0) -> None:
    """Prefill in chunks and blocks of 1..16 with wrong ends give the logits of one straight forward."""
    rng = random.Random(seed)
    vocab_size = target.config.vocab_size
    ids = [rng.randrange(vocab_size) for _ in range(num_tokens)]
    expected, _ = straight(target, ids, (0,))
    cache = target.new_cache(1, num_tokens + 16)
    start, sizes = 0, [70, 7]  # one chunk longer than a chunk of the gated delta rule, one shorter
    while start < num_tokens:
        size = sizes.pop(0) if sizes else rng.randint(1, 16)
        kept = size if start < 77 else rng.randint(1, size)
        block = ids[start : start + kept]
        tail = [rng.randrange(vocab_size) for _ in range(size - len(block))]
        output = target.forward(ForwardBatch.of_row(block + tail, start), cache)
        logits = target.logits(output.hidden[0, : len(block)])
        assert (logits - expected[start : start + len(block)]).abs().max() <= 1e-4
        cache.commit(len(block))
        start += len(block)
        assert cache.lengths == [start]


def check_drafted(target: TargetModel, num_prompts: int = 50) -> None:
    """Greedy answers drafted by DFlash, side by side in the engine, are those of plain decoding.

    Some of them also alone, and with a drafter that is often right, which shows long accepted drafts.
    """
    params = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True)
    drafter = DFlashDrafter(toy_dflash(target), target)
    rng = random.Random(1)
    vocab_size = target.config.vocab_size
    prompts = [[rng.randrange(vocab_size) for _ in range(rng.randint(1, 90))] for _ in range(num_prompts)]
    drafted, plain = (
        _answers(target, drafter, prompts, params, sizes) for sizes in ([2, 3, 4, 5, 6, 7, 8], [1])
    )
    assert drafted == plain
    params = replace(params, max_tokens=40)
    for prompt, known in zip(prompts[:3], plain, strict=False):
        alone = generate(target, None, prompt, params).token_ids
        assert alone[:16] == known
        scripted = ScriptedDrafter(prompt + alone, lambda position: position % 7 == 3)
        output = generate(target, scripted, prompt, params)
        assert output.token_ids == alone
        assert output.metrics.acceptance_length > 3


def _answers(
    target: TargetModel,
    drafter: DFlashDrafter,
    prompts: list[list[int]],
    params: SamplingParams,
    block_sizes: list[int],
) -> list[list[int]]:
    engine = Engine(target, drafter, EngineConfig(max_running=len(prompts), page_size=4))
    for idx, prompt in enumerate(prompts):
        engine.add_request(str(idx), prompt, params, block_sizes[idx % len(block_sizes)])
    answers: list[list[int]] = [[] for _ in prompts]
    for output in engine.run():
        answers[int(output.request_id)] += output.token_ids
    return answers
