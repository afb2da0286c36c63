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
from flashdraft.cache.model_cache import ModelCache
from flashdraft.detokenizer import Decodes
from flashdraft.errors import UsageError
from flashdraft.grammar import GrammarState, begin_grammar
from flashdraft.models.base import TargetModel
from flashdraft.sampler import TokenChooser, TokenLogprobs, token_logprobs
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter, DFlashState
from flashdraft.spec_decode.drafter import Drafter, DraftState
from flashdraft.spec_decode.metrics import RequestMetrics
from flashdraft.spec_decode.tree import DraftTree
from flashdraft.spec_decode.verify import verify
from flashdraft.stopping import StopCondition

Accept = Callable[[list[int], list[int]], tuple[int, int]]  # as spec_decode/verify.py
MAX_TREE = 256  # tokens of a tree


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

    def cut(self, draft: DraftTree, depth: int) -> DraftTree:
        """The part of ``draft`` that is worth verifying, at most ``depth`` deep; of a chain: TokenChooser.cut."""
        draft = draft.cut(depth)
        if not draft.is_chain:
            return draft
        return draft.first(len(self.chooser.cut(self.output.token_ids, draft.token_ids)))

    def follow(
        self, draft: DraftTree, logits: Tensor, argmax: list[int] | None = None, accept: Accept | None = None
    ) -> tuple[list[int], int]:
        """Which path of ``draft`` the target itself takes: its places, the anchor's 0 first, and the token after it.

        ``logits`` [1 + len(draft), vocab_size], ``argmax`` theirs if it is at hand; ``accept`` decides on chains.
        """
        choose, said = self.chooser.choose, self.output.token_ids
        best = (argmax or logits.argmax(-1).tolist()) if self.chooser.is_argmax else []
        if draft.is_chain:
            wanted = best or choose(logits, said, draft.token_ids)
            num_accepted, token = (accept or verify)(draft.token_ids, wanted)
            return list(range(1 + num_accepted)), token
        if best:
            return draft.walk(lambda place, _: best[place])
        # Chosen on the way, so that penalties, bans and grammars see the tokens of the path.
        return draft.walk(lambda place, path: choose(logits[place : place + 1], [*said, *path])[0])

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
    draft_tree: int | None = None,
) -> GenerateOutput:
    """Answer one prompt.

    ``block_size``: tokens of a block, anchor included; 1 is plain decoding, None the drafter's largest.
    ``draft_tree``: tokens of a tree to verify in place of the block, anchor included.
    ``on_round`` hears every verification as it happens; the first call carries the token of the prefill.
    ``tokenizer``: for the answer's text, for stop texts and for a grammar.
    Raises UsageError for what cannot be served: check_request, check_tree, begin_grammar.
    """
    prompt = list(prompt_token_ids)
    block_size = check_request(target, drafter, prompt, block_size, params)
    tree_size = check_tree(target, drafter, draft_tree)
    max_len = min(len(prompt) + params.max_tokens, target.config.max_position_embeddings)
    state = drafter.begin(max_len) if drafter and block_size > 1 else None
    layers = drafter.feature_layers if drafter and state else ()
    cache = target.new_cache(1, max_len + tree_size)
    grammar = begin_grammar(params.grammar, tokenizer, target.config.vocab_size, eos_token_ids)
    answer = Answer(prompt, params, max_len - len(prompt), eos_token_ids, tokenizer, grammar)
    metrics = answer.output.metrics
    hear = on_round or (lambda _event: None)
    started = perf_counter()
    forward = target.forward(ForwardBatch.of_row(prompt, 0, target.device), cache, layers)
    logits = target.logits(forward.hidden[0, 0 if answer.scores_prompt else -1 :])
    answer.score_prompt(logits, len(prompt) - len(logits))
    _, anchor = answer.follow(DraftTree(), logits := logits[-1:])
    cache.commit(len(prompt))
    metrics.prefill_s = perf_counter() - started
    hear(answer.deliver([anchor], 0, 0, logits))
    verified = prompt  # tokens whose features the drafter has not seen yet
    while answer.goes_on:
        started = perf_counter()
        start = cache.lengths[0]
        draft = DraftTree()
        if state:
            state.observe(verified, forward.features)
            # The drafter always sees a whole block, as in training; the verified part may be shorter.
            draft = answer.cut(_propose(state, anchor, block_size, tree_size), max_len - start - 2)
        drafted = perf_counter()
        block = [anchor, *draft.token_ids]
        batch = ForwardBatch.of_row(block, start, target.device, draft.parents)
        forward = target.forward(batch, cache, layers)
        logits = target.logits(forward.hidden[0])
        path, anchor = answer.follow(draft, logits)
        metrics.record_seconds(drafted - started, perf_counter() - drafted)
        cache.commit_path(path)
        verified, forward = [block[place] for place in path], forward.at(path)
        metrics.record_round(draft, len(path) - 1)
        hear(answer.deliver([*verified[1:], anchor], len(draft), len(path) - 1, logits[path]))
        metrics.decode_s += perf_counter() - started
    return answer.output


def _propose(state: DraftState, anchor: int, block_size: int, tree_size: int) -> DraftTree:
    if tree_size:
        assert isinstance(state, DFlashState)
        return state.propose_tree(anchor, block_size - 1, tree_size - 1)
    return DraftTree.chain(state.propose(anchor, block_size - 1))


def check_tree(target: TargetModel, drafter: Drafter | None, draft_tree: int | None) -> int:
    """Tokens of a tree; 0: drafts are chains. Raises UsageError for what cannot draft or verify one."""
    if draft_tree is None:
        return 0
    found = f"draft_tree is {draft_tree}"
    if not 2 <= draft_tree <= MAX_TREE:
        raise UsageError(f"{found}; expected 2 to {MAX_TREE} tokens, anchor included")
    if not isinstance(drafter, DFlashDrafter):
        raise UsageError(
            f"{found}, but {'there is no drafter' if drafter is None else 'this drafter drafts one token a place'};"
            " expected a DFlash drafter, whose one forward gives all places of a block their likeliest tokens"
        )
    if isinstance(target.new_cache(1, 1), ModelCache):
        raise UsageError(
            f"{found}, but targets of model_type {target.config.model_type} keep states, which follow one path of"
            " tokens and not the branches of a tree; leave draft_tree out: blocks are verified as chains"
        )
    return draft_tree


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
