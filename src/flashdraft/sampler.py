"""From logits to tokens, one rule for drafting, verifying and plain decoding.

A sampled token is ``argmax(log p + g)`` with Gumbel noise g that depends on (seed, position) alone (the Gumbel-max
trick). So a seed gives one text whatever the block size, and a draft is accepted iff it equals the target's own
sample: lossless by construction. Penalties, biases and bans are a function of the tokens before a position too:
slot k of a block sees prompt, answer and the drafts before k, as if they had been decoded one by one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from secrets import randbits

import torch
from torch import Tensor

from flashdraft.errors import UsageError
from flashdraft.grammar import GrammarState
from flashdraft.ops.host_copy import told
from flashdraft.ops.noise import gumbel_noise
from flashdraft.ops.sampling_rule import SamplingRule
from flashdraft.ops.triton import runs_on
from flashdraft.sampling_params import SamplingParams

_HEAD = 512  # tokens of a row among which its nucleus ends, nearly always


class SharedNoise:
    """The Gumbel noise of one seed, for whoever chooses a token: the target, and before it a drafter.

    A draft that is chosen with the noise its token will be sampled with is that token more often (docs/log.md). Rows
    are kept until a later position is asked for, so that what the drafter asked for is not made again.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._kept: dict[int, Tensor] = {}

    def at(self, positions: list[int], vocab_size: int, device: torch.device) -> Tensor:
        """:func:`~flashdraft.ops.noise.gumbel_noise` of ``positions``, which rise."""
        kept = {position: row for position, row in self._kept.items() if position >= positions[0]}
        new = [position for position in positions if position not in kept]
        if new:
            kept |= zip(new, gumbel_noise(self.seed, new, vocab_size, device), strict=True)
        self._kept = kept
        return torch.stack([kept[position] for position in positions])


def log_probs(logits: Tensor, params: SamplingParams) -> Tensor:
    """Log-probabilities that ``params`` asks for, float32 [..., vocab_size]; -inf where a token is cut.

    Order as in vLLM: temperature, min_p, top_k, top_p; tokens as likely as the last that is kept stay. Not for greedy
    params.
    """
    logits = logits / params.temperature
    if params.min_p > 0:
        floor = logits.amax(-1, keepdim=True) + torch.tensor(params.min_p).log()
        logits = logits.masked_fill(logits < floor, float("-inf"))
    if 0 < params.top_k < logits.shape[-1]:
        kth = logits.topk(params.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if params.top_p < 1:
        logits = logits.log_softmax(-1)
        logits = logits.masked_fill(logits < _nucleus_floor(logits, params.top_p), float("-inf"))
    return logits.log_softmax(-1)


def _nucleus_floor(log_probs: Tensor, top_p: float) -> Tensor:
    """The smallest log-probability [..., 1] that the likeliest tokens need to reach ``top_p`` together.

    ``log_probs`` [..., vocab_size]. It is found among the likeliest 512 of nearly every row; to sort a row whole
    takes twenty times as long.
    """

    def last_kept(ordered: Tensor) -> tuple[Tensor, Tensor]:
        probs = ordered.exp()
        is_beyond = probs.cumsum(-1) - probs >= top_p
        num_kept = (is_beyond.cumsum(-1) == 0).sum(-1, keepdim=True).clamp(min=1)
        return ordered.gather(-1, num_kept - 1), num_kept == ordered.shape[-1]

    floor, is_longer = last_kept(log_probs.topk(min(_HEAD, log_probs.shape[-1])).values)
    if is_longer.any() and log_probs.shape[-1] > _HEAD:
        rest = is_longer.squeeze(-1)
        floor[rest], _ = last_kept(log_probs[rest].sort(dim=-1, descending=True).values)
    return floor


def sample(logits: Tensor, params: SamplingParams, noise: SharedNoise, first_position: int) -> Tensor:
    """The target's own tokens [num_tokens] for ``logits`` [num_tokens, vocab_size].

    Row i decides the token at position ``first_position + i``.
    """
    if params.is_greedy:
        return logits.argmax(-1)
    if runs_on(logits.device):
        return _sampled_by_kernel(logits, rule_of(params, noise), first_position)
    positions = list(range(first_position, first_position + logits.shape[0]))
    return (log_probs(logits, params) + noise.at(positions, logits.shape[-1], logits.device)).argmax(-1)


def rule_of(params: SamplingParams, noise: SharedNoise) -> SamplingRule:
    """What a kernel is told of params that are not greedy."""
    return SamplingRule(params.temperature, noise.seed, params.top_p, params.top_k, params.min_p)


def _sampled_by_kernel(logits: Tensor, rule: SamplingRule, first_position: int) -> Tensor:
    from flashdraft.ops.triton.sampling import sampled_tokens

    positions = told(range(first_position, first_position + len(logits)), logits.device)
    return sampled_tokens(logits, told([rule.told], logits.device).int(), positions)


@dataclass(frozen=True)
class TokenLogprobs:
    """A token's natural log-probability by the model's raw logits, and the most likely tokens beside it."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), best first


def token_logprobs(logits: Tensor, token_ids: Sequence[int], num_top: int) -> list[TokenLogprobs]:
    """For each of ``token_ids``, chosen from the row of ``logits`` [at least len(token_ids), vocab_size]."""
    rows = logits[: len(token_ids)].log_softmax(-1)
    best = rows.topk(min(num_top, rows.shape[-1]), dim=-1)
    chosen = rows[range(len(token_ids)), list(token_ids)].tolist()
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    tops = [tuple(zip(ids, values, strict=True)) for ids, values in pairs]
    return [TokenLogprobs(*row) for row in zip(token_ids, chosen, tops, strict=True)]


class TokenChooser:
    """Chooses the tokens of one request: what its params make of the logits, then :func:`sample`.

    ``banned_early``: the tokens that may not come before ``min_tokens`` (end and stop tokens).
    ``grammar``: where the answer stands in ``params.grammar``.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        banned_early: Iterable[int],
        grammar: GrammarState | None = None,
    ) -> None:
        assert (grammar is None) == (params.grammar is None), "a grammar and its state belong together"
        self.params, self.grammar = params, grammar
        self.noise = SharedNoise(randbits(62) if params.seed is None else params.seed)
        # How a kernel samples where nothing is adjusted; None: the likeliest tokens are taken.
        self.rule = None if params.is_greedy else rule_of(params, self.noise)
        self.prompt = prompt
        self.banned_early = sorted(banned_early) if params.min_tokens else []
        self._counts = params.presence_penalty != 0 or params.frequency_penalty != 0
        self._repeats = params.repetition_penalty != 1
        self.adjusts = bool(
            self._counts or self._repeats or params.logit_bias or self.banned_early or grammar
        )

    @property
    def is_argmax(self) -> bool:
        """Whether the choice is the plain argmax of the logits, which a batch can take for all its rows."""
        return self.params.is_greedy and not self.adjusts

    def allowed_prefix(self, output: Sequence[int], draft: list[int]) -> list[int]:
        """The part of ``draft`` that is worth verifying: up to the first token that can never be chosen."""
        return self.grammar.cut(output, draft) if self.grammar else draft

    def choose(self, logits: Tensor, output: Sequence[int], draft: Sequence[int] = ()) -> list[int]:
        """The target's own tokens after ``output`` and after each of ``draft``.

        ``logits`` [1 + len(draft), vocab_size], float32; row k follows prompt, ``output`` and ``draft[:k]``.
        Raises UsageError when the grammar or the bans leave nothing to choose, and when logits are no numbers.
        """
        if self.adjusts:
            logits = self._adjust(logits.clone(), output, draft)
        if self.grammar:
            self.grammar.forbid(logits, output, draft)
        best = logits.amax(-1)
        if not best.isfinite().all():
            found = "is banned" if (best == float("-inf")).any() else "has a logit that is no number"
            raise UsageError(f"there is no token to choose: every one {found}")
        chosen: list[int] = sample(logits, self.params, self.noise, len(self.prompt) + len(output)).tolist()
        return chosen

    def _adjust(self, logits: Tensor, output: Sequence[int], draft: Sequence[int]) -> Tensor:
        # vLLM's order: bias, bans, repetition, frequency and presence penalties.
        params = self.params
        if params.logit_bias:
            ids = torch.tensor(list(params.logit_bias), device=logits.device)
            logits[:, ids] += torch.tensor(list(params.logit_bias.values()), device=logits.device)
        num_banned = min(max(params.min_tokens - len(output), 0), len(logits))
        if num_banned and self.banned_early:
            logits[:num_banned, self.banned_early] = float("-inf")
        if not (self._counts or self._repeats):
            return logits
        counts = _running_counts(output, draft, logits)
        if self._repeats:
            seen = counts > 0
            seen[:, list(self.prompt)] = True
            factor = params.repetition_penalty
            logits = torch.where(seen, torch.where(logits > 0, logits / factor, logits * factor), logits)
        return logits - params.frequency_penalty * counts - params.presence_penalty * (counts > 0)


def _running_counts(output: Sequence[int], draft: Sequence[int], logits: Tensor) -> Tensor:
    """How often each token came before each slot, float32, of the shape of ``logits``."""
    counts = torch.zeros_like(logits)
    if output:
        ids = torch.tensor(list(output), device=logits.device)
        counts += torch.bincount(ids, minlength=logits.shape[-1])
    for slot, token in enumerate(draft, start=1):
        counts[slot:, token] += 1
    return counts
