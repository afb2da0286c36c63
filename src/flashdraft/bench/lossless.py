"""Are the tokens plain decoding's, and where they are not: was it a near-tie of the target's own scores?

A block and a single token go through kernels of other shapes, so their logits differ by rounding. Where two
tokens score almost the same, that decides between them; anything else is an error in the code.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flashdraft.batch import ForwardBatch
from flashdraft.errors import UsageError
from flashdraft.models.base import TargetModel
from flashdraft.ops.noise import gumbel_noise
from flashdraft.sampler import log_probs
from flashdraft.sampling_params import SamplingParams

# The largest gap of scores that rounding explains, by the type of weights and activations. In the short
# types it is four units in the last place of a logit of 16 to 32; float32 leaves room for the sums of large
# models.
NEAR_TIE_GAP = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.0625}


@dataclass(frozen=True)
class Difference:
    """Where an answer first leaves plain decoding's.

    ``gap``: how far the worse of the two tokens scores below the best token there, in a forward pass of its
    own over the common text. It is the target's top-2 gap where the two tokens are its top two.
    """

    index: int  # 0-based, of the output tokens
    gap: float
    is_near_tie: bool


def first_difference(plain: Sequence[int], other: Sequence[int]) -> int | None:
    """Index of the first token that differs, None where both are the same."""
    for index, (a, b) in enumerate(zip(plain, other, strict=False)):
        if a != b:
            return index
    return None if len(plain) == len(other) else min(len(plain), len(other))


@torch.inference_mode()
def find_difference(
    target: TargetModel,
    prompt_token_ids: Sequence[int],
    plain: Sequence[int],
    other: Sequence[int],
    params: SamplingParams,
) -> Difference | None:
    """Compare ``other`` with plain decoding's answer to the same prompt; None where all tokens are the same.

    Raises UsageError for sampled answers without a seed: they have no noise in common.
    """
    index = first_difference(plain, other)
    if index is None:
        return None
    scores = _scores_at(target, [*prompt_token_ids, *plain[:index]], params)
    tokens = [answer[index] for answer in (plain, other) if index < len(answer)]
    gap = float(scores.max() - scores[tokens].min())
    return Difference(index, gap, gap <= NEAR_TIE_GAP[target.dtype] and len(tokens) == 2)


def _scores_at(target: TargetModel, token_ids: list[int], params: SamplingParams) -> Tensor:
    """What the target picks the next token by, float32 [vocab_size]: logits, or noisy log-probabilities."""
    cache = target.new_cache(1, len(token_ids))
    output = target.forward(ForwardBatch.of_row(token_ids, 0, target.device), cache)
    logits = target.logits(output.hidden[0, -1:])
    if params.is_greedy:
        return logits[0]
    if params.seed is None:
        raise UsageError("sampled answers can be compared only with a seed; set seed")
    noise = gumbel_noise(params.seed, [len(token_ids)], logits.shape[-1], logits.device)
    return (log_probs(logits, params) + noise)[0]
