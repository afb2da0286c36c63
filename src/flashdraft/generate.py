"""The algorithm on one page: draft a block, verify it in one forward, keep what the target agrees with.

DFlash (arXiv 2602.06036, algorithm 1). Plain decoding is a block of size 1 through the same lines. This page is
also the oracle that faster engines are tested against.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch

from flashdraft.batch import ForwardBatch
from flashdraft.errors import UsageError
from flashdraft.models.base import TargetModel
from flashdraft.sampler import sample
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.drafter import Drafter
from flashdraft.spec_decode.metrics import RequestMetrics
from flashdraft.spec_decode.verify import verify


@dataclass(frozen=True)
class RoundEvent:
    """What one verification delivered: accepted draft tokens, then one recovered or bonus token."""

    token_ids: list[int]
    num_drafted: int
    num_accepted: int  # of token_ids, the first this many were drafted


@dataclass
class GenerateOutput:
    """A finished request."""

    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = "length"  # or "stop": an end token, which is the last of token_ids
    metrics: RequestMetrics = field(default_factory=RequestMetrics)


class _Delivery:
    """Hands tokens to the caller, cuts after an end token, and knows when the request is over."""

    def __init__(
        self, stop_ids: set[int], num_wanted: int, on_round: Callable[[RoundEvent], None] | None
    ) -> None:
        self.output = GenerateOutput()
        self.stop_ids, self.num_wanted, self.on_round = stop_ids, num_wanted, on_round
        self.goes_on = True

    def deliver(self, token_ids: list[int], num_drafted: int, num_accepted: int) -> None:
        stop_at = next((i for i, token in enumerate(token_ids) if token in self.stop_ids), None)
        kept = token_ids if stop_at is None else token_ids[: stop_at + 1]
        self.output.token_ids += kept
        self.output.metrics.record_tokens(len(kept), min(num_accepted, len(kept)))
        if self.on_round:
            self.on_round(RoundEvent(kept, num_drafted, min(num_accepted, len(kept))))
        if stop_at is not None:
            self.output.finish_reason = "stop"
        self.goes_on = stop_at is None and len(self.output.token_ids) < self.num_wanted


@torch.inference_mode()
def generate(
    target: TargetModel,
    drafter: Drafter | None,
    prompt_token_ids: Sequence[int],
    params: SamplingParams,
    block_size: int | None = None,
    eos_token_ids: Sequence[int] = (),
    on_round: Callable[[RoundEvent], None] | None = None,
) -> GenerateOutput:
    """Answer one prompt.

    ``block_size``: tokens of a block, anchor included; 1 is plain decoding, None the drafter's largest.
    ``on_round`` hears every verification as it happens; the first call carries the token of the prefill.
    Raises UsageError for a prompt that is empty or too long and for a block size out of range.
    """
    prompt = list(prompt_token_ids)
    block_size = check_request(target, drafter, prompt, block_size)
    max_len = min(len(prompt) + params.max_tokens, target.config.max_position_embeddings)
    stop_ids = {*params.stop_token_ids, *(() if params.ignore_eos else eos_token_ids)}
    seed = secrets.randbits(62) if params.seed is None else params.seed
    state = drafter.begin(max_len) if drafter and block_size > 1 else None
    layers = drafter.feature_layers if drafter and state else ()
    cache = target.new_cache(1, max_len)
    delivery = _Delivery(stop_ids, max_len - len(prompt), on_round)
    metrics = delivery.output.metrics

    started = perf_counter()
    forward = target.forward(ForwardBatch.of_row(prompt, 0, target.device), cache, layers)
    anchor = int(sample(target.logits(forward.hidden[0, -1:]), params, seed, len(prompt)))
    cache.commit(len(prompt))
    metrics.prefill_s = perf_counter() - started
    delivery.deliver([anchor], 0, 0)
    verified = prompt  # tokens whose features the drafter has not seen yet
    while delivery.goes_on:
        started = perf_counter()
        start = cache.lengths[0]
        draft: list[int] = []
        if state:
            state.observe(verified, forward.features)
            # The drafter always sees a whole block, as in training; the verified part may be shorter.
            draft = state.propose(anchor, block_size - 1)[: max_len - start - 2]
        drafted = perf_counter()
        block = [anchor, *draft]
        forward = target.forward(ForwardBatch.of_row(block, start, target.device), cache, layers)
        wanted = sample(target.logits(forward.hidden[0]), params, seed, start + 1).tolist()
        metrics.verify_s += perf_counter() - drafted
        num_accepted, anchor = verify(draft, wanted)
        cache.commit(1 + num_accepted)
        verified, forward = block[: 1 + num_accepted], forward.first(1 + num_accepted)
        metrics.record_round(len(draft), num_accepted)
        delivery.deliver([*draft[:num_accepted], anchor], len(draft), num_accepted)
        metrics.draft_s += drafted - started
        metrics.decode_s += perf_counter() - started
    return delivery.output


def check_request(
    target: TargetModel, drafter: Drafter | None, prompt: Sequence[int], block_size: int | None
) -> int:
    """The block size to use. Raises UsageError, before any work, for what cannot be served."""
    context = target.config.max_position_embeddings
    vocab_size = target.config.vocab_size
    if not prompt:
        raise UsageError("the prompt is empty; expected at least one token")
    if len(prompt) >= context:
        raise UsageError(
            f"the prompt has {len(prompt)} tokens; expected at most {context - 1}, the model's context less one"
            " token of answer: shorten it"
        )
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        bad = next(token for token in prompt if not 0 <= token < vocab_size)
        raise UsageError(f"the prompt holds token id {bad}; expected ids from 0 to {vocab_size - 1}")
    largest = drafter.max_block_size if drafter else 1
    if block_size is None:
        return largest
    if not 1 <= block_size <= max(largest, 1):
        mend = "" if drafter else " (there is no drafter: give one, or block_size=1 for plain decoding)"
        raise UsageError(f"block_size is {block_size}; expected 1 to {largest}{mend}")
    return block_size
