"""From logits to tokens, one rule for drafting, verifying and plain decoding.

A sampled token is ``argmax(log p + g)`` with Gumbel noise g that depends on (seed, position) alone (the Gumbel-max
trick). So a seed gives one text whatever the block size, and a draft is accepted iff it equals the target's own
sample: lossless by construction.
"""

import torch
from torch import Tensor

from flashdraft.sampling_params import SamplingParams

_MIX = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: spreads neighbouring positions over the seed space
_SEED_BITS = (1 << 63) - 1


def gumbel_noise(seed: int, positions: list[int], vocab_size: int, device: torch.device) -> Tensor:
    """Gumbel(0, 1) noise, float32 [len(positions), vocab_size]; row i is a function of (seed, positions[i])."""
    generator = torch.Generator(device=device)
    noise = torch.empty(len(positions), vocab_size, dtype=torch.float32, device=device)
    for row, position in zip(noise, positions, strict=True):
        generator.manual_seed((seed * _MIX + position * 0xBF58476D1CE4E5B9) & _SEED_BITS)
        row.exponential_(generator=generator)
    return -noise.log()


def log_probs(logits: Tensor, params: SamplingParams) -> Tensor:
    """Log-probabilities that ``params`` asks for, float32 [..., vocab_size]; -inf where a token is cut.

    Order as in vLLM: temperature, min_p, top_k, top_p. Needs temperature > 0.
    """
    logits = logits / params.temperature
    if params.min_p > 0:
        floor = logits.amax(-1, keepdim=True) + torch.tensor(params.min_p).log()
        logits = logits.masked_fill(logits < floor, float("-inf"))
    if 0 < params.top_k < logits.shape[-1]:
        kth = logits.topk(params.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if params.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        cut = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= params.top_p)
        logits = logits.masked_fill(cut, float("-inf"))
    return logits.log_softmax(-1)


def sample(logits: Tensor, params: SamplingParams, seed: int, first_position: int) -> Tensor:
    """The target's own tokens [num_tokens] for ``logits`` [num_tokens, vocab_size].

    Row i decides the token at position ``first_position + i``.
    """
    if params.is_greedy:
        return logits.argmax(-1)
    positions = list(range(first_position, first_position + logits.shape[0]))
    return (
        log_probs(logits, params) + gumbel_noise(seed, positions, logits.shape[-1], logits.device)
    ).argmax(-1)
