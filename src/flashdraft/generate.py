"""The algorithm on one page: draft a block, verify it in one forward, keep what the target agrees with.

DFlash (arXiv 2602.06036, algorithm 1). Plain decoding is a block of size 1 through the same lines. This page is
also the oracle that faster engines are tested against.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor

from flashdraft.batch import ForwardBatch
from flashdraft.detokenizer import Decodes
from flashdraft.errors import UsageError
from flashdraft.grammar import GrammarState, begin_grammar
from flashdraft.models.base import TargetModel
from flashdraft.sampler import TokenChooser, TokenLogprobs, token_logprobs
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.drafter import Drafter
from flashdraft.spec_decode.metrics import RequestMetrics
from flashdraft.spec_decode.verify import verify
from flashdraft.stopping import StopCondition


@dataclass(frozen=True)
class RoundEvent:
    """What one verification delivered: accepted draft tokens, then one recovered or bonus token."""

    token_ids: list[int]
    num_drafted: int
    num_accepted: int  # of token_ids, the first this many were drafted
    text: str = ""  # the new text that is certain; empty without a tokenizer


@dataclass
class GenerateOutput:
    """A finished request."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""  # empty without a tokenizer
    finish_reason: str = "length"  # or "stop": an end token or stop token, which is the last, or a stop text
    stop_reason: int | str | None = None  # the stop token or stop text
    logprobs: list[TokenLogprobs] | None = None  # one a token, where asked for
    prompt_logprobs: list[TokenLogprobs] | None = None  # one a prompt token after the first, where asked for
    metrics: RequestMetrics = field(default_factory=RequestMetrics)


class Answer:
    """One request's answer as it grows: chooses tokens, hands them on, knows when it is over.

    Raises UsageError for a stop text without a tokenizer.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        max_tokens: int,
        eos_token_ids: Sequence[int],
        tokenizer: Decodes | None,
        grammar: GrammarState | None = None,
    ) -> None:
        self.stop = StopCondition(params, eos_token_ids, max_tokens, tokenizer)
        self.chooser = TokenChooser(params, prompt, self.stop.end_ids, grammar)
        self.prompt = prompt
        self.output = GenerateOutput(
            logprobs=None if params.logprobs is None else [],
            prompt_logprobs=None if params.prompt_logprobs is None else [],
        )
        self.goes_on = True

    @property
    def scores_prompt(self) -> bool:
        """Whether logits of prompt tokens are still wanted."""
        scored = self.output.prompt_logprobs
        return scored is not None and len(scored) < len(self.prompt) - 1

    @property
    def reads_logits(self) -> bool:
        """Whether more than their argmax is wanted of the next logits."""
        return not self.chooser.is_argmax or self.output.logprobs is not None or self.scores_prompt

    def score_prompt(self, logits: Tensor, start: int) -> None:
        """Take the logits [num_tokens, vocab_size] of the prompt tokens from number ``start`` on."""
        scored = self.output.prompt_logprobs
        if scored is None:
            return
        num_known = len(scored) - start  # after a preemption some are told again
        following = self.prompt[start + 1 : start + 1 + len(logits)][num_known:]
        scored += token_logprobs(logits[num_known:], following, self.chooser.params.prompt_logprobs or 0)

    def cut(self, draft: list[int]) -> list[int]:
        """The part of ``draft`` that is worth verifying (TokenChooser.cut)."""
        return self.chooser.cut(self.output.token_ids, draft)

    def choose(self, logits: Tensor, draft: Sequence[int] = ()) -> list[int]:
        """The target's own tokens after the answer so far and each of ``draft`` (TokenChooser.choose)."""
        return self.chooser.choose(logits, self.output.token_ids, draft)

    def deliver(
        self, token_ids: list[int], num_drafted: int, num_accepted: int, logits: Tensor
    ) -> RoundEvent:
        """Add one round's tokens, chosen from the rows of ``logits``, up to where the answer ends."""
        kept, output = self.stop.push(token_ids), self.output
        token_ids = token_ids[: kept.num_tokens]
        num_accepted = min(num_accepted, kept.num_tokens)
        output.token_ids += token_ids
        output.text += kept.text
        output.metrics.record_tokens(len(token_ids), num_accepted)
        if output.logprobs is not None:
            output.logprobs += token_logprobs(logits, token_ids, self.chooser.params.logprobs or 0)
        if kept.finish_reason is not None:
            self.goes_on = False
            output.finish_reason, output.stop_reason = kept.finish_reason, kept.stop_reason
        return RoundEvent(token_ids, num_drafted, num_accepted, kept.text)


@torch.inference_mode()
def generate(
    target: TargetModel,
    drafter: Drafter | None,
    prompt_token_ids: Sequence[int],
    params: SamplingParams,
    block_size: int | None = None,
    eos_token_ids: Sequence[int] = (),
    on_round: Callable[[RoundEvent], None] | None = None,
    tokenizer: Decodes | None = None,
) -> GenerateOutput:
    """Answer one prompt.

    ``block_size``: tokens of a block, anchor included; 1 is plain decoding, None the drafter's largest.
    ``on_round`` hears every verification as it happens; the first call carries the token of the prefill.
    ``tokenizer``: for the answer's text, for stop texts and for a grammar.
    Raises UsageError for a prompt that is empty or too long, for a block size out of range and for a grammar
    that cannot be followed.
    """
    prompt = list(prompt_token_ids)
    block_size = check_request(target, drafter, prompt, block_size, params)
    max_len = min(len(prompt) + params.max_tokens, target.config.max_position_embeddings)
    state = drafter.begin(max_len) if drafter and block_size > 1 else None
    layers = drafter.feature_layers if drafter and state else ()
    cache = target.new_cache(1, max_len)
    grammar = begin_grammar(params.grammar, tokenizer, target.config.vocab_size, eos_token_ids)
    answer = Answer(prompt, params, max_len - len(prompt), eos_token_ids, tokenizer, grammar)
    metrics = answer.output.metrics
    hear = on_round or (lambda _event: None)

    started = perf_counter()
    forward = target.forward(ForwardBatch.of_row(prompt, 0, target.device), cache, layers)
    logits = target.logits(forward.hidden[0, 0 if answer.scores_prompt else -1 :])
    answer.score_prompt(logits, len(prompt) - len(logits))
    [anchor] = answer.choose(logits := logits[-1:])
    cache.commit(len(prompt))
    metrics.prefill_s = perf_counter() - started
    hear(answer.deliver([anchor], 0, 0, logits))
    verified = prompt  # tokens whose features the drafter has not seen yet
    while answer.goes_on:
        started = perf_counter()
        start = cache.lengths[0]
        draft: list[int] = []
        if state:
            state.observe(verified, forward.features)
            # The drafter always sees a whole block, as in training; the verified part may be shorter.
            draft = answer.cut(state.propose(anchor, block_size - 1)[: max_len - start - 2])
        drafted = perf_counter()
        block = [anchor, *draft]
        forward = target.forward(ForwardBatch.of_row(block, start, target.device), cache, layers)
        logits = target.logits(forward.hidden[0])
        wanted = answer.choose(logits, draft)
        metrics.verify_s += perf_counter() - drafted
        num_accepted, anchor = verify(draft, wanted)
        cache.commit(1 + num_accepted)
        verified, forward = block[: 1 + num_accepted], forward.first(1 + num_accepted)
        metrics.record_round(len(draft), num_accepted)
        hear(answer.deliver([*draft[:num_accepted], anchor], len(draft), num_accepted, logits))
        metrics.draft_s += drafted - started
        metrics.decode_s += perf_counter() - started
    return answer.output


def check_request(
    target: TargetModel,
    drafter: Drafter | None,
    prompt: Sequence[int],
    block_size: int | None,
    params: SamplingParams | None = None,
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
    for token in (*(params.logit_bias if params else ()), *(params.stop_token_ids if params else ())):
        if not 0 <= token < vocab_size:
            raise UsageError(
                f"logit_bias or stop_token_ids names token id {token}; expected 0 to {vocab_size - 1}"
            )
    largest = drafter.max_block_size if drafter else 1
    if block_size is None:
        return largest
    if not 1 <= block_size <= max(largest, 1):
        mend = "" if drafter else " (there is no drafter: give one, or block_size=1 for plain decoding)"
        raise UsageError(f"block_size is {block_size}; expected 1 to {largest}{mend}")
    return block_size
