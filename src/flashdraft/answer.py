"""One request's answer as it grows: what is chosen, what is delivered, and when it is over."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from flashdraft.detokenizer import Decodes
from flashdraft.errors import UsageError
from flashdraft.grammar import GrammarState
from flashdraft.ops.greedy import greedy_tokens
from flashdraft.sampler import TokenChooser, TokenLogprobs, token_logprobs
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.drafter import DraftSampling
from flashdraft.spec_decode.metrics import RequestMetrics
from flashdraft.spec_decode.tree import DraftTree
from flashdraft.spec_decode.verify import verify
from flashdraft.stopping import StopCondition

Accept = Callable[[list[int], list[int]], tuple[int, int]]  # as spec_decode/verify.py
NO_TOKEN = "there is no token to choose: a logit is no number"


class RoundEvent(NamedTuple):
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
    def draft_sampling(self) -> DraftSampling | None:
        """How the tokens that come next are sampled, for the drafter."""
        chooser, num_tokens = self.chooser, len(self.prompt) + len(self.output.token_ids)
        if chooser.params.is_greedy:
            return None
        return DraftSampling(chooser.noise, chooser.params.temperature, num_tokens)

    @property
    def needs_host(self) -> bool:
        """Whether the next tokens are chosen or told with more than their logits, temperature and cuts."""
        return self.chooser.adjusts or self.output.logprobs is not None or self.scores_prompt

    @property
    def reads_logits(self) -> bool:
        """Whether more than their argmax is wanted of the next logits."""
        return self.needs_host or not self.chooser.is_argmax

    def score_prompt(self, logits: Tensor, start: int) -> None:
        """Take the logits [num_tokens, vocab_size] of the prompt tokens from number ``start`` on."""
        scored = self.output.prompt_logprobs
        if scored is None:
            return
        num_known = len(scored) - start  # after a preemption some are told again
        following = self.prompt[start + 1 : start + 1 + len(logits)][num_known:]
        scored += token_logprobs(logits[num_known:], following, self.chooser.params.prompt_logprobs or 0)

    def trim(self, draft: DraftTree, depth: int) -> DraftTree:
        """The part of ``draft`` that is worth verifying, at most ``depth`` deep.

        A chain is worth it up to the first token that can never be chosen.
        """
        draft = draft.up_to(depth)
        if not draft.is_chain:
            return draft
        return draft.first(len(self.chooser.allowed_prefix(self.output.token_ids, draft.token_ids)))

    def follow(
        self,
        draft: DraftTree,
        logits: Tensor,
        argmax: list[int] | None = None,
        accept: Accept | None = None,
        is_sampled: bool = False,
    ) -> tuple[list[int], int]:
        """Which path of ``draft`` the target itself takes: its places, the anchor's 0 first, and the token after it.

        ``logits`` [1 + len(draft), vocab_size], ``argmax`` theirs if it is at hand, -1 where they are no numbers;
        ``accept`` decides on chains. ``is_sampled``: ``argmax`` is what a kernel chose by this answer's own rule.
        Raises UsageError where there is no token to choose behind what is accepted.
        """
        path, token = self._followed(draft, logits, argmax, accept or verify, is_sampled)
        if token < 0:
            raise UsageError(NO_TOKEN)
        return path, token

    def _followed(
        self, draft: DraftTree, logits: Tensor, argmax: list[int] | None, accept: Accept, is_sampled: bool
    ) -> tuple[list[int], int]:
        choose, said = self.chooser.choose, self.output.token_ids
        best = (argmax or greedy_tokens(logits).tolist()) if self.chooser.is_argmax or is_sampled else []
        if draft.is_chain:
            wanted = best or choose(logits, said, draft.token_ids)
            num_accepted, token = accept(draft.token_ids, wanted)
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
